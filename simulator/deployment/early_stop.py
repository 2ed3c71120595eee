"""What Algorithm 1's early stop forgoes on a cost curve that is not unimodal."""

from __future__ import annotations

import numpy as np

from simulator.core.random import random_stream
from simulator.deployment.setup import Setup
from simulator.schedulers.policies import DSpark
from simulator.schedulers.search import first_descent, global_maximum, on_grid, throughput_of_budget

BATCHES = 64
"""Batches over which the loss is averaged: it scatters by a few percent from one to the next."""

WORTH_SAYING = 0.01
"""Loss from which on it is said: a choice. Below it, sampling of a run hides it."""


def early_stop_loss(setup: Setup, requests: int, seed: int = 0) -> float:
    """Return the share of expected throughput lost by stopping at the first budget that does not improve.

    The early stop finds the best budget where Theta(K) rises and then falls (paper, section 5.2). On a
    staircase of step times it stops at the first stair. The loss is the mean, over ``BATCHES`` batches of
    ``requests`` rows drawn from the drafter's replay, of 1 - Theta(early stop) / max Theta, by the step times
    that the scheduler believes and without context. 0 for every other policy.
    """
    if not isinstance(setup.scheduler, DSpark) or setup.acceptance is None:
        return 0.0
    survival = setup.replay(seed).survival
    most = requests * (1 + survival.shape[1])
    step_time_s = np.asarray(setup.believed.step_time_s(requests, range(requests, most + 1)))
    rows = random_stream(seed, "early stop").integers(0, len(survival), size=(BATCHES, requests))
    losses = []
    for batch in rows:
        theta = throughput_of_budget(on_grid(survival[batch]), requests, step_time_s)
        losses.append(1 - theta[first_descent(theta)] / theta[global_maximum(theta)])
    return float(np.mean(losses))


def early_stop_note(setup: Setup, loads: list[int]) -> str | None:
    """Say at which of the loads the early stop loses most, and how much; None where that is little."""
    losses = {load: early_stop_loss(setup, load) for load in loads}
    worst = max(losses, key=lambda load: losses[load])
    if losses[worst] < WORTH_SAYING:
        return None
    return (
        f"{setup.policy.name} stops at the first budget that does not raise throughput (Algorithm 1), and "
        f"this cost curve has stairs: at {worst} requests a step is expected to give {losses[worst]:.0%} "
        "less than at its best budget; dspark-async searches all budgets"
    )
