"""A deployment: a profile, the acceptance of its drafters, and how a policy runs on both.

The one door: commands, scenarios, notebooks, fleets and live runs get deployment, acceptance and limits here
(``deploy``, ``Deployment.limits``), so that one profile gives one answer everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.cost.models import CostModel, StepCost
from simulator.cost.padded import PaddedCost
from simulator.cost.scaled import EnabledCost, RowCost, SlowPath
from simulator.deployment.acceptance_text import parse_acceptances
from simulator.deployment.profile import Profile, load_profile
from simulator.deployment.setup import Setup
from simulator.engine.limits import CHUNK_TOKENS, EngineLimits, Prefill
from simulator.schedulers.batch_table import BatchTable
from simulator.schedulers.parse import NamedPolicy, as_policy
from simulator.schedulers.policies import Fixed
from simulator.schedulers.protocol import Scheduler


@dataclass(frozen=True, slots=True)
class Deployment:
    """What policies are compared on.

    acceptance: by drafter. believed: the profile whose step cost schedulers consult, where it is not
    the true one. overhead_s: fixed time added to every step. notes: what a user should be told.
    extrapolate_rows: answer also where rows lie far beyond those measured (``Setup.extrapolates``).
    slow_path: what steps without drafts take longer under policies that may draft; schedulers do not know it.
    row_cost_s: seconds for each draft row beyond one a request, on top of the profile; schedulers know it.
    """

    profile: Profile
    acceptance: Mapping[str, AcceptanceModel]
    believed: Profile | None = None
    overhead_s: float = 0.0
    notes: tuple[str, ...] = field(default=())
    extrapolate_rows: bool = False
    slow_path: SlowPath | None = None
    row_cost_s: float = 0.0

    def plan(self, policy: str | NamedPolicy | Scheduler) -> Setup:
        """Say how a policy runs here.

        Parameters
        ----------
        policy
            A text such as ``"fixed:3@mtp1"``, or an object.

        Returns
        -------
        Setup
            The policy with its drafter, acceptance, step cost and the cost that it believes.

        Raises
        ------
        BadInputError
            If the policy cannot run here: its drafter is unknown, or has no confidence head and needs one.
        """
        policy = as_policy(policy)
        drafter, model, note = self._drafter(policy)
        _check_scheduler(policy, model)
        cost = self._step_cost(self.profile, drafter, policy)
        believed = cost if self.believed is None else self._step_cost(self.believed, drafter, policy)
        cost = _padded(cost, policy.scheduler)
        if self.slow_path is not None and not isinstance(policy.scheduler, Fixed):
            slow = self.slow_path
            cost = _of_target(cost, lambda target: EnabledCost(target, slow))
        return Setup(policy, drafter, model, cost, believed, note)

    def answerable(self, setup: Setup, requests: int) -> Setup:
        """Refuse a batch whose rows lie far beyond those measured.

        Parameters
        ----------
        setup
            A policy as it runs here.
        requests
            Requests that a step may hold.

        Returns
        -------
        Setup
            The same setup.

        Raises
        ------
        BadInputError
            If rows at that batch lie far beyond those measured, unless ``extrapolate_rows`` allows it.
        """
        refusal = None if self.extrapolate_rows else setup.extrapolates(requests)
        if refusal is not None:
            raise refusal
        return setup

    def judge_rows(self, setup: Setup, rows: float, requests: int) -> None:
        """Refuse an answer whose steps held rows far beyond those measured; see ``Setup.extrapolated``.

        Parameters
        ----------
        setup
            A policy as it runs here.
        rows
            Drafts and anchors of a decode step, in the mean.
        requests
            Requests that a step may hold.

        Raises
        ------
        BadInputError
            If the rows lie far beyond those measured, unless ``extrapolate_rows`` allows it.
        """
        refusal = None if self.extrapolate_rows else setup.extrapolated(rows, requests)
        if refusal is not None:
            raise refusal

    def limits(
        self,
        concurrency: int,
        *,
        kv_tokens: int | None = None,
        prefill: Prefill = "elsewhere",
        chunk_tokens: int | None = None,
        prefill_tokens_per_s: float | None = None,
    ) -> EngineLimits:
        """Return what one engine admits here; what the profile knows stands in where None is given.

        Parameters
        ----------
        concurrency
            Requests that run at once.
        kv_tokens
            Capacity of the KV cache in tokens.
        prefill
            Where prompts are prefilled: ``elsewhere``, ``chunked`` or ``whole``.
        chunk_tokens
            Prompt tokens of a step; ``CHUNK_TOKENS`` if the profile does not know either.
        prefill_tokens_per_s
            Speed of a worker of the prefill pool. The profile's own stands in only where prefill runs
            elsewhere.

        Returns
        -------
        EngineLimits
            The limits, checked.

        Raises
        ------
        BadInputError
            If a limit is not positive, not whole or too large; see ``EngineLimits``.
        """
        profile = self.profile
        if prefill_tokens_per_s is None and prefill == "elsewhere":
            prefill_tokens_per_s = profile.prefill_tokens_per_s
        return EngineLimits(
            concurrency,
            kv_tokens=profile.kv_tokens if kv_tokens is None else kv_tokens,
            prefill=prefill,
            chunk_tokens=chunk_tokens or profile.chunk_tokens or CHUNK_TOKENS,
            prefill_tokens_per_s=prefill_tokens_per_s,
        )

    def _drafter(self, policy: NamedPolicy) -> tuple[str, AcceptanceModel | None, str | None]:
        if policy.drafter == "none":
            return "none", None, None
        wanted = policy.drafter or self._multi_token_drafter(policy)
        if wanted in self.acceptance:
            return wanted, self.acceptance[wanted], None
        if wanted == "mtp1" and self.acceptance:
            source = self._multi_token_drafter(policy)
            note = f"{policy.name}: no acceptance given for mtp1; the first position of {source}'s stands in"
            return "mtp1", self.acceptance[source].truncated(1), note
        raise BadInputError(
            f"no acceptance is given for drafter {wanted!r}", source="policy", value=policy.name,
            remedy=f"pass `acceptance` {wanted}=MODEL (given: {', '.join(self.acceptance) or 'none'})",
        )  # fmt: skip

    def _multi_token_drafter(self, policy: NamedPolicy) -> str:
        """Find the drafter of a policy that names none: the only one with more than a token, or DSpark."""
        candidates = [name for name, model in self.acceptance.items() if model.gamma > 1] or list(
            self.acceptance
        )
        if "dspark" in candidates or len(candidates) == 1:
            return "dspark" if "dspark" in candidates else candidates[0]
        raise BadInputError(
            "does not say which drafter it runs with" if candidates else "needs acceptance and there is none",
            source="policy", value=policy.name,
            remedy=f"write {policy.name}@DRAFTER ({', '.join(candidates)})" if candidates
            else "pass `acceptance`; there is no default (`dspark-sim list` shows models)",
        )  # fmt: skip

    def _step_cost(self, profile: Profile, drafter: str, policy: NamedPolicy) -> CostModel:
        draft, jitter = profile.draft_cost(drafter), profile.jitter or ()
        target = profile.target_cost()
        if self.row_cost_s:
            target = RowCost(target, self.row_cost_s)
        if draft is None and not self.overhead_s and not jitter:
            return target
        scheduler = policy.scheduler
        asked = scheduler.lengths if isinstance(scheduler, BatchTable) else scheduler.draft_tokens
        return StepCost(target, draft, asked, self.overhead_s, jitter)


def deploy(
    profile: str | Path | Profile,
    acceptance: Sequence[str] = (),
    *,
    believed: str | Path | None = None,
    required: bool = True,
    extrapolate_rows: bool = False,
) -> Deployment:
    """Build a deployment from the words of a command line or a scenario.

    profile: a shipped name, a file, or one that is loaded. acceptance: ``[DRAFTER=]MODEL`` specs; each
    replaces the profile's own model of that drafter, and a note says so. believed: profile whose step cost
    schedulers consult. required: refuse to go on where nothing gives an acceptance model; otherwise
    ``Deployment.plan`` refuses the policies that need one. extrapolate_rows: see ``Deployment``.
    """
    loaded = profile if isinstance(profile, Profile) else load_profile(profile)
    given = parse_acceptances(acceptance)
    models = loaded.acceptance_models() | given
    if required and not models:
        raise BadInputError(
            "no acceptance model, and there is no default", source="acceptance",
            remedy="pass one, such as qwen3-4b-chat or length:3.5@5 (`dspark-sim list` shows names)",
        )  # fmt: skip
    notes = [
        f"acceptance of {drafter}: {model.name} ({model.provenance.line()})"
        for drafter, model in given.items()
    ]
    if loaded.drafters is None and loaded.provenance.kind == "measured":
        # Published curves without drafters were derived from whole engine steps, and their notes say so.
        notes.append(
            f"warning: profile {loaded.name} prices no drafter: drafting is free, unless its steps were "
            "measured with drafting in them"
        )
    return Deployment(
        loaded, models, believed=None if believed is None else load_profile(believed), notes=tuple(notes),
        extrapolate_rows=extrapolate_rows,
    )  # fmt: skip


def _padded(cost: CostModel, scheduler: Scheduler) -> CostModel:
    """Return the cost of steps that run padded to the graphs that an engine's policy names."""
    captured: tuple[int, ...] = getattr(scheduler, "captured_rows", ())
    return _of_target(cost, lambda target: PaddedCost(target, captured)) if captured else cost


