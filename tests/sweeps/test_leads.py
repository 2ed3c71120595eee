"""Leads: a pair of replications tells more than two means, and a tie is called one."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.capacity.results import TrialResult
from simulator.planning.tables import switch_table
from simulator.sweeps.leads import ahead, lead, recommend
from tests.support.trials import trial_result

SCATTER = np.array([0.95, 1.03, 1.0, 0.98, 1.04])


def candidate(policy: str, gpus: int, rate: object, tps: object) -> dict[str, object]:
    return {"policy": policy, "gpus": gpus, "seed_rates": rate, "seed_tps": tps}


def test_a_lead_in_every_pair_is_sure_although_the_scatter_is_wider() -> None:
    found = lead(1.02 * SCATTER, SCATTER)
    assert found.share == pytest.approx(0.02)
    assert found.sure
    assert ahead(1.02 * SCATTER, SCATTER)
    assert not ahead(1.005 * SCATTER, SCATTER)  # sure, and not worth a switch
    assert ahead(1.005 * SCATTER, SCATTER, least=0.0)


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
    assert "a tie with a" in str(best)


def test_speed_decides_between_fleets_of_one_size() -> None:
    rows = [candidate("a", 9, SCATTER, SCATTER), candidate("b", 9, SCATTER, 1.2 * SCATTER)]
    assert (recommend(rows).policy, recommend(rows).tied) == ("b", ())
    alike = [candidate("a", 9, SCATTER, SCATTER), candidate("b", 9, SCATTER, 1.002 * SCATTER)]
    assert (recommend(alike).policy, recommend(alike).tied) == ("b", ("a",))


def test_saturated_replications_are_left_out_of_the_pairs() -> None:
    assert lead([2.0, np.nan, 2.0], [1.0, 1.0, 1.0]).share == pytest.approx(1.0)
    assert not lead([np.nan], [1.0]).sure


def tried(policy: str, speeds: dict[float, np.ndarray]) -> list[TrialResult]:
    return [trial_result(policy, rate, seed_tps=values.tolist()) for rate, values in speeds.items()]


def test_the_day_chart_runs_the_recommended_policy_unless_another_is_faster_for_sure() -> None:
    """Level at 1/s, 5% behind in every pair at 3/s: the switch comes where the lead is 1%, at 1.4/s."""
    slow = tried("a", {1.0: 100 * SCATTER, 3.0: 80 * SCATTER})
    fast = tried("b", {1.0: 100.4 * SCATTER, 3.0: 84 * SCATTER})
    bands = switch_table(slow + fast, ["a", "b"], "a")
    assert bands["policy"].tolist() == ["a", "b"]
    assert 1.2 < bands["from_per_s"].iloc[1] < 1.5
    assert switch_table(slow + fast, ["a", "b"], "b")["policy"].tolist() == ["b"]
    noisy = tried("b", {1.0: 100 * SCATTER[::-1], 3.0: 82 * SCATTER[::-1]})
    assert switch_table(slow + noisy, ["a", "b"], "a")["policy"].tolist() == ["a"]
