"""A recorded engine, decided again: it agrees where nothing differs, and each difference is named.

The engine of these tests is written out below, apart from the product's: the paper's objective in floats,
budgets of two steps before, allocation of now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import simulator
from simulator.core.errors import BadInputError
from simulator.cost.believed import BelievedTable
from simulator.dumps.outcomes import bounds, replay
from simulator.dumps.redecide import decide_again, explain
from simulator.dumps.steps import Recording, load_recording
from simulator.schedulers.engines.sglang import SGLang
from simulator.schedulers.parse import parse_policy
from tests.support.command_line import run

GAMMA = 4
TOKENS, STEP_S = [1, 5, 9, 17, 25, 33], [0.010, 0.0103, 0.0115, 0.0160, 0.0230, 0.0320]
TABLE = BelievedTable(0.0, [1.0], [0.0], TOKENS, STEP_S)
FILE = {"bias_seconds": 0.001, "bs_probes": [1], "alpha_seconds": [0.0], "m_probes": TOKENS,
        "theta_seconds": [round(s - 0.001, 6) for s in STEP_S]}  # fmt: skip


@dataclass
class Recorder:
    """An engine that writes what it did. Requests stay for a while, then others take their slots."""

    mode: str = "cap-accept"
    lag: int = 2
    fill: tuple[int, ...] = ()
    lookup: str = "linear"
    verify_all: bool = False
    stretch: float = 1.0
    seed: int = 0
    records: list[dict[str, Any]] = field(default_factory=list)
    truth: list[NDArray[np.int64]] = field(default_factory=list)

    def time_s(self, rows: int) -> float:
        if self.lookup == "floor":
            return STEP_S[max(np.searchsorted(TOKENS, rows, side="right") - 1, 0)]
        return float(np.interp(rows, TOKENS, STEP_S))

    def budget(self, survival: NDArray[np.float64]) -> int:
        ordered = np.sort(survival.ravel())[::-1]
        count = len(survival)
        theta = [(count + ordered[:k].sum()) / self.time_s(count + k) for k in range(ordered.size + 1)]
        chosen = int(np.argmax(theta))
        graph = next((size for size in self.fill if size >= count + chosen), count + chosen)
        return min(graph, count * (GAMMA + 1)) - count

    def run(self, steps: int = 30) -> dict[str, Any]:
        draw = np.random.default_rng(self.seed)
        slots: dict[int, tuple[str, int]] = {}
        past: list[dict[str, NDArray[np.float64]]] = []
        for step in range(steps):
            for slot in range(5):
                if slot not in slots or draw.random() < 0.1:
                    slots[slot] = (f"r{step}-{slot}", 50)
            survival = np.cumprod(draw.beta(4, 1.2, (5, GAMMA)).astype(np.float32), axis=1, dtype=np.float32)
            names = [slots[slot][0] for slot in range(5)]
            before = past[step - self.lag] if step >= self.lag else {}
            budget = self.budget(np.array([before.get(name, np.ones(GAMMA)) for name in names]))
            past.append(dict(zip(names, survival.astype(np.float64), strict=True)))
            order = sorted(
                ((r, k) for r in range(5) for k in range(GAMMA)), key=lambda rk: (-survival[rk], rk[1], rk[0])
            )
            lengths = np.bincount([r for r, _ in order[:budget]], minlength=5)
            if self.verify_all:
                lengths = np.full(5, GAMMA)
            confidence = np.concatenate([survival[:, :1], survival[:, 1:] / survival[:, :-1]], axis=1)
            full = np.array([_accepted(row, draw) for row in confidence])
            self.truth.append(full)
            requests = []
            for slot in range(5):
                correct = int(min(full[slot], lengths[slot]))
                name, prefix = slots[slot]
                requests.append({
                    "req_pool_index": slot, "rid": name, "prefix_len": prefix,
                    "verify_len": int(lengths[slot]) + 1, "acc_len": correct + 1, "correct_drafts": correct,
                    "cap_trim": int(full[slot]) - correct if self.mode == "cap-accept" else 0,
                    "survival": [float(x) for x in survival[slot]],
                })  # fmt: skip
                slots[slot] = (name, prefix + correct + 1)
            rows = 5 + int(lengths.sum())
            graph = next((size for size in self.fill if size >= rows), rows)
            self.records.append({
                "forward_ct": 100 + step, "bs": 5, "budget": int(lengths.sum()), "reqs": requests,
                **({"verify_tokens_graph_key": graph} if self.fill else {}),
                "predicted_step_ms": 1000 * self.stretch * self.time_s(rows),
            })  # fmt: skip
        return {"mode": self.mode, "gamma": GAMMA, "records": self.records}


def _accepted(confidence: NDArray[np.float32], draw: np.random.Generator) -> int:
    return next((k for k in range(GAMMA) if draw.random() > confidence[k]), GAMMA)


def recording_of(path: Path, *records: dict[str, Any]) -> Recording:
    path.write_text(json.dumps({"internal_states": [{"dspark_info_record": record} for record in records]}))
    return load_recording(path)


def written_dump(path: Path) -> Path:
    """A dump of a few steps, for tests of what reads files."""
    path.write_text(json.dumps(Recorder().run(12)))
    return path


@pytest.mark.parametrize("mode", ["cap-accept", "compact"])
def test_the_same_policy_and_table_agree_in_every_step(tmp_path: Path, mode: str) -> None:
    recording = recording_of(tmp_path / "dump.json", Recorder(mode).run())
    decided = decide_again(recording, SGLang(), TABLE)
    assert len(decided) == 28  # the first two have no step two before
    assert not any(each.differs for each in decided)
    drafts = [int(each.lengths.sum()) for each in decided]
    assert 5 < np.mean(drafts) < 15  # neither none nor all


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        (Recorder(lag=1), "the engine's budget is 1 step old"),
        (Recorder(lag=3), "the engine's budget is 3 steps old"),
        (Recorder(fill=(10, 20, 25)), "the engine filled its graph"),
        (Recorder(lookup="floor"), "the engine looks its table up at or below"),
        (Recorder(verify_all=True), "the engine verified every draft: no table, or a flat one"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_difference_is_explained_by_what_made_it(tmp_path: Path, engine: Recorder, reason: str) -> None:
    recording = recording_of(tmp_path / "dump.json", engine.run(60))
    found = explain(recording, SGLang(), TABLE, decide_again(recording, SGLang(), TABLE))
    assert found.count(reason) > 0.3 * len(found)
    assert found.count(reason) + found.count("agrees") >= len(found) - 1  # a first step may not reach back 3


def test_another_table_is_told_by_the_time_that_the_engine_predicted(tmp_path: Path) -> None:
    """The engine's table is 20% slower; the table given here has a riser elsewhere."""
    recording = recording_of(tmp_path / "dump.json", Recorder(stretch=1.2).run())
    other = BelievedTable(0.0, [1.0], [0.0], [1, 8, 9, 33], [0.010, 0.010, 0.03, 0.04])
    found = explain(recording, SGLang(), other, decide_again(recording, SGLang(), other))
    assert set(found) == {"another table: the engine predicted another step time for its rows"}


