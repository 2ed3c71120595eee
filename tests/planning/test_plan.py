"""Plans: the search finds what theory says, infeasible is an answer, bad scenarios are explained."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

import simulator as sim
from simulator.acceptance.rates import Mix, mean_length
from simulator.acceptance.scaled import ScaledTrace, fitted_in, scaled_acceptance, with_difficulty
from simulator.acceptance.trace import anchor_rows
from simulator.capacity.search import Search, find_rate, interpolated_rate
from simulator.capacity.server import Server, share_at_rate
from simulator.capacity.trials import binding
from simulator.core.errors import BadInputError, InfeasibleError
from simulator.cost.models import ThroughputCurve
from simulator.cost.scaled import ScaledCost
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.profile import load_profile
from simulator.deployment.setup import Setup
from simulator.engine.limits import EngineLimits
from simulator.parallel.cells import Sweeping
from simulator.parallel.hashing import content_hash
from simulator.planning.checks import check_inputs
from simulator.planning.demand import demand_profile
from simulator.planning.plan import frontier_loads, plan, write_tables
from simulator.planning.prefill_sizing import PoolSizing, pool_workers_row
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.scenario import Scenario
from simulator.planning.sizing import Sizing
from simulator.planning.variants import (
    DIFFICULTY,
    OFF,
    Variant,
    levels_to_solve,
    servers_of,
    solve_level_row,
    study_of,
)
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.parse import parse_traffic
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, TrafficClass
from simulator.traffic.workload import Workload
from tests.support.plans import rough_plans

MOONCAKE = Path(__file__).parents[3] / "shared" / "data" / "mooncake_conversation.jsonl"

MEMORY = {"gpu_memory_gib": 80, "weights_gib": 1, "layers": 2}
QUICK = {"requests": 200, "precision": "20%", "concurrency": [1]}
SMALL: dict[str, object] = {
    "name": "Small",
    "profile": "deepseek-v4-flash",
    "policies": ["mtp1", "dspark-async"],
    "traffic": {"arrivals": "diurnal:90/s,peak=1.5", "lengths": "fixed:100/lognormal:120,cv=0.8,max=2000"},
    "sla": ["tps_p10>=75", "ttft_p95<=1s"],
    "replica": {"concurrency": 100, "prefill_tokens_per_s": 20_000},
    "search": {"precision": "5%", "requests": 400, "concurrency": [1, 20, 100]},
}


@pytest.fixture(scope="module", autouse=True)
def _rough() -> Iterator[None]:
    with rough_plans():
        yield


def scenario(**changes: object) -> Scenario:
    return Scenario.model_validate({**SMALL, **changes})


def constant_server(*terms: str, step_s: float = 0.05, concurrency: int = 1, requests: int = 1200) -> Server:
    """Autoregressive, constant step time: an M/D/1 queue when one request fits at a time."""
    policy = parse_policy("autoregressive")
    cost = ThroughputCurve([1.0], [1 / step_s])
    process = SyntheticTraffic(PoissonArrivals(1.0), (TrafficClass("default", parse_lengths("fixed:10/5")),))
    only = Setup(policy, "none", None, cost, cost)
    return Server((only,), EngineLimits(concurrency), parse_sla(terms), process, requests, 0)


# --- the search ---------------------------------------------------------------------------------------------


def test_sustainable_rate_of_an_m_d_1_queue() -> None:
    """Mean wait rho * service / (2 * (1 - rho)) = 0.2 s with service 0.2 s: rho = 2/3, rate 3.33/s."""
    found = find_rate(Search(constant_server("ttft_mean<=200ms", requests=5000), 0.03))
    assert found.rate_per_s == pytest.approx(10 / 3, rel=0.07)
    assert found.failing_rate_per_s / found.rate_per_s <= 1 / 0.97 + 1e-9
    assert not found.beyond.met
    assert found.at_rate is not None
    assert found.at_rate.met


def test_rate_without_a_latency_term_ends_at_saturation() -> None:
    """Five requests a second is all the server can do, whatever was promised."""
    found = find_rate(Search(constant_server("tps_p10>=10"), 0.02))
    assert found.rate_per_s == pytest.approx(5.0, rel=0.08)
    assert found.beyond.saturated
    assert math.isnan(found.beyond.attainment)
    assert "saturation" in binding(found, EngineLimits(1))
    assert "concurrency limit of 1" in binding(found, EngineLimits(1))


def test_a_speed_no_rate_allows_is_found_infeasible() -> None:
    found = find_rate(Search(constant_server("tps_p10>=60", concurrency=8, requests=300), 0.05))
    assert found.rate_per_s == 0
    assert found.beyond.terms[0].estimate == pytest.approx(20, rel=0.1)


def test_a_good_guess_changes_the_answer_by_no_more_than_the_precision() -> None:
    server = constant_server("ttft_mean<=200ms")
    plain, guessed = (find_rate(Search(server, 0.05, guess_per_s=g)).rate_per_s for g in (None, 3.2))
    assert plain == pytest.approx(guessed, rel=0.051)


def test_rates_read_off_trials_agree_with_the_search() -> None:
    server = constant_server("ttft_mean<=200ms")
    found = find_rate(Search(server, 0.02))
    assert interpolated_rate(found.trials, server.sla) == pytest.approx(found.rate_per_s, rel=0.03)
    tighter = parse_sla(["ttft_mean<=1ms"])
    assert not interpolated_rate(found.trials, tighter) > found.rate_per_s


def test_a_replayed_share_has_the_rate_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    arrival = np.sort(rng.random(4000) * 1000)
    recorded = Workload.single_class(arrival, np.full(4000, 10), np.full(4000, 10))
    for rate in (0.5, 4.0, 40.0):
        share = share_at_rate(ReplayTraffic(recorded), rate, 1500, 0)
        assert share.rate_per_s == pytest.approx(rate, rel=0.08)


def test_rate_zero_is_refused() -> None:
    with pytest.raises(BadInputError, match="rate: must be positive"):
        share_at_rate(constant_server("tps_p10>=1").traffic, 0.0, 10, 0)
    with pytest.raises(BadInputError, match="must be positive"):
        scenario(traffic={"arrivals": "poisson:0/s"}).demand()


# --- sensitivity --------------------------------------------------------------------------------------------


def test_difficulty_that_lasts_a_request_spreads_its_users() -> None:
    """Acceptance at large hardly moves; whole requests that are hard are what p10 is made of."""
    flash = sim.deployment("deepseek-v4-flash")
    p10, means = [], []
    for share in DIFFICULTY:
        changed = with_difficulty(flash.acceptance["dspark"], share)
        assert changed is not None
        bench = sim.deployment("deepseek-v4-flash", {"dspark": changed})
        metrics = bench.simulate("dspark-async", concurrency=40, steps=3000).metrics
        p10.append(metrics.tps_p10)
        means.append(metrics.tps_mean)
    assert means[0] == pytest.approx(means[1], rel=0.05)
    assert p10[1] < 0.9 * p10[0]


def test_only_models_that_know_of_difficulty_have_it_varied() -> None:
    assert with_difficulty(parse_acceptance("length:3.5@5"), 0.6) is None
    mixed = parse_acceptance("0.5*length:3@5+0.5*qwen3-4b-math@5")
    changed = with_difficulty(mixed, 0.6)
    assert isinstance(changed, Mix)
    assert changed.components[0] is mixed.components[0]  # type: ignore[attr-defined]
    assert changed.components[1].predictability.request_share == 0.6  # type: ignore[attr-defined]
    asked = scenario(policies=("mtp1", "dspark-async"))
    servers = servers_of(asked, asked.demand(), asked.parsed_sla())
    rates, blocks = (Variant(difficulty=0.6).applied(server) for server in servers)
    assert rates is None  # MTP-1's acceptance is one rate for all
    assert blocks is not None


def test_levels_are_solved_once_for_all_policies_and_classes() -> None:
    """Two policies share DSpark's drafts: two levels, for both of them what each would solve by itself."""
    asked = scenario(policies=("dspark", "dspark-async"), acceptance=("qwen3-4b-chat@5",))
    servers = servers_of(asked, asked.demand(), asked.parsed_sla())
    wanted = levels_to_solve(servers)
    assert len(wanted) == len(set(wanted)) == 2
    levels = {each: solve_level_row(each)["level"] for each in wanted}
    for server in servers:
        assert set(fitted_in(server.plans[0].acceptance)) <= {model for model, _ in wanted}
        for factor in (1 - OFF, 1 + OFF):
            assert Variant(acceptance=factor).applied(server, levels) != server
    worse = Variant(acceptance=1 - OFF)
    assert worse.applied(servers[1], levels) == worse.applied(servers[1])


