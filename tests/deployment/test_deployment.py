"""Deployments: which drafter a policy runs with, on what cost, and when it cannot run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.acceptance.trace import AcceptanceModel
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.cost.models import StepCost
from simulator.deployment.acceptance_text import parse_acceptance, parse_acceptances
from simulator.deployment.deployment import Deployment
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import CurveSpec, DraftSpec
from simulator.deployment.setup import NO_DRAFT, Setup, realised
from simulator.schedulers.parse import parse_policy

SYNTHETIC = Provenance(kind="synthetic", source="test", date="2026-01-01")
DSPARK, MTP1, EAGLE = (
    parse_acceptance(text) for text in ("qwen3-4b-chat", "conditional:0.85", "qwen3-4b/eagle3/chat")
)


def profile(steps_per_s: float = 100.0, **options: Any) -> Profile:
    step = CurveSpec(batch_tokens=(1,), steps_per_s=(steps_per_s,), beyond="clamp")
    return Profile(name="flat", title="flat", provenance=SYNTHETIC, step=step, **options)


def plan(policy: str, acceptance: dict[str, AcceptanceModel], **options: Any) -> Setup:
    return Deployment(profile(), acceptance, **options).plan(parse_policy(policy))


@pytest.mark.parametrize(
    ("policy", "given", "drafter"),
    [
        ("autoregressive", {}, "none"),
        ("mtp1", {"mtp1": MTP1, "dspark": DSPARK}, "mtp1"),
        ("fixed:3", {"mtp1": MTP1, "dspark": DSPARK}, "dspark"),
        ("fixed:3", {"mtp1": MTP1, "eagle3": EAGLE}, "eagle3"),
        ("fixed:3", {"dspark": DSPARK, "eagle3": EAGLE}, "dspark"),
        ("fixed:3@eagle3", {"dspark": DSPARK, "eagle3": EAGLE}, "eagle3"),
        ("fixed:1", {"mtp1": MTP1}, "mtp1"),
        ("dspark-async", {"mtp1": MTP1, "dspark": DSPARK}, "dspark"),
    ],
)
def test_the_drafter_of_a_policy(policy: str, given: dict[str, AcceptanceModel], drafter: str) -> None:
    made = plan(policy, given)
    assert made.drafter == drafter
    assert made.acceptance is given.get(drafter)
    assert made.note is None


def test_mtp1_without_acceptance_of_its_own_borrows_a_first_position_and_says_so() -> None:
    made = plan("mtp1", {"dspark": DSPARK})
    assert made.drafter == "mtp1"
    assert made.acceptance is not None
    assert made.acceptance.gamma == 1
    assert made.note is not None
    assert "the first position of dspark's stands in" in made.note


@pytest.mark.parametrize(
    ("policy", "given", "complaint"),
    [
        ("fixed:3", {"eagle3": EAGLE, "dflash": EAGLE}, r"does not say which drafter.*fixed:3@DRAFTER"),
        ("fixed:3", {}, "needs acceptance and there is none"),
        ("mtp1", {}, r"no acceptance is given for drafter 'mtp1'.*given: none"),
        ("fixed:3@dflash", {"dspark": DSPARK}, r"`acceptance` dflash=MODEL \(given: dspark\)"),
        ("fixed:8", {"dspark": DSPARK}, "use at most fixed:7"),
        ("fixed:2", {"mtp1": MTP1}, "verifies 2 tokens but its drafter's block has 1"),
        ("dspark-async", {"eagle3": EAGLE}, "schedules by confidence, which this drafter does not give"),
        ("threshold:0.5", {"eagle3": EAGLE}, "run it with fixed:K"),
        ("dspark@none", {"dspark": DSPARK}, "schedules by confidence"),
    ],
)
def test_plans_that_cannot_run(policy: str, given: dict[str, AcceptanceModel], complaint: str) -> None:
    with pytest.raises(BadInputError, match=complaint):
        plan(policy, given)


def test_the_oracle_needs_no_confidence() -> None:
    assert plan("oracle", {"eagle3": EAGLE}).drafter == "eagle3"


def test_a_step_costs_target_draft_and_overhead() -> None:
    assert plan("fixed:3", {"dspark": DSPARK}).cost.step_time_s(4, 16) == pytest.approx(0.01)
    assert plan("fixed:3", {"dspark": DSPARK}, overhead_s=0.002).cost.step_time_s(4, 16) == pytest.approx(
        0.012
    )
    drafter = DraftSpec(structure="parallel", block_size=7, requests=(1, 64), pass_s=(0.003, 0.003))
    deployment = Deployment(profile(drafters={"dspark": drafter}), {"dspark": DSPARK}, overhead_s=0.002)
    made = deployment.plan(parse_policy("fixed:3"))
    assert isinstance(made.cost, StepCost)
    assert made.cost.step_time_s(4, 16) == pytest.approx(0.015)
    plain = deployment.plan(parse_policy("autoregressive"))
    assert plain.cost.step_time_s(4, 4) == pytest.approx(0.012)


def test_believed_and_true_cost_are_separate() -> None:
    made = plan("dspark-async", {"dspark": DSPARK})
    assert made.believed is made.cost
    made = plan("dspark-async", {"dspark": DSPARK}, believed=profile(steps_per_s=50))
    assert made.cost.step_time_s(1, 1) == pytest.approx(0.01)
    assert made.believed.step_time_s(1, 1) == pytest.approx(0.02)


def test_a_drafter_is_read_off_a_catalogue_name() -> None:
    models = parse_acceptances(
        ["qwen3-4b/eagle3/chat", "length:2.5@4", "mtp1 = conditional:0.8", "dflash=length:3@6"]
    )
    assert {drafter: model.gamma for drafter, model in models.items()} == {
        "eagle3": 7, "dspark": 4, "mtp1": 1, "dflash": 6
    }  # fmt: skip
    assert parse_acceptances([]) == {}
    with pytest.raises(BadInputError, match="two models for drafter 'dspark'"):
        parse_acceptances(["qwen3-4b-chat", "length:2.5@4"])


def test_realised_acceptance_is_by_model_and_seed() -> None:
    made = plan("fixed:3", {"dspark": DSPARK})
    first = made.replay(3)
    assert made.replay(3) is realised(parse_acceptance("qwen3-4b-chat"), 3)
    np.testing.assert_array_equal(first.accepted, DSPARK.replay(3).accepted)
    assert not np.array_equal(first.accepted, made.replay(4).accepted)
    assert plan("autoregressive", {}).replay(3) is NO_DRAFT