def test_ranks_fill_the_graph_of_the_largest(tmp_path: Path) -> None:
    """Two ranks that decide apart; with 25 rows captured alone, both are filled to all their drafts."""
    recording = recording_of(tmp_path / "dump.json", Recorder(seed=1).run(), Recorder(seed=2).run())
    apart = decide_again(recording, SGLang(tiers=(10, 12, 14, 16, 20, 25)), TABLE)
    filled = decide_again(recording, SGLang(tiers=(10, 12, 14, 16, 20, 25), reinflate=True), TABLE)
    rows: dict[int, set[int]] = {}
    for each in filled:
        rows.setdefault(each.step.forward_ct, set()).add(5 + int(each.lengths.sum()))
    assert all(len(sizes) == 1 for sizes in rows.values())
    largest: dict[int, int] = {}
    for each in apart:
        mine = 5 + int(each.lengths.sum())
        largest[each.step.forward_ct] = max(mine, largest.get(each.step.forward_ct, 0))
    for step, sizes in rows.items():
        assert sizes == {next(tier for tier in (10, 12, 14, 16, 20, 25) if tier >= largest[step])}


@pytest.mark.parametrize("policy", ["trtllm", "fixed:3", "dspark", "sglang:lag=1"])
def test_bounds_hold_the_truth_and_are_exact_where_nothing_is_censored(tmp_path: Path, policy: str) -> None:
    """The truth of each block is known to the test, to the dump only in cap-accept mode."""
    scheduler = parse_policy(policy).scheduler
    wide = 0
    for mode in ("cap-accept", "compact"):
        engine = Recorder(mode)
        recording = recording_of(tmp_path / f"{mode}.json", engine.run())
        for each in decide_again(recording, scheduler, TABLE):
            index = each.step.forward_ct - 100
            truth = 5 + int(np.minimum(each.lengths, engine.truth[index]).sum())
            least, most = bounds(each.step, each.lengths)
            assert least <= truth <= most
            if mode == "cap-accept":
                assert least == most
            wide += most - least
            recorded = bounds(each.step, each.step.lengths)
            assert (
                recorded[0]
                == recorded[1]
                == 5 + int(np.minimum(each.step.lengths, engine.truth[index]).sum())
            )
    assert wide > 0