@pytest.mark.parametrize("spec", ["qwen3-4b-chat@5", "length:3.5@5", "0.5*length:3@5+0.5*qwen3-4b-math@5"])
@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_acceptance_is_scaled_by_what_was_asked(spec: str, factor: float) -> None:
    model = parse_acceptance(spec)
    before, after = (m.replay(0) for m in (model, scaled_acceptance(model, factor)))
    ratio = after.accepted[anchor_rows(after)].mean() / before.accepted[anchor_rows(before)].mean()
    assert ratio == pytest.approx(factor, abs=0.03)


@pytest.mark.parametrize("factor", [0.9, 1.1])
def test_a_recorded_trace_is_scaled_draft_by_draft(factor: float) -> None:
    base = mean_length(3.0, 4)
    before, after = base.replay(0), ScaledTrace(base, factor).replay(0)
    ratio = after.accepted[anchor_rows(after)].mean() / before.accepted[anchor_rows(before)].mean()
    assert ratio == pytest.approx(factor, abs=0.005)
    shorter = after.accepted.astype(int) - before.accepted
    assert (shorter <= 0).all() if factor < 1 else (shorter >= 0).all()
    assert after.survival.sum(axis=1).mean() == pytest.approx(after.accepted.mean(), rel=0.01)
    assert (np.diff(after.survival, axis=1) <= 1e-6).all()


