"""The loss of the early stop on a staircase, by brute force over budgets and sets of tokens."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from simulator.core.provenance import Provenance
from simulator.core.random import random_stream
from simulator.deployment.deployment import Deployment, deploy
from simulator.deployment.early_stop import BATCHES, early_stop_loss, early_stop_note
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import CurveSpec
from simulator.schedulers.parse import parse_policy
from simulator.sweeps.frontier import sweep_frontier

TOKENS = tuple(range(1, 65))


def on(steps_per_s: tuple[float, ...]) -> Deployment:
    step = CurveSpec(batch_tokens=TOKENS, steps_per_s=steps_per_s)
    provenance = Provenance(kind="synthetic", source="test", date="2026-01-01")
    return deploy(Profile(name="c", title="c", provenance=provenance, step=step), ["conditional:0.9,0.8,0.7"])


STAIRS = tuple(1 / (0.010 + 0.004 * ((b - 1) // 6)) for b in TOKENS)
LINE = tuple(1 / (0.010 + 0.001 * b) for b in TOKENS)


def brute_force_loss(deployment: Deployment, requests: int) -> float:
    """Try every prefix-closed choice of lengths for the best; admit one by one for the early stop."""
    setup = deployment.plan(parse_policy("dspark"))
    survival = setup.replay(0).survival.astype(float)
    picks = random_stream(0, "early stop").integers(0, len(survival), size=(BATCHES, requests))
    time_s = [1 / x for x in deployment.profile.step.steps_per_s]  # type: ignore[union-attr]
    losses = []
    for batch in picks:
        rows = survival[batch]

        def theta(lengths: tuple[int, ...], rows: np.ndarray = rows) -> float:
            tokens = requests + sum(rows[r, :n].sum() for r, n in enumerate(lengths))
            return float(tokens / time_s[requests + sum(lengths) - 1])

        best = max(theta(lengths) for lengths in product(range(4), repeat=requests))
        candidates = sorted(((r, k) for r in range(requests) for k in range(3)), key=lambda c: -rows[c])
        lengths, now = [0] * requests, theta((0,) * requests)
        for r, _ in candidates:
            lengths[r] += 1
            if theta(tuple(lengths)) <= now * (1 + 1e-12):
                break
            now = theta(tuple(lengths))
        losses.append(1 - now / best)
    return float(np.mean(losses))


@pytest.mark.parametrize("requests", [1, 3, 4])
@pytest.mark.parametrize("curve", [STAIRS, LINE], ids=["stairs", "line"])
def test_the_loss_is_that_of_brute_force(curve: tuple[float, ...], requests: int) -> None:
    deployment = on(curve)
    loss = early_stop_loss(deployment.plan(parse_policy("dspark")), requests)
    assert loss == pytest.approx(brute_force_loss(deployment, requests), abs=1e-6)
    assert early_stop_loss(deployment.plan(parse_policy("dspark-async")), requests) == 0


def test_it_is_said_where_it_happens_and_nowhere_else() -> None:
    stairs, line = on(STAIRS), on(LINE)
    policies = [parse_policy("dspark"), parse_policy("dspark-async")]
    assert early_stop_note(line.plan(policies[0]), [3, 8]) is None
    with pytest.warns(
        UserWarning, match=r"dspark stops at .* this cost curve has stairs: at \d+ requests .*% less"
    ):
        table = sweep_frontier(stairs, policies, [3, 8], seeds=1, steps=400)
    rate = table.pivot(index="concurrency", columns="policy", values="throughput_tok_per_s")
    # What is expected of a step is what a run loses, but for the lag of the other policy.
    for load in (3, 8):
        expected = early_stop_loss(stairs.plan(policies[0]), load)
        assert 1 - rate.loc[load, "dspark"] / rate.loc[load, "dspark-async"] == pytest.approx(
            expected, abs=0.05
        )
