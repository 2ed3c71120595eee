"""A validation from words: what a live run and a simulated one share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from simulator.acceptance.trace import Replay
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.profile import shipped_profiles
from simulator.live.checks.validation.case import ValidationCase
from simulator.live.engine.graphs import Tiers
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import RANDOM, text_prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.cells import CellLog
from simulator.live.profiling.grid import NO_DRAFTER
from simulator.live.profiling.profile_fit import schedule_s
from simulator.schedulers.parse import parse_policy
from simulator.traffic.lengths import parse_lengths

PROMPT_ROWS = 16384
"""Rows of the largest recorded graph for prompts on a CUDA device. A choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to serve, in the words of the command line; see ``dspark-sim validate --help``.

    simulated: whether a simulated run stands beside the live one; it needs acceptance even where the live
    run takes the pair's own.
    """

    profile: str
    acceptance: Sequence[str] = ()
    policies: Sequence[str]
    concurrency: Sequence[int]
    lengths: str = "default"
    steps: int
    seed: int = 0
    own: bool = False
    simulated: bool = True
    temperature: float = 0.0
    prompts: str = RANDOM
    text: Path | None = None
    attention: str = "auto"
    graphs: bool = True
    fuse: bool = True


@dataclass(frozen=True, slots=True)
class OwnAcceptance:
    """Stands where a live run takes acceptance from its pair: it knows the block, and no outcomes."""

    name: str
    gamma: int
    has_confidence: bool

    @property
    def provenance(self) -> Provenance:
        """The run itself."""
        today = datetime.now(UTC).date().isoformat()
        return Provenance(kind="measured", source="the pair's own acceptance in this run", date=today)

    def replay(self, seed: int, *, raw: bool = False) -> Replay:
        """Refuse: outcomes exist in the live run alone."""
        raise self._unknown()

    def truncated(self, gamma: int) -> OwnAcceptance:
        """Refuse: a drafter that runs drafts its whole block."""
        raise BadInputError(
            f"is drafted whole, {self.gamma} tokens: a policy of {gamma} needs a drafter of its own here",
            source="acceptance", field=self.name, remedy="load one beside it, as in --draft mtp1=FOLDER",
        )  # fmt: skip

    def _unknown(self) -> BadInputError:
        return BadInputError(
            "the pair's own acceptance is known in its live run alone", source="acceptance", field=self.name,
            remedy="pass `acceptance` with a trace of the pair (`dspark-sim trace` records one)",
        )  # fmt: skip


def validation_case(target: Target, drafters: dict[str, Draft], asked: Asked) -> ValidationCase:
    """Parse what was asked for, and find the cells that the profile was made from: they know deciding's cost.

    Raises ``BadInputError`` for whatever cannot be read.
    """
    log = cells_beside(asked.profile)
    deployment = deploy(asked.profile, asked.acceptance, required=False)
    policies = [parse_policy(text) for text in asked.policies]
    if asked.own and not asked.simulated:
        deployment = _with_own(deployment, drafters)
    elif not deployment.acceptance and any(each.drafter != NO_DRAFTER for each in policies):
        raise BadInputError(
            "is not given, and there is no default", field="acceptance",
            remedy="name a model (`dspark-sim list`) or the pair's trace; `dspark-sim live --own` needs none",
        )  # fmt: skip
    return ValidationCase(
        target=target, drafters=drafters, deployment=deployment,
        policies=policies, concurrency=asked.concurrency,
        lengths=parse_lengths(asked.lengths), steps=asked.steps, seed=asked.seed, replayed=not asked.own,
        schedule_s=(lambda policy: schedule_s(log, policy)) if log else lambda policy: 0.0,
        prompts=None if asked.prompts == RANDOM else text_prompts(
            Path(target.name), asked.prompts, asked.seed, text=asked.text
        ),
        prompts_name=asked.prompts,
        options=LiveOptions(
            temperature=asked.temperature, tiers=_tiers(target, drafters, max(asked.concurrency)),
            attention=asked.attention, graphs=asked.graphs, fuse=None if asked.fuse else False,
            seed=asked.seed,
        ),
    )  # fmt: skip


def _with_own(deployment: Deployment, drafters: dict[str, Draft]) -> Deployment:
    """Let each drafter without an acceptance model run on what its pair accepts."""
    own = {name: OwnAcceptance(f"own:{name}", it.gamma, it.has_confidence) for name, it in drafters.items()}
    return replace(deployment, acceptance=own | dict(deployment.acceptance))


def cells_beside(profile: str) -> CellLog | None:
    """Find the cells that a profile was made from beside it, where they are."""
    path = shipped_profiles().get(profile, Path(profile)).with_suffix(".cells.jsonl")
    return CellLog.read(path) if path.is_file() else None


def _tiers(target: Target, drafters: dict[str, Draft], concurrency: int) -> Tiers:
    if target.device.type != "cuda":
        return Tiers()
    gamma = max((draft.gamma for draft in drafters.values()), default=0)
    return Tiers.for_cuda(concurrency * (1 + gamma), concurrency, PROMPT_ROWS)