def test_scaled_cost() -> None:
    curve = ThroughputCurve([1, 10], [100.0, 50.0])
    assert ScaledCost(curve, 1.1).step_time_s(1, 10) == pytest.approx(0.022)
    assert ScaledCost(curve, 1.1).step_time_s(1, range(1, 11))[-1] == pytest.approx(0.022)
    assert ScaledCost(curve, 1.1).outside(1, 11)


# --- the scenario -------------------------------------------------------------------------------------------


def test_pools_sized_in_cells_are_those_sized_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each demanded rate is one cell; nothing else of a day, or of grown traffic, waits for a queue."""
    promised = {"arrivals": "diurnal:20/s,peak=1.6", "lengths": "fixed:6000/200", "growth": ["50%"]}
    asked = scenario(
        traffic=promised, sla=["ttft_p99<=2s"], replica={"concurrency": 8, "prefill_tokens_per_s": 6500}
    )
    traffic = asked.demand()
    sizing = Sizing.of(asked, traffic, demand_profile(traffic), asked.parsed_sla())
    demanded = [None, sizing.peak_per_s * 1.5, *sizing.profile["rate_per_s"]]
    expected = [sizing.prefill_workers(each) for each in demanded]
    # 20/s x 1.6 x 1.2 x 6,000 tokens keep 35.4 workers busy, and half as many again 53.2.
    assert expected[0] >= 36
    assert expected[1] >= 54
    pools = sizing.pools(asked.growth())
    known = sizing.with_pools(pools, [pool_workers_row(each)["workers"] for each in pools])

    def refused(*_: object) -> None:
        raise AssertionError("a pool is sized anew")

    monkeypatch.setattr(PoolSizing, "workers", refused)
    found = [known.prefill_workers(each) for each in demanded]
    assert found == expected
    assert all(isinstance(each, int) for each in found)
    for changed in (known.with_prefill_speed(2.0), known):
        with pytest.raises(AssertionError, match="anew"):
            changed.prefill_workers(None, parse_sla(["ttft_p99<=1s"]).terms if changed is known else None)


def test_the_example_states_a_whole_cost() -> None:
    """120/s on average, 192/s at the peak, 1.2 for headroom: the pool is no smaller than its prompts need."""
    example = Scenario.model_validate(yaml.safe_load(EXAMPLE))
    traffic = example.demand()
    sizing = Sizing.of(example, traffic, demand_profile(traffic), example.parsed_sla())
    assert sizing.pool is not None
    sizing.pool.check()
    prompts = share_at_rate(traffic, 1.0, 20_000, 7).prompt_tokens.mean()
    least = 192 * 1.2 * prompts / 6500
    assert 0.97 * least < sizing.prefill_workers() < 1.3 * least
    assert sizing.cost(30.0) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sla": ["tps_mean>=80", "tps_mean<=60"]}, "contradicts"),
        ({"sla": ["ttft_p99<=2"]}, "no unit of time"),
        ({"sla": ["chat:tps_p10>=60"]}, "no traffic class 'chat'"),
        ({"traffic": {"arrivals": "poisson:12"}}, "has no unit"),
        ({"traffic": {"arrivals": "closed"}}, "no rate to plan for"),
        ({"traffic": {}}, "exactly one of arrivals and replay"),
        ({"traffic": {"replay": "missing.jsonl"}}, "no such file|cannot be read|missing"),
        ({"fleet": {"headroom": "0.2"}}, "percent sign"),
        ({"policies": ["mtp1", "mtp1"]}, "distinct"),
        ({"policies": ["mpt1"]}, "not a policy"),
        ({"replica": {"kv_tokens": 5, "kv_memory": MEMORY}}, "twice"),
        ({"replica": {"kv_tokens": 50}}, "could never run"),
    ],
)  # fmt: skip
def test_bad_scenarios_are_explained(changes: dict[str, object], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        plan(scenario(**changes))


@pytest.mark.parametrize(("prompt", "fits"), [(1_040_000, True), (1_050_000, False)])
def test_a_request_lies_within_one_group_of_the_cache(prompt: int, fits: bool, tmp_path: Path) -> None:
    """1 GiB a GPU and 1 KiB a token: each of 8 groups of one GPU holds 1,048,576 tokens, all 8,388,608."""
    memory = {"gpu_memory_gib": 1, "weights_gib": 0, "layers": 1, "latent_dim": 512, "usable": 1}
    eight = load_profile("deepseek-v4-flash").model_copy(update={"replica_gpus": 8})
    eight.save(tmp_path / "eight.json")
    asked = scenario(
        profile=str(tmp_path / "eight.json"), policies=["mtp1"],
        replica={"kv_memory": memory | {"data_parallel": 8}},
        traffic={"arrivals": "poisson:0.001/s", "lengths": f"fixed:{prompt}/10"},
    )  # fmt: skip
    if fits:
        check_inputs(asked, asked.demand(), asked.parsed_sla())
    else:
        with pytest.raises(BadInputError, match="could never run in one of 8 groups"):
            plan(asked)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"traffic": {"arrivals": "poisson:12/s", "growth": ["100"]}}, r"growth: needs a percent sign"),
        ({"search": {"precision": "90%"}}, "precision: must be between"),
        ({"search": {"concurrency": [10, 10]}}, r"search\.concurrency.*twice"),
        ({"search": {"concurrency": [0]}}, r"search\.concurrency.*at least 1"),
        ({"fleet": {"router": "prefix-aware"}}, "needs a prefix cache"),
        ({"fleet": {"prefix_cache_tokens": 1000}}, "does not say which prefixes are common"),
        ({"replica": {"prefill_gpus": 2, "prefill": "chunked"}}, r"replica\.prefill_gpus.*no prefill pool"),
        ({"replica": {"prefill_tokens_per_s": 9000, "prefill": "whole"}}, "no prefill pool"),
        ({"replica": {"kv_tokens": 900}}, "could never run"),
        ({"traffic": {"arrivals": "poisson:12/s", "classes": {"a": {"acceptance": ["mpt"]}}}}, "mpt"),
        ({"policies": ["dspark@eagle"]}, "eagle"),
    ],
)  # fmt: skip
def test_every_input_is_checked_before_the_first_simulation(
    changes: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulated(*_: object, **__: object) -> None:
        raise AssertionError("the work began before the inputs were checked")

    monkeypatch.setattr("simulator.planning.plan.run_cells", simulated)
    with pytest.raises(BadInputError, match=message):
        plan(scenario(**changes))


def test_loads_above_the_replica_are_left_out_not_fatal() -> None:
    assert frontier_loads(scenario(replica={"concurrency": 16})) == [1, 16]
    assert frontier_loads(scenario(replica={"concurrency": 16}, search={"concurrency": [20, 50]})) == [16]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0,10,10", "5,10,10", "3,10,10"], "line 4.*back|back.*line 4"),
        (["0,10,10", "5,10,0"], "line 3"),
    ],
)
def test_bad_traces_are_named_by_line(tmp_path: Path, rows: list[str], message: str) -> None:
    (tmp_path / "trace.csv").write_text("\n".join(["arrival_s,prompt_tokens,output_tokens", *rows]))
    with pytest.raises(BadInputError, match=message):
        plan(scenario(traffic={"replay": "trace.csv"}), base=tmp_path)


def test_a_replica_is_what_the_profile_says_it_is() -> None:
    """Figure 8 counts requests per GPU, so V4's curves stand for one GPU; eight would be billed for one."""
    assert scenario().replica_gpus() == 1
    assert scenario(replica={"gpus": 1}).replica_gpus() == 1
    with pytest.raises(
        BadInputError, match=r"replica\.gpus: contradicts.*replica of 1 \(got 8\); write gpus: 1"
    ):
        plan(scenario(replica={"gpus": 8}))


