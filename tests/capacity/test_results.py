"""What a sweep keeps of a trial or a search is all of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from simulator.capacity.results import RateSearch, TrialResult
from simulator.capacity.search import Search, find_rate, find_rate_row
from simulator.capacity.trials import Trial, binding, try_rate, try_rate_row
from simulator.engine.limits import EngineLimits
from simulator.parallel.cells import Sweeping
from simulator.sla.terms import parse_sla
from simulator.sla.verdict import TermResult
from tests.capacity.test_search import constant_step, poisson
from tests.support.trials import trial_result


@pytest.mark.parametrize("replications", [1, 3])
def test_a_search_comes_back_whole_from_its_cell(replications: int, tmp_path: Path) -> None:
    server = constant_step(
        poisson("fixed:10/5"), "ttft_mean<=200ms", "itl_p90<=60ms", limits=EngineLimits(1), requests=300
    )
    search = Search(server, 0.2, replications=replications)
    found = find_rate(search)
    assert repr(RateSearch.from_row(found.as_row())) == repr(found)  # NaN is not equal to itself
    (row,) = Sweeping(tmp_path).run(find_rate_row, [search], "Rates")
    assert repr(RateSearch.from_row(row)) == repr(found)
    assert [each.term for each in found.beyond.terms] == list(server.sla.terms)


def test_a_saturated_trial_comes_back_whole_from_its_cell(tmp_path: Path) -> None:
    server = constant_step(poisson("fixed:10/5"), "ttft_p90<=2s", limits=EngineLimits(1), requests=300)
    trial = Trial(server, 20.0)
    (row,) = Sweeping(tmp_path).run(try_rate_row, [trial], "Rates")
    again = TrialResult.from_row(row)
    assert repr(again) == repr(try_rate(trial))
    assert again.saturated
    assert again.failing == server.sla.terms
    assert again.metrics is None
    assert math.isnan(again.seed_tps[0])


def test_an_outcome_is_found_by_what_it_bounds() -> None:
    (strict,), (loose,) = (parse_sla([text]).terms for text in ("chat:ttft_p99<=1s", "chat:ttft_p99<=2s"))
    one = trial_result("a", 1.0, terms=[TermResult(strict, False, 1.5, 0.9, 0.01, 100)])
    assert one.outcome(loose).estimate == 1.5
    with pytest.raises(KeyError):
        one.outcome(parse_sla(["ttft_p99<=1s"]).terms[0])


def test_the_name_of_a_class_does_not_make_a_speed_a_wait() -> None:
    """Whoever calls a class after a metric still gets its speed judged as a speed."""
    speed, wait, total, line = parse_sla(
        ["ttft-users:tps_p10>=60", "chat:ttft_p99<=1s", "ttft+16*tpot_p99<=2s", "queue_mean<=3"]
    ).terms
    assert [each.measures_waiting for each in (speed, wait, total, line)] == [False, True, True, True]
    failed = trial_result("a", 1.0, met=False, terms=[TermResult(speed, False, 50.0, 0.8, 0.01, 100)])
    search = RateSearch(
        "a", "base", 0.9, 1.0, 2.0, None, failed, (failed,), (0.95,), math.nan, math.nan
    )  # fmt: skip
    assert binding(search, EngineLimits(4)) == "ttft-users:tps_p10>=60; step time"