def _of_target(cost: CostModel, change: Callable[[CostModel], CostModel]) -> CostModel:
    """Change the target's pass of a step, and leave drafting and overhead as they are."""
    return replace(cost, target=change(cost.target)) if isinstance(cost, StepCost) else change(cost)


def _blind(scheduler: Scheduler) -> bool:
    """Whether the policy never looks at confidence."""
    return not getattr(scheduler, "needs_confidence", True)


def _check_scheduler(policy: NamedPolicy, model: AcceptanceModel | None) -> None:
    scheduler = policy.scheduler
    if isinstance(scheduler, Fixed | BatchTable):
        gamma, longest = 0 if model is None else model.gamma, scheduler.draft_tokens or 0
        if longest > gamma:
            most = f"fixed:{gamma}" if isinstance(scheduler, Fixed) else f"lengths of {gamma}"
            raise BadInputError(
                f"verifies {longest} tokens but its drafter's block has {gamma}",
                source="policy", value=policy.name, remedy=f"use at most {most}",
            )  # fmt: skip
    elif model is None or not (model.has_confidence or scheduler.reads_outcome or _blind(scheduler)):
        raise BadInputError(
            "schedules by confidence, which this drafter does not give", source="policy",
            value=policy.name, remedy="run it with fixed:K, or use a drafter with a confidence head",
        )  # fmt: skip