def test_a_profile_that_does_not_say_leaves_it_to_the_scenario(tmp_path: Path) -> None:
    silent = load_profile("deepseek-v4-flash").model_copy(update={"replica_gpus": None})
    silent.save(tmp_path / "silent.json")
    loud = silent.model_copy(update={"replica_gpus": 8})
    loud.save(tmp_path / "loud.json")
    assert scenario(profile=str(tmp_path / "silent.json")).replica_gpus() == 1
    assert scenario(profile=str(tmp_path / "silent.json"), replica={"gpus": 4}).replica_gpus() == 4
    assert scenario(profile=str(tmp_path / "loud.json")).replica_gpus() == 8
    memory = {
        "gpu_memory_gib": 80,
        "weights_gib": 40,
        "usable": 1,
        "layers": 2,
        "kv_heads": 8,
        "head_dim": 128,
    }
    alone, eight = (
        scenario(
            profile=str(tmp_path / name), replica={"kv_memory": memory | {"usable": 1.0, "weights_gib": 40}}
        )
        for name in ("silent.json", "loud.json")
    )
    # 40 GiB are free on one GPU, 600 on eight, each of which holds one of the eight heads.
    assert alone.limits().kv_tokens == 40 * 2**30 // (2 * 2 * 8 * 128 * 2)
    assert eight.limits().kv_tokens == 600 * 2**30 // (2 * 2 * 8 * 128 * 2)


