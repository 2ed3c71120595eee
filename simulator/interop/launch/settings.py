"""What is launched, in no engine's words, and what an engine's launch consists of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from simulator.core.errors import BadInputError
from simulator.core.files import write_text

Prefill = Literal["elsewhere", "chunked", "whole"]

FAMILIES = ("dspark", "dflash", "eagle3", "mtp")
"""Drafters that engines have a method for; a name such as ``mtp1`` begins with its family."""

TABLE, CALIBRATION = "cost_table.json", "calibration.json"
"""Names of the files beside a launch script."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Every request gets the same number of drafts in each step; 0 is no speculation."""

    length: int


@dataclass(frozen=True, slots=True)
class ByBatch:
    """A length for each range of decoding requests: first request, drafts; the last range is open."""

    ranges: tuple[tuple[int, int], ...]

    @property
    def longest(self) -> int:
        """The most drafts of any range."""
        return max(length for _, length in self.ranges)

    def at(self, requests: int) -> int:
        """Return the drafts of a request in a batch of so many."""
        return max((first, length) for first, length in self.ranges if first <= max(requests, 1))[1]


@dataclass(frozen=True, slots=True)
class Confidence:
    """Each step decides by confidences and costs how many drafts of each request are verified."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """A replica to launch.

    policy: as it was planned, for what is said. drafter: a name that begins with one of ``FAMILIES``, None
    without speculation. block: drafts that it proposes. gpus: of a replica. concurrency: requests at once.
    chunk_tokens: prompt tokens of a step where prompts are prefilled in the engine. kv_tokens,
    memory_share: capacity of the KV cache, and the share of GPU memory for weights and cache, where known.
    model: the target's checkpoint, where known. table, calibration: whether those files lie beside.
    """

    policy: str
    verification: Fixed | ByBatch | Confidence
    drafter: str | None
    block: int
    gpus: int
    concurrency: int
    prefill: Prefill = "elsewhere"
    chunk_tokens: int = 2048
    kv_tokens: int | None = None
    memory_share: float | None = None
    model: str | None = None
    table: bool = False
    calibration: bool = False

    @property
    def rule(self) -> str:
        """Name of the policy without its options and its drafter."""
        return re.split("[:@]", self.policy)[0]

    @property
    def drafts(self) -> int:
        """Most drafts of a request that a step verifies."""
        if isinstance(self.verification, Fixed):
            return self.verification.length
        return self.verification.longest if isinstance(self.verification, ByBatch) else self.block

    @property
    def rows(self) -> int:
        """Rows of the largest decode step: anchors and drafts of every request."""
        return self.concurrency * (1 + self.drafts)

    @property
    def family(self) -> str:
        """Which of an engine's methods drafts; ``BadInputError`` where no engine has one."""
        for family in FAMILIES:
            if (self.drafter or "").startswith(family):
                return family
        raise BadInputError(
            "is a drafter that no engine's settings are known for", source="launch", field="drafter",
            value=self.drafter, remedy=f"name one that begins with {', '.join(FAMILIES)}",
        )  # fmt: skip

    @property
    def has_draft_model(self) -> bool:
        """Whether a checkpoint of its own drafts; MTP's module lies in the target's."""
        return bool(self.drafts) and self.family != "mtp"


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How one engine is started.

    checked: versions and sources of the flags. arguments: of the command, ``$MODEL`` and ``$DRAFT_MODEL``
    in place of checkpoints. files: name to text of what the command reads. notes: what the engine cannot
    express, and what is left to whoever deploys, a line each. prepare: shell lines before the command.
    """

    engine: str
    checked: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    files: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()
    prepare: tuple[str, ...] = ()
    model: str | None = None

    def script(self) -> str:
        """Return launch.sh: comments that say versions and limits, then the command."""
        said = [f"For {self.engine} {self.checked}.", *self.notes]
        lines = ["#!/usr/bin/env bash", *(f"# {line}" for line in said), "set -euo pipefail"]
        lines += ['cd "$(dirname "$0")"', self._needed("MODEL", "the target", self.model)]
        if any("$DRAFT_MODEL" in text for text in [*self.arguments, *self.prepare]):
            lines.append(self._needed("DRAFT_MODEL", "the drafter", None))
        lines += [f"export {name}={value}" for name, value in self.environment.items()]
        return "\n".join([*lines, *self.prepare, "exec " + _command(self.arguments)]) + "\n"

    def write(self, folder: Path) -> None:
        """Write launch.sh, executable, and its files."""
        for name, text in self.files.items():
            write_text(folder / name, text)
        write_text(folder / "launch.sh", self.script())
        (folder / "launch.sh").chmod(0o755)

    @staticmethod
    def _needed(variable: str, what: str, default: str | None) -> str:
        if default is not None:
            return f': "${{{variable}:={default}}}"'
        return f': "${{{variable}:?set {variable} to the checkpoint of {what}}}"'


def graph_sizes(most: int) -> list[int]:
    """Sizes to record graphs for: 1, 2, 3, 4, 6, 8, 12, ... and the largest.

    Half an octave apart, so that padding adds less than a half to a step: a choice between padding and the
    memory and time that recording takes.
    """
    steps = {2**power for power in range(most.bit_length())}
    steps |= {3 * size // 2 for size in steps if size > 1}
    return sorted({size for size in steps if size < most} | {most})


def refuse_oracle(settings: Settings) -> None:
    """Refuse what cannot be deployed."""
    if settings.rule == "oracle":
        raise BadInputError(
            "knows the outcome before it is decided: no engine can run it", source="launch",
            field="policy", value=settings.policy, remedy="launch another policy",
        )  # fmt: skip


def nearest(settings: Settings, engine: str, own: Sequence[str], rule: str) -> tuple[str, ...]:
    """Say that the engine decides by its own rule, unless the policy is one of its own."""
    if not isinstance(settings.verification, Confidence) or settings.rule in own:
        return ()
    return (
        f"{settings.policy} is no rule of {engine}: the nearest setting is its own, {rule}. Plan with "
        f"{own[0]} to see what it gives.",
    )


def left_to_you(settings: Settings) -> tuple[str, ...]:
    """Say what no plan knows of a replica."""
    notes: list[str] = []
    if settings.gpus > 1:
        notes.append(
            f"The replica's {settings.gpus} GPUs are taken as tensor parallel: the plan does not say how "
            "they share the model."
        )
    if settings.prefill == "elsewhere":
        notes.append(
            "The plan prefills elsewhere: this replica decodes. How it gets the KV cache of a prompt is left "
            "to you."
        )
    return tuple(notes)


def _command(arguments: Sequence[str]) -> str:
    """Quote a command line, an option with its value a line; variables of the shell stay open."""
    lines: list[str] = []
    for word in arguments:
        quoted = _quoted(word)
        if word.startswith("--") or not lines:
            lines.append(quoted)
        else:
            lines[-1] += f" {quoted}"
    return " \\\n  ".join(lines)


def _quoted(word: str) -> str:
    parts = re.split(r"(\$(?:DRAFT_)?MODEL)", word)
    return "".join(f'"{part}"' if part.startswith("$") else shlex.quote(part) for part in parts if part)
