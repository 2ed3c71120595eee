"""A validation from words: what a live run and a simulated one share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simulator.deployment.deployment import deploy
from simulator.deployment.profile import shipped_profiles
from simulator.live.checks.validation import ValidationCase
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import RANDOM, text_prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.cells import CellLog
from simulator.live.profiling.profile_fit import schedule_s
from simulator.schedulers.parse import parse_policy
from simulator.traffic.lengths import parse_lengths

PROMPT_ROWS = 16384
"""Rows of the largest recorded graph for prompts on a CUDA device. A choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to serve, in the words of the command line; see ``dspark-sim validate --help``."""

    profile: str
    acceptance: Sequence[str] = ()
    policies: Sequence[str]
    concurrency: Sequence[int]
    lengths: str = "default"
    steps: int
    seed: int = 0
    own: bool = False
    temperature: float = 0.0
    prompts: str = RANDOM
    text: Path | None = None
    attention: str = "auto"
    graphs: bool = True


def validation_case(target: Target, drafters: dict[str, Draft], asked: Asked) -> ValidationCase:
    """Parse what was asked for, and find the cells that the profile was made from: they know deciding's cost.

    Raises ``BadInputError`` for whatever cannot be read.
    """
    log = cells_beside(asked.profile)
    return ValidationCase(
        target=target, drafters=drafters, deployment=deploy(asked.profile, asked.acceptance, required=False),
        policies=[parse_policy(text) for text in asked.policies], concurrency=asked.concurrency,
        lengths=parse_lengths(asked.lengths), steps=asked.steps, seed=asked.seed, replayed=not asked.own,
        schedule_s=(lambda policy: schedule_s(log, policy)) if log else lambda policy: 0.0,
        prompts=None if asked.prompts == RANDOM else text_prompts(
            Path(target.name), asked.prompts, asked.seed, text=asked.text
        ),
        prompts_name=asked.prompts,
        options=LiveOptions(
            temperature=asked.temperature, tiers=_tiers(target, drafters, max(asked.concurrency)),
            attention=asked.attention, graphs=asked.graphs, seed=asked.seed,
        ),
    )  # fmt: skip


def cells_beside(profile: str) -> CellLog | None:
    """Find the cells that a profile was made from beside it, where they are."""
    path = shipped_profiles().get(profile, Path(profile)).with_suffix(".cells.jsonl")
    return CellLog.read(path) if path.is_file() else None


def _tiers(target: Target, drafters: dict[str, Draft], concurrency: int) -> Tiers:
    if target.device.type != "cuda":
        return Tiers()
    gamma = max((draft.gamma for draft in drafters.values()), default=0)
    return Tiers.for_cuda(concurrency * (1 + gamma), concurrency, PROMPT_ROWS)