# --- plans --------------------------------------------------------------------------------------------------


def test_a_plan_adds_up_and_resumes(tmp_path: Path) -> None:
    sweeping = Sweeping(tmp_path / "cells")
    result = plan(scenario(), sweeping=sweeping)
    best = result.plans.set_index("policy").loc[result.recommended]
    demand = demand_profile(scenario().demand())
    peak = demand["rate_per_s"].max()
    assert peak == pytest.approx(135, rel=0.01)
    assert best["replicas"] == math.ceil(peak * 1.2 / best["rate_per_replica_per_s"])
    # 135 * 1.2 prompts of 100 tokens a second keep one worker of 20,000 tokens/s busy for 81% of the time.
    assert best["prefill_gpus"] == 1
    assert best["gpus"] == best["decode_gpus"] + 1 == best["replicas"] + 1
    assert best["gpu_hours"] == best["gpus"] * 24
    tokens = 90 * 86400 * share_at_rate(scenario().demand(), 1.0, 20_000, 0).output_tokens.mean()
    assert best["cost_per_million_output_tokens"] == pytest.approx(
        best["gpu_hours"] * 2 / tokens * 1e6, rel=0.01
    )
    assert best["cost_per_million_following_demand"] < best["cost_per_million_output_tokens"]
    assert result.recommended == "dspark-async"
    confirmed = result.confirmation
    assert confirmed.assessment.met
    assert confirmed.prefill_workers_simulated == 1
    assert [each.term for each in confirmed.assessment.terms] == list(result.sla.terms)
    assert "the SLA is attained" in confirmed.sentence

    changes = result.sensitivity.pivot(index="policy", columns="variant", values="change")
    assert (changes["acceptance +10%"] > changes["acceptance -10%"]).all()
    planned = result.plans.set_index("policy")["rate_per_replica_per_s"]["mtp1"]
    rates = result.sensitivity.pivot(index="variant", columns="policy", values="rate_per_replica_per_s")
    gains = result.sensitivity.pivot(index="variant", columns="policy", values="gain")
    expected = rates["dspark-async"] / rates["mtp1"].fillna(planned) - 1  # difficulty leaves MTP-1 as it is
    np.testing.assert_allclose(gains["dspark-async"], expected)
    assert gains["mtp1"].dropna().eq(0).all()
    assert rates["mtp1"].isna().sum() == len(DIFFICULTY)
    speeds = result.sensitivity.set_index(["policy", "variant"])["tps_p10"]
    assert speeds["dspark-async", "difficulty by request 0.6"] > 70, "75 was promised, to 5% of a rate"
    assert (changes["step time -10%"] > 0.05).all()
    assert (changes["step time +10%"] < -0.05).all()
    doubled = result.growth[result.growth["growth"] == 1.0].set_index("policy")["replicas"]
    assert doubled[result.recommended] == math.ceil(2 * peak * 1.2 / best["rate_per_replica_per_s"])
    assert result.day["policy"].isin(["mtp1", "dspark-async"]).all()
    assert len(result.frontier) == 6
    for table in (result.growth, result.sensitivity, result.cost.dropna()):
        assert (table["gpus"] == table["replicas"] + table["prefill_gpus"]).all()
        assert (table["prefill_gpus"] >= 1).all()
    slower = result.sensitivity[result.sensitivity["variant"] == "prefill speed -10%"]
    assert (slower["prefill_gpus"] == 1).all(), "81% / 0.9 is 90% of the time"
    day = result.day
    assert (day["gpus mtp1"] == day["replicas mtp1"] + day["prefill_gpus"]).all()
    # One answer: at the SLA's own bound the chart shows the plan's cost.
    for policy, row in result.plans.set_index("policy").iterrows():
        here = result.cost[(result.cost["policy"] == policy) & np.isclose(result.cost["bound"], 75)]
        for name in ("replicas", "cost_per_million_output_tokens"):
            assert here[name].iloc[0] == row[name]
        assert here["rate_per_replica_per_s"].iloc[0] == pytest.approx(row["rate_per_replica_per_s"])
    costs = result.cost[result.cost["policy"] == "mtp1"].sort_values("bound")["replicas"].dropna()
    assert costs.is_monotonic_increasing

    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.parquet")}
    again = plan(scenario(), sweeping=sweeping)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cells").rglob("*.parquet")} == cells
    assert again.plans.equals(result.plans)
    with pytest.raises(BadInputError, match="holds another sweep"):
        plan(scenario(sla=["tps_p10>=80"]), sweeping=sweeping)

    write_tables(result, tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["answer"] == result.answer
    assert written["recommended"] == result.recommended
    assert {each["term"] for each in written["terms"]} == {"tps_p10>=75", "ttft_p95<=1s"}
    assert (tmp_path / "plans.csv").read_text().startswith("policy,")
    assert (tmp_path / "plan.json").exists()


def test_policies_and_precision_may_be_added_to_a_plan_nothing_else() -> None:
    """One study is one directory: ``run_cells`` takes further cells of the same study only."""

    def study(**changes: object) -> str:
        asked = scenario(**changes)
        (server, *_) = servers_of(asked, asked.demand(), asked.parsed_sla())
        return content_hash(study_of(asked, server))

    own = study()
    assert study(policies=["fixed:2", "mtp1"]) == own
    assert study(search={"precision": "1%", "requests": 900}) == own
    others = [
        study(sla=["tps_p10>=80"]), study(replica={"concurrency": 8}), study(search={"seed": 1}),
        study(profile="deepseek-v4-pro"), study(acceptance=["dspark=qwen3-4b/dspark/chat"]),
        study(traffic={"arrivals": "poisson:4/s", "lengths": "fixed:100/30"}),
    ]  # fmt: skip
    assert len({own, *others}) == len(others) + 1


def test_without_a_prefill_speed_no_cost_is_stated_only_what_is_missing() -> None:
    result = plan(scenario(replica={"concurrency": 20}, policies=["mtp1"], search=QUICK))
    row = result.plans.iloc[0]
    assert row["decode_gpus"] == row["replicas"] >= 1
    for table in (result.plans, result.sensitivity, result.cost, result.growth, result.frontier):
        priced = [name for name in table if name in ("gpus", "gpu_hours") or name.startswith("cost_per")]
        assert priced
        assert table[priced].isna().all(axis=None)
    assert result.day["gpus mtp1"].isna().all()
    assert "no cost is stated" in result.warnings[0]
    for remedy in ("replica.prefill_tokens_per_s", "profile", "chunked"):
        assert remedy in result.warnings[0]


def test_a_plan_says_that_a_term_promises_to_few() -> None:
    result = plan(scenario(sla=["tps_p90>=20"], policies=["mtp1"], search=QUICK))
    few = [
        each
        for each in result.warnings
        if each.startswith("tps_p90>=20 promises to 10% of the requests only")
    ]
    assert len(few) == 1
    assert few[0].endswith("write tps_p10>=20")


def test_prefill_on_the_replicas_needs_no_pool() -> None:
    result = plan(
        scenario(replica={"concurrency": 20, "prefill": "chunked"}, policies=["mtp1"], search=QUICK)
    )
    row = result.plans.iloc[0]
    assert row["prefill_gpus"] == 0
    assert row["gpus"] == row["decode_gpus"] == row["replicas"]
    assert row["cost_per_million_output_tokens"] > 0


def test_long_prompts_are_paid_for() -> None:
    """40/s of 12,000 tokens are 480,000 tokens/s, 576,000 with 20% headroom: 89 workers of 6,500 at least.

    Decoding 300 tokens each takes two replicas; prefill is nearly all of the money.
    """
    long = scenario(
        policies=["mtp1"],
        traffic={"arrivals": "poisson:40/s", "lengths": "fixed:12000/300"},
        sla=["tps_mean>=40", "ttft_p99<=4s"],
        replica={"concurrency": 40, "prefill_tokens_per_s": 6500, "prefill_gpus": 2},
        search={"requests": 400, "precision": "10%", "concurrency": [1]},
    )
    row = plan(long).plans.iloc[0]
    assert 89 <= row["prefill_workers"] <= 96
    assert row["prefill_gpus"] == 2 * row["prefill_workers"]
    assert row["gpus"] == row["decode_gpus"] + row["prefill_gpus"]
    expected = row["gpus"] * 2.0 / (40 * 300 * 3600 / 1e6)
    assert row["cost_per_million_output_tokens"] == pytest.approx(expected, rel=1e-6)


def test_the_order_of_classes_in_the_file_changes_nothing() -> None:
    classes = {
        "long": {"lengths": "fixed:50/80", "share": 0.3, "acceptance": ["length:2@5"]},
        "short": {"lengths": "fixed:50/20", "share": 0.7, "acceptance": ["length:4@5"]},
    }
    given: dict[str, object] = {"policies": ["fixed:5"], "replica": {"concurrency": 10}, "search": QUICK}
    one, other = (
        plan(scenario(traffic={"arrivals": "poisson:60/s", "classes": dict(items)}, **given))
        for items in (classes.items(), reversed(list(classes.items())))
    )
    for name, table in one.tables().items():
        assert table.equals(other.tables()[name]), name


def test_the_frontier_has_the_mix_the_limits_and_the_money_of_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20 requests of 100 + 100 + 5 tokens fill the KV cache; the rest waits, and throughput stays."""
    monkeypatch.setattr("simulator.planning.plan.GRID", (0.4, 1.0, 1.25))
    classes = {
        "poor": {"lengths": "fixed:100/100", "acceptance": ["length:1.5@5"]},
        "rich": {"lengths": "fixed:100/100", "acceptance": ["length:4.5@5"]},
    }
    limited = scenario(
        policies=["fixed:5"],
        traffic={"arrivals": "poisson:60/s", "classes": classes},
        replica={"concurrency": 80, "kv_tokens": 20 * 205, "prefill_tokens_per_s": 20_000},
        search=QUICK | {"precision": "50%", "concurrency": [5, 20, 40, 80]},
    )
    result = plan(limited)
    frontier = result.frontier.set_index("concurrency")
    assert frontier.loc[40, "concurrency_mean"] <= 20
    assert frontier.loc[80, "throughput_tok_per_s"] == pytest.approx(
        frontier.loc[20, "throughput_tok_per_s"], rel=0.05
    )
    # Half of the requests commit 1.5 tokens a step and take three times as many steps as the others:
    # 100 decoded tokens take 66 and 22 steps, so a step commits 200 / 88.
    assert frontier["accepted_length_mean"].to_numpy() == pytest.approx(
        2 * 99 / (99 / 1.5 + 99 / 4.5), rel=0.1
    )
    replicas = np.ceil(60 * 1.2 / (frontier["throughput_tok_per_s"] / 99))
    gpus = replicas + result.plans["prefill_gpus"].iloc[0]
    cost = gpus * 2.0 / (60 * 100 * 3600 / 1e6)
    assert frontier["cost_per_million_output_tokens"].to_numpy() == pytest.approx(cost.to_numpy(), rel=1e-6)


def test_the_plan_shows_the_load_that_will_be_run_and_the_limit_beside_it() -> None:
    """A mean is part of what is attained; where nothing is promised to each request no share is shown."""
    result = plan(scenario(policies=["mtp1"], sla=["tps_mean>=80"], search=QUICK))
    row = result.plans.iloc[0]
    assert row["rate_at_peak_per_s"] == pytest.approx(135 / row["replicas"], rel=0.01)
    assert row["rate_at_peak_per_s"] < row["rate_per_replica_per_s"]
    assert row["tps_mean_at_peak"] > row["tps_mean_at_limit"] >= 80
    assert row["tps_p10_at_peak"] < row["tps_mean_at_peak"]
    assert row["attained_at_peak"]
    assert row["attained_at_limit"]
    assert np.isnan(row["kept_share_at_peak"])
    run, limit = result.terms.to_dict("records")
    assert (run["load"], limit["load"]) == ("run", "limit")
    assert (run["term"], run["asked"], run["holds"]) == ("tps_mean>=80", 80, True)
    # The term's mean is over the judged requests, the metric's over the steps after warm-up: two windows.
    assert run["attained"] == pytest.approx(row["tps_mean_at_peak"], rel=0.03)
    assert run["attained"] > limit["attained"] >= 80
    assert run["attained_ci95"] > 0
    assert run["rate_per_s"] == row["rate_at_peak_per_s"]
    assert limit["rate_per_s"] == row["rate_per_replica_per_s"]


def test_a_first_token_that_no_pool_can_keep_is_infeasible_before_any_simulation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulator.planning.plan.run_cells", None)
    with pytest.raises(InfeasibleError, match=r"no prefill pool keeps ttft_p95<=1ms.*nearest.*ttft_p95<=5ms"):
        plan(scenario(sla=["ttft_p95<=1ms"]))


def test_infeasible_names_the_nearest_feasible_sla() -> None:
    with pytest.raises(InfeasibleError, match=r"nearest feasible SLA is tps_p10>=(\d+)") as caught:
        plan(scenario(sla=["tps_p10>=900"], policies=["mtp1"], replica={"concurrency": 20}, search=QUICK))
    assert caught.value.exit_code == 1
    nearest = str(caught.value).split("nearest feasible SLA is ")[1].split(" ")[0]
    asked = scenario(sla=[nearest], policies=["mtp1"], replica={"concurrency": 20}, search=QUICK)
    (server,) = servers_of(asked, asked.demand(), asked.parsed_sla())
    assert find_rate(Search(server, 0.2, replications=2)).feasible


def test_too_many_replicas_is_infeasible() -> None:
    message = r"more than the 1 replicas allowed; the fewest is (\d+) \(mtp1\).*nearest.*max_replicas: \1"
    with pytest.raises(InfeasibleError, match=message) as caught:
        plan(
            scenario(
                fleet={"max_replicas": 1}, policies=["mtp1"], search={"requests": 200, "precision": "20%"}
            )
        )
    assert caught.value.binds == ("fleet.max_replicas: 1",)
    assert re.fullmatch(r"fleet.max_replicas: \d+ instead of 1 \(mtp1\)", caught.value.changes[0])


@pytest.mark.slow
def test_the_mooncake_hour_is_planned() -> None:
    if not MOONCAKE.exists():
        pytest.skip("the Mooncake sample is not here; it is not ours to ship")
    traffic = parse_traffic(str(MOONCAKE))
    assert isinstance(traffic, ReplayTraffic)
    assert len(traffic.recorded) == 12_031
    # Prompts have 12,035 tokens on average and 126,195 at most: at 20,000 tokens/s, 6.3 s of prefill.
    promised = ["tps_p10>=75", "ttft_p95<=5s"]
    result = plan(scenario(traffic={"replay": str(MOONCAKE)}, sla=promised), sweeping=Sweeping(workers=2))
    assert result.plans["feasible"].all()
    assert result.plans.set_index("policy").loc["dspark-async", "rate_per_replica_per_s"] > 3.4
