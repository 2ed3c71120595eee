"""What a live run and a simulated one share, and what their results depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from simulator.core.errors import BadInputError
from simulator.deployment.deployment import Deployment
from simulator.deployment.setup import Setup
from simulator.live.checks.validation.conditions import check_profile
from simulator.live.device import device_name
from simulator.live.engine.passes import LiveOptions
from simulator.live.engine.prompts import RANDOM, Prompts
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.profiling.conditions import conditions_of, digests_of
from simulator.parallel.hashing import content_hash
from simulator.schedulers.parse import NamedPolicy
from simulator.traffic.arrivals import ClosedLoop
from simulator.traffic.lengths import Lengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from simulator.traffic.workload import Workload

PATHS = ("target", "draft_folders")
"""Settings that say where models lie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationCase:
    """What both runs share.

    deployment: the profile and the acceptance of its drafters. replayed: the live run takes acceptance from
    it as well; otherwise its pair decides for itself, confidences calibrated with the temperatures that its
    trace carries. schedule_s: what a policy's decision adds to a step, as profiled. prompts: what the live
    run's requests say, called ``prompts_name``; random tokens where None.
    """

    target: Target
    drafters: Mapping[str, Draft]
    deployment: Deployment
    policies: Sequence[NamedPolicy]
    concurrency: Sequence[int]
    lengths: Lengths
    steps: int
    seed: int = 0
    replayed: bool = True
    schedule_s: Callable[[str], float] = lambda policy: 0.0
    prompts: Prompts | None = None
    prompts_name: str = RANDOM
    options: LiveOptions

    def plan(self, policy: NamedPolicy) -> Setup:
        """How a policy runs, the overhead of deciding included."""
        return replace(self.deployment, overhead_s=self.schedule_s(policy.name)).plan(policy)

    def workload(self, concurrency: int) -> Workload:
        """Closed-loop requests, more than slots, so that cycling through them shows no pattern."""
        traffic = SyntheticTraffic(ClosedLoop(), (TrafficClass("default", self.lengths),))
        return traffic.workload(self.seed, requests=max(256, 8 * concurrency))

    def conditions(self) -> dict[str, str]:
        """Return what the live runs' times depend on, as a profile's provenance says it."""
        options = self.options
        return conditions_of(
            self.target,
            attention=options.attention,
            graphs=options.graphs,
            temperature=options.temperature,
            fuse=options.fuse is not False,
        )

    def drafters_used(self) -> dict[str, str]:
        """Return the digests of the drafters that a policy runs with, as a profile's provenance says it."""
        used = {self.plan(policy).drafter for policy in self.policies}
        return digests_of({name: draft for name, draft in self.drafters.items() if name in used})

    def settings(self) -> dict[str, object]:
        """Return what results depend on: a directory of other settings is not continued.

        ``PATHS`` are there for a reader and not compared: models are known by digests of their content.
        Reads all weights of the drafts each time.
        """
        profile, acceptance = self.deployment.profile, self.deployment.acceptance
        return {
            "target": self.target.name,
            "draft_folders": {name: draft.source or "untrained" for name, draft in self.drafters.items()},
            **self.conditions(),
            "drafters": {name: draft.digest for name, draft in self.drafters.items()},
            "profile": profile.name,
            "profile_digest": hashlib.sha256(profile.model_dump_json().encode()).hexdigest(),
            "acceptance": {name: model.name for name, model in acceptance.items()},
            "acceptance_digest": {name: content_hash(model) for name, model in acceptance.items()},
            "lengths": repr(self.lengths),
            "steps": self.steps,
            "seed": self.seed,
            "replayed": self.replayed,
            "temperature": self.options.temperature,
            "prompts": self.prompts_name,
            "prompt_digest": self._prompt_digest(),
            "device": device_name(self.target.device),
        }

    def check_profile(self) -> None:
        """Refuse a profile that was measured under other conditions than those of this case's live runs."""
        check_profile(self.deployment.profile, self.target, self.conditions() | self.drafters_used())

    def _prompt_digest(self) -> str | None:
        """Digest of all that requests say, prompts and what stands for output before a run begins."""
        if self.prompts is None:
            return None
        load = self.workload(max(self.concurrency))
        longest = load.prompt_tokens + load.output_tokens
        return content_hash([self.prompts(request, int(n)) for request, n in enumerate(longest)])

    def drafter_of(self, plan: Setup) -> Draft:
        """Return the draft that a policy runs with; ``BadInputError`` where it was not given."""
        if plan.drafter not in self.drafters:
            raise BadInputError(
                f"runs with drafter {plan.drafter!r}, which was not given", source="policy",
                value=plan.policy.name,
                remedy=f"pass `draft` {plan.drafter}=FOLDER (given: {', '.join(self.drafters) or 'none'})",
            )  # fmt: skip
        return self.drafters[plan.drafter]
