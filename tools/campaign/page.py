"""What all sections of a campaign's page share: where they read, and how they say whose numbers these are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.core.files import slug
from simulator.core.reading import read_json
from simulator.deployment.acceptance_text import parse_acceptances
from simulator.deployment.profile import Profile, load_profile
from simulator.report.drawing.style import save
from tools.campaign.campaign import SMALL, Campaign

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NotMeasuredError(Exception):
    """A section's input is missing; the argument is the part that makes it."""


@dataclass(frozen=True, slots=True)
class Page:
    """What sections read from and leave figures in."""

    campaign: Campaign
    device: str

    @property
    def slug(self) -> str:
        """The device as a file's name."""
        return slug(self.device)

    def figure(self, name: str, figure: Figure, alt: str) -> str:
        """Save a figure; returns the line that shows it."""
        save(figure, self.campaign.out / self.slug / f"{name}.png")
        return f"![{alt}]({self.slug}/{name}.png)"

    def json(self, name: str, part: str) -> dict[str, Any]:
        """Return what a part left."""
        path = self.campaign.out / name
        if not path.is_file():
            raise NotMeasuredError(part)
        found: Any = read_json(path)
        return dict(found)

    def csv(self, name: str, part: str) -> pd.DataFrame:
        """Return a table that a part left."""
        path = self.campaign.out / name
        if not path.is_file():
            raise NotMeasuredError(part)
        return pd.read_csv(path)

    def profile(self, size: str, gamma: int = 7) -> Profile:
        """Return a measured profile."""
        try:
            return load_profile(self.campaign.profile_of(size, gamma))
        except BadInputError as error:
            raise NotMeasuredError(f"profile-{size}") from error

    def acceptance(self, size: str) -> dict[str, AcceptanceModel]:
        """Return acceptance of a size's drafts."""
        try:
            return parse_acceptances(self.campaign.acceptance_of(size))
        except BadInputError as error:
            raise NotMeasuredError(f"trace-{size}") from error


def section(body: Callable[[Page], str]) -> Callable[[Page], str]:
    """Write a section that says what to run where its input is missing."""

    def said(page: Page) -> str:
        try:
            return body(page)
        except NotMeasuredError as missing:
            return f"Not measured yet: run `scripts/gpu_campaign {missing}`."

    return said


def for_sizes(body: Callable[..., str], sizes: Sequence[str]) -> Callable[[Page], str]:
    """Write a section with a part for each size, each of which may be missing."""

    def said(page: Page) -> str:
        parts = []
        for size in sizes:
            parts += [f"### {named_size(size)}", section(partial(body, size=size))(page)]
        return "\n\n".join(parts)

    return said


def named_size(size: str) -> str:
    """Return what a size is called in text."""
    return "The small pair" if size == SMALL else f"Qwen3-{size.upper()}"


def measured_by(found: Mapping[str, Any]) -> str:
    """Where numbers come from."""
    torch = found["software"].get("torch")
    return f"(`{found['command']}`, {found['date']}, {found['device']}, torch {torch})"


def today() -> str:
    """Return the date in UTC, as ISO 8601."""
    return datetime.now(UTC).date().isoformat()


def number(value: object) -> str:
    """Four digits of a float; whole numbers, truths and text as they are."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(frame: pd.DataFrame) -> str:
    """Format a table of strings and whole numbers."""
    lines = [list(map(str, frame.columns)), ["---"] * len(frame.columns)]
    lines += [["" if pd.isna(cell) else str(cell) for cell in row] for row in frame.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
