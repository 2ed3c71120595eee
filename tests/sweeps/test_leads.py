"""Leads: a pair of replications tells more than two means, and a tie is called one."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.sweeps.leads import Candidate, lead, recommend

SCATTER = np.array([0.95, 1.03, 1.0, 0.98, 1.04])


def candidate(policy: str, gpus: int, rate: np.ndarray, tps: np.ndarray) -> Candidate:
    return Candidate(policy, gpus, rate.tolist(), tps.tolist())


def test_a_lead_in_every_pair_is_sure_although_the_scatter_is_wider() -> None:
    found = lead(1.02 * SCATTER, SCATTER)
    assert found.share == pytest.approx(0.02)
    assert found.sure
    assert lead(1.002 * SCATTER, SCATTER).sure  # small, and no chance


def test_a_lead_within_the_scatter_of_the_pairs_is_chance() -> None:
    """Log ratios of mean 0.02 and standard deviation 0.037: half-width 2.78 * 0.037 / sqrt(5) = 0.046."""
    other = np.array([1.03, 0.95, 1.0, 1.04, 0.98])
    found = lead(1.02 * SCATTER, other)
    spread = np.std(np.log(SCATTER / other), ddof=1)
    assert found.ci95 == pytest.approx(2.776 * spread / np.sqrt(5), rel=1e-3)
    assert not found.sure


def test_fewer_gpus_win_when_the_rates_differ_for_sure() -> None:
    best = recommend([candidate("a", 10, SCATTER, SCATTER), candidate("b", 9, 1.1 * SCATTER, SCATTER)])
    assert (best.policy, best.tied) == ("b", ())
    assert str(best) == "b"


def test_fewer_gpus_by_chance_are_a_tie_and_said_as_one() -> None:
    noisy = np.array([1.05, 0.97, 1.02, 1.0, 0.99])
    best = recommend([candidate("a", 10, SCATTER, SCATTER), candidate("b", 9, noisy, SCATTER)])
    assert (best.policy, best.tied) == ("b", ("a",))
    assert best.label == "b (a tie with a)"
    assert str(best) == "b (a tie with a); the lead is within what chance explains"


def test_speed_decides_between_fleets_of_one_size() -> None:
    rows = [candidate("a", 9, SCATTER, SCATTER), candidate("b", 9, SCATTER, 1.2 * SCATTER)]
    assert (recommend(rows).policy, recommend(rows).tied) == ("b", ())
    alike = [candidate("a", 9, SCATTER, SCATTER), candidate("b", 9, SCATTER, 1.002 * SCATTER[::-1])]
    assert (recommend(alike).policy, recommend(alike).tied) == ("b", ("a",))


def test_saturated_replications_are_left_out_of_the_pairs() -> None:
    assert lead([2.0, np.nan, 2.0], [1.0, 1.0, 1.0]).share == pytest.approx(1.0)
    assert not lead([np.nan], [1.0]).sure
