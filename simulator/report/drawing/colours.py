"""The colour of a policy: one of its name alone, so that it is the same in every figure and on every page."""

from __future__ import annotations

import colorsys
import hashlib
from typing import NamedTuple


class Colours(NamedTuple):
    """A colour as ``#rrggbb`` for a light page, which is also that of PNG files, and for a dark one."""

    light: str
    dark: str


PAPER = Colours("#f6f8fa", "#161b22")
"""What figures stand on; the page's own paper has more contrast with every colour."""

CONTRASTS = (4.5, 5.5, 7.0)
"""Contrast with the paper of colours that are worked out: a choice. Marks need 3 (WCAG 2.2, 1.4.11)."""

_KNOWN = {
    "autoregressive": Colours("#7a4a12", "#c9a26b"), "mtp1": Colours("#5f6670", "#aab3bd"),
    "mtp3": Colours("#6b6200", "#e8e05a"), "fixed:1": Colours("#b77900", "#ffd58a"),
    "fixed:2": Colours("#a34700", "#d97706"), "fixed:3": Colours("#d55e00", "#ff8a50"),
    "fixed:5": Colours("#c81e1e", "#ff7b72"), "fixed:7": Colours("#7f1d1d", "#d9686b"),
    "threshold:0.5": Colours("#d0307e", "#ff8fc0"), "dspark": Colours("#0b87a8", "#5fd4e8"),
    "dspark-async": Colours("#0b62c4", "#6cb6ff"), "tiered:0,2,4": Colours("#008a64", "#46d6a0"),
    "sglang": Colours("#7c3aed", "#b794ff"), "vllm": Colours("#a21caf", "#ee9bf5"),
    "trtllm": Colours("#3f7d0a", "#8fd14f"), "oracle": Colours("#8b8b8b", "#7d8590"),
}  # fmt: skip
"""Policies that are often seen side by side: a choice; grey is the baseline, and what cannot be deployed."""


def policy_colour(policy: str) -> Colours:
    """Return a policy's colours; those of a name that is not listed follow from its letters.

    Two of these can be alike: lines also differ by dash and mark, in the order of their table.
    """
    if policy in _KNOWN:
        return _KNOWN[policy]
    digest = hashlib.sha256(policy.encode()).digest()
    hue, contrast = int.from_bytes(digest[:2]) / 2**16, CONTRASTS[digest[2] % len(CONTRASTS)]
    dark = contrast * (luminance(PAPER.dark) + 0.05) - 0.05
    return Colours(_of(hue, (luminance(PAPER.light) + 0.05) / contrast - 0.05), _of(hue, dark))


def luminance(colour: str) -> float:
    """Return the relative luminance of ``#rrggbb`` by WCAG 2.2: 0 for black, 1 for white."""
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _of(hue: float, wanted: float) -> str:
    """Return the colour of a hue (0 to 1) whose luminance is the nearest to what is wanted."""
    low, high = 0.0, 1.0
    for _ in range(12):  # halves the lightness's range to less than a step of 1/255
        middle = (low + high) / 2
        low, high = (middle, high) if luminance(_hex(hue, middle)) < wanted else (low, middle)
    return _hex(hue, (low + high) / 2)


def _hex(hue: float, lightness: float) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colorsys.hls_to_rgb(hue, lightness, 0.65))