def test_policies_and_tables_are_set_beside_the_engine(tmp_path: Path) -> None:
    recording = recording_of(tmp_path / "dump.json", Recorder("compact").run())
    flat = BelievedTable(0.0, [1.0], [0.0], [1, 2], [0.01, 0.01])
    policies = [parse_policy(text) for text in ("sglang", "fixed:0")]
    found = replay(recording, policies, [("own", TABLE), ("flat", flat)])
    table = found.policies.set_index(["policy", "table"])
    assert found.differing == 0
    assert table.loc[("sglang", "own"), "gain_least"] == table.loc[("sglang", "own"), "gain_most"] == 0
    assert table.loc[("sglang", "flat"), "verification_budget_mean"] == GAMMA + 1
    assert table.loc[("sglang", "flat"), "gain_most"] > table.loc[("sglang", "flat"), "gain_least"]
    none = table.loc[("fixed:0", "own")]
    assert (
        none["throughput_least_tok_per_s"] == none["throughput_most_tok_per_s"] == pytest.approx(5 / 0.0103)
    )
    assert found.recorded_steps == 30
    assert "28 of 30 recorded steps" in found.summary()
    assert "agrees" in found.summary()


def test_a_slot_that_another_request_took_over_is_new(tmp_path: Path) -> None:
    """By slot alone: a prefix that falls is another request, and its past counts as certain."""

    def request(prefix: int, first: float) -> dict[str, Any]:
        return {"req_pool_index": 3, "prefix_len": prefix, "verify_len": 1, "acc_len": 1, "correct_drafts": 0,
                "cap_trim": 0, "confidence": [first, 0.5]}  # fmt: skip

    steps = [{"forward_ct": n, "reqs": [each]} for n, each in
             enumerate((request(50, 0.9), request(52, 0.8), request(20, 0.7), request(21, 0.6)))]  # fmt: skip
    recording = recording_of(tmp_path / "dump.json", {"mode": "compact", "gamma": 2, "records": steps})
    assert [step.identity.tolist() for step in recording.ranks[0]] == [[0], [0], [1], [1]]
    assert recording.lagged(0, 1, 1) is not None
    np.testing.assert_allclose(recording.lagged(0, 1, 1), [[0.9, 0.45]])  # type: ignore[arg-type]
    np.testing.assert_allclose(recording.lagged(0, 2, 1), [[1, 1]])  # type: ignore[arg-type]
    assert recording.lagged(0, 0, 1) is None


def test_what_cannot_be_decided_is_refused(tmp_path: Path) -> None:
    bare = Recorder().run(4)
    for step in bare["records"]:
        for request in step["reqs"]:
            del request["survival"]
    with pytest.raises(BadInputError, match="no step with the confidences of all its requests"):
        recording_of(tmp_path / "bare.json", bare)
    recording = recording_of(tmp_path / "short.json", Recorder().run(2))
    with pytest.raises(BadInputError, match="holds no step that all policies can decide"):
        replay(recording, [parse_policy("sglang")], [("own", TABLE)])
    with pytest.raises(BadInputError, match="cannot be asked of a dump"):
        decide_again(recording, parse_policy("oracle").scheduler, TABLE)
    rising = Recorder().run(3)
    rising["records"][1]["reqs"][0]["survival"] = [0.5, 0.6, 0.1, 0.1]
    with pytest.raises(BadInputError, match="must not rise along a block"):
        recording_of(tmp_path / "rising.json", rising)


def test_a_dump_s_own_times_are_a_table(tmp_path: Path) -> None:
    """The engine predicted by its table, so its points are found again, and most decisions with them."""
    path = tmp_path / "dump.json"
    recording = recording_of(path, Recorder().run(200))
    table = recording.own_table()
    for rows in table.theta.at:
        assert table.step_time_s(5, int(rows)) == pytest.approx(np.interp(rows, TOKENS, STEP_S))
    found = simulator.replay(path)
    assert found.policies["table"].iloc[1] == "the dump's own times"
    assert found.differing < 0.1
    untimed = Recorder().run(5)
    for step in untimed["records"]:
        del step["predicted_step_ms"]
    with pytest.raises(BadInputError, match="no step times of two sizes to read a table out of"):
        recording_of(path, untimed).own_table()
    for number, step in enumerate(untimed["records"]):
        step["step_gpu_ms"] = 5.0 + number
    assert recording_of(path, untimed).own_table().lowest_s == pytest.approx(0.005, abs=0.004)


def test_the_command_writes_tables_and_says_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump, table = tmp_path / "dump.json", tmp_path / "table.json"
    dump.write_text(json.dumps(Recorder(lag=1).run()))
    table.write_text(json.dumps(FILE))
    words = ("--table", table, "--policy", "sglang", "--policy", "trtllm")
    assert run("replay", dump, *words, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "the engine's budget is 1 step old" in said
    assert "trtllm on" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "decisions.csv", "reasons.csv", "policies.csv", "replay.json", "report.md"
    }  # fmt: skip
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| the engine's budget is 1 step old |" in report
    assert report.count("\n| sglang | ") == report.count("\n| trtllm | ") == 1
    assert run("replay", dump, *words, "--policy", "trtllm", "--out", tmp_path / "out") == 2
