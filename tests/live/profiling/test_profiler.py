"""The profiler on a tiny pair: cells, resumption, refusals, and the profile that comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.deployment.profile import load_profile
from simulator.live.device import OutOfMemoryError
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.graphs import Captured
from simulator.live.models import sampling
from simulator.live.models.pairs import load_draft, new_dspark, new_mtp, save_draft
from simulator.live.profiling import profile_fit, profiler
from simulator.live.profiling.bench import Bench, judge_sample
from simulator.live.profiling.cells import CellLog, MeasuredCell, Measurement, Repeats, measure
from simulator.live.profiling.device_ceilings import measure_ceilings
from simulator.live.profiling.grid import Grid, ProfileOptions
from simulator.live.profiling.profile_fit import profile_from, schedule_s, settings_of
from simulator.live.profiling.profiler import Profiler
from tests.live.conftest import MakeTarget
from tests.support import modelled_device as modelled
from tests.support.command_line import run as command_line
from tests.support.modelled_device import DECISION_S, STAGE_S, draft_s, modelled_device, target_s

GRID = Grid(requests=(1, 2, 4), drafts=(0, 2, 4), context=(16, 64), prefill=(8, 32), policies=("dspark",))
OPTIONS = ProfileOptions(grid=GRID, repeats=Repeats(0.02, least=3, most=30, warmup=0))


@pytest.fixture(autouse=True)
def _modelled() -> Iterator[None]:
    """No shared core is quiet enough for exact numbers."""
    with modelled_device():
        yield


@pytest.fixture(scope="module")
def pair(make_target: MakeTarget) -> Any:
    target = make_target(hidden_size=64, num_hidden_layers=2, vocab_size=512)
    dspark = new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=8)
    return target, {"dspark": dspark, "mtp1": new_mtp(target)}


def new_log(pair: Any, path: Path, options: ProfileOptions = OPTIONS) -> CellLog:
    return CellLog(path, settings_of(*pair, options))


def run(pair: Any, log: CellLog, told: list[str]) -> float:
    return Profiler(*pair, log, OPTIONS, told.append).run()


def test_a_profile_is_measured_resumed_and_fitted(pair: Any, tmp_path: Path) -> None:
    log, told = new_log(pair, tmp_path / "cells.jsonl"), list[str]()
    drift = run(pair, log, told)
    assert len(log.of("step")) == 3 * 3 * 2
    assert set(log.of("draft")["name"]) == {"dspark", "mtp1"}
    assert len(told) == len(log.cells)
    whole = (tmp_path / "cells.jsonl").read_text()
    lines = whole.splitlines()
    # Interrupted in the middle of a line: that cell alone and those behind it are measured again.
    (tmp_path / "cells.jsonl").write_text("\n".join(lines[:30]) + "\n" + lines[30][:20])
    again = new_log(pair, tmp_path / "cells.jsonl")
    assert again.resumed == 29
    told.clear()
    run(pair, again, told)
    assert len(told) == len(log.cells) - 29
    assert again.disagreement() == 0
    assert (tmp_path / "cells.jsonl").read_text().splitlines()[:30] == lines[:30]
    result = profile_from(again, *pair, OPTIONS, drift)
    path = tmp_path / "profile.json"
    result.profile.save(path)
    loaded = load_profile(path)
    assert loaded.provenance.kind == "measured"
    assert loaded.provenance.software["dtype"] == "float32"
    for name, drafter in pair[1].items():
        assert loaded.provenance.software[f"draft:{name}"] == drafter.digest
    for requests, tokens in ((1, 3), (2, 6), (4, 20)):
        expected = target_s(requests, tokens, 64)
        assert loaded.target_cost().step_time_s(requests, tokens, 64 * requests) == pytest.approx(
            expected, rel=0.02
        )
    draft = loaded.draft_cost("dspark")
    assert draft is not None
    assert draft.structure == "semi-autoregressive"
    for requests in (1, 4):
        assert draft.time_s(requests) == pytest.approx(draft_s(requests) + 4 * STAGE_S, rel=0.05)
    assert schedule_s(again, "dspark") == pytest.approx(DECISION_S, rel=0.5)
    assert schedule_s(again, "fixed:3") == 0
    ceilings = measure_ceilings(pair[0].device, pair[0].dtype, copy_bytes=2**20, matmul_size=64)
    table = profile_fit.efficiency(again, pair[0], ceilings.bytes_per_s, ceilings.flop_per_s)
    assert (table.to_numpy() > 0).all()


@pytest.mark.parametrize(("row_s", "warned"), [(0.0, True), (5e-5, False)])
def test_the_command_says_what_misleads_a_scheduler(
    pair: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    row_s: float,
    warned: bool,
) -> None:
    """Requests cost time and rows none: the curve is not flat, but no scheduler could trim by it."""
    monkeypatch.setattr(modelled, "target_s", lambda requests, rows, _: 2e-3 + 5e-4 * requests + row_s * rows)
    monkeypatch.setattr("simulator.live.models.pairs.load_pair", lambda *_: pair)
    code = command_line(
        "profile", "--target", "tiny", "--requests", "1,2,4", "--drafts", "0,2,4", "--context", 16,
        "--prefill", "8,32", "--policies", "none", "--repeats", 12, "--confidence", 0.05, "--device", "cpu",
        "--out", tmp_path,
    )  # fmt: skip
    assert code == 0
    printed = capsys.readouterr()
    assert "additive fit: held-out error" in printed.out
    assert ("warning: step time varies by 0.0% over all batch tokens" in printed.err) == warned
    assert ("can never trim" in printed.err) == warned


def test_of_several_rounds_the_median_counts(tmp_path: Path) -> None:
    log = CellLog(tmp_path / "cells.jsonl", {})
    for number, slow in enumerate((1.0, 3.0, 1.2)):
        for tokens in (1, 5):
            value = slow * tokens * 1e-3
            log.add(MeasuredCell("step", "", 1, tokens, 16, value, value, 0.0, 9, 0, (1.0,), number))
    cells = CellLog(tmp_path / "cells.jsonl", {}).of("step")
    assert cells["batch_tokens"].tolist() == [1, 5]
    assert cells["seconds"].tolist() == pytest.approx([1.2e-3, 6e-3])
    assert log.disagreement() == pytest.approx(2.0 / 1.2)


def test_cells_of_other_settings_are_not_continued(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    new_log(pair, path)
    other = ProfileOptions(grid=Grid(requests=(1, 2), drafts=(0, 1)), attention="plain")
    with pytest.raises(BadInputError, match="another grid, attention"):
        new_log(pair, path, other)
    path.write_text("nonsense\n")
    with pytest.raises(BadInputError, match="not a cell log"):
        new_log(pair, path)


def test_cells_of_another_draft_are_not_continued(pair: Any, tmp_path: Path) -> None:
    target, drafters = pair
    path, folder = tmp_path / "cells.jsonl", tmp_path / "draft"
    new_log(pair, path)

    def draft(**fields: Any) -> Any:
        settings: Any = {"mask_token_id": 5, "block_size": 4, "num_layers": 1, "markov_rank": 8}
        return new_dspark(target, **(settings | fields))

    # Weights of another seed, another shape, and a config that changes no weight: all of the same block size.
    others: list[Any] = [{"dspark": draft(**fields)} for fields in ({"seed": 1}, {"num_layers": 2})]
    others += [{"dspark": draft(mask_token_id=6)}, {"mtp1": new_mtp(target, seed=1)}]
    for other in others:
        with pytest.raises(BadInputError, match="another drafters"):
            new_log((target, drafters | other), path)
    # The same draft, made again or read from a folder, is the same draft.
    new_log((target, drafters | {"dspark": draft()}), path)
    save_draft(drafters["dspark"], folder)
    new_log((target, drafters | {"dspark": load_draft(folder)}), path)


def test_the_digest_of_a_draft_follows_its_weights(pair: Any) -> None:
    draft = new_mtp(pair[0])
    before = draft.digest
    with torch.no_grad():
        draft.norm.weight.mul_(2)
    after = draft.digest
    assert before == new_mtp(pair[0]).digest != after


@pytest.mark.parametrize(
    "content", [b"", b"nonsense\n", b"[1]\n", b'{"a": 1}\n', b'{"settings": null}\n', b"\xff\xfe\n"]
)
def test_a_file_that_is_no_cell_log_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cells.jsonl"
    path.write_bytes(content)
    for read in (CellLog.read, lambda path: CellLog(path, {})):
        with pytest.raises(BadInputError, match=r"cells\.jsonl: "):
            read(path)
    with pytest.raises(BadInputError, match=r"gone\.jsonl: no such file"):
        CellLog.read(tmp_path / "gone.jsonl")


def steps(log: CellLog, seconds: dict[tuple[int, int], float]) -> None:
    for (requests, tokens), value in seconds.items():
        log.add(MeasuredCell("step", "", requests, tokens, 16 * requests, value, value, 0.0, 9, 0, (1.0,)))


def known_cells(log: CellLog) -> None:
    """Exact cells of a device whose every cost is known, in seconds."""

    def add(kind: str, name: str, requests: int, tokens: int, context: int, seconds: float) -> None:
        log.add(
            MeasuredCell(kind, name, requests, tokens, context, seconds, seconds, 0.0, 9, 0, (0.8, 1.0, 1.2))
        )

    for context in (16, 64):
        for r in (1, 2, 4):
            total = r * context
            for b in (r, 3 * r, 5 * r):
                add("step", "", r, b, total, bare_s(r, b, total) + 3e-4)
            add("draft", "dspark", r, 0, total, 1e-3 + 5e-5 * r + 2e-7 * total)
            add("draft", "mtp1", r, 0, total, 4e-4 + 1e-7 * total)
    for r in (1, 2, 4):
        add("bare", "none", r, r, 16 * r, bare_s(r, r, 16 * r))
        add("idle", "mtp1", r, r, 16 * r, bare_s(r, r, 16 * r) + 1e-4)
        add("head", "dspark", r, 0, 0, 4 * 2e-5)
    for n in (8, 32):
        add("prefill", "dspark", 1, n, 0, bare_s(0, n, 0) + 1e-5 * n)


def bare_s(requests: int, tokens: int, context: int) -> float:
    return 5e-3 + 1e-4 * requests + 2e-5 * tokens + 1e-7 * context


def test_a_profile_gives_back_the_costs_it_was_made_from(pair: Any, tmp_path: Path) -> None:
    log = new_log(pair, tmp_path / "cells.jsonl")
    known_cells(log)
    profile = profile_from(log, *pair, OPTIONS, 0.0).profile
    step = profile.target_cost()
    for requests, tokens, context in ((1, 1, 16), (2, 6, 100), (4, 20, 256)):
        assert step.step_time_s(requests, tokens, context) == pytest.approx(bare_s(requests, tokens, context))
    dspark, mtp1 = profile.draft_cost("dspark"), profile.draft_cost("mtp1")
    assert dspark is not None
    assert mtp1 is not None
    # What a drafter adds to the target's own step is part of its price.
    assert dspark.time_s(2, context_tokens=100) == pytest.approx(1e-3 + 1e-4 + 2e-5 + 3e-4)
    assert mtp1.time_s(2, context_tokens=100) == pytest.approx(4e-4 + 1e-5 + 1e-4)
    assert step.step_time_s(0, 32, 0.0, 32) == pytest.approx(bare_s(0, 32, 0) + 32e-5, rel=0.02)
    assert profile.jitter is not None
    assert (min(profile.jitter), np.mean(profile.jitter), max(profile.jitter)) == pytest.approx((0.8, 1, 1.2))


def test_a_step_shorter_than_its_drafters_price_is_left_out(pair: Any, tmp_path: Path) -> None:
    """A busy machine can make the price that large; the rest is a profile all the same."""
    log = new_log(pair, tmp_path / "cells.jsonl")
    known_cells(log)
    log.add(MeasuredCell("step", "", 2, 6, 512, 2e-4, 2e-4, 0.0, 9, 0, (1.0,)))  # the price is 3e-4
    profile = profile_from(log, *pair, OPTIONS, 0.0).profile
    assert profile.target_cost().step_time_s(2, 6, 100) == pytest.approx(bare_s(2, 6, 100))
    assert "; 1 step(s) left out: shorter than what a drafter" in str(profile.provenance.notes)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        ({(1, 1): 2e-3, (1, 5): 2e-3, (4, 20): 2e-3}, "inert"),
        ({(1, 1): 2e-3, (1, 5): 2.02e-3, (4, 20): 2.01e-3}, r"flat: 20 batch tokens take \+0\.5% longer"),
        ({(1, 1): 2e-3, (1, 5): 1.5e-3, (4, 20): 1.4e-3}, "flat"),
    ],
)
def test_curves_that_say_nothing_are_refused(
    pair: Any, tmp_path: Path, seconds: dict[tuple[int, int], float], says: str
) -> None:
    log = new_log(pair, tmp_path / "cells.jsonl")
    steps(log, seconds)
    with pytest.raises(InfeasibleError, match=says):
        Profiler(*pair, log, OPTIONS, print).refuse_unusable()


def measured(*wanted: Measurement, repeats: Repeats) -> list[MeasuredCell]:
    cells: list[MeasuredCell] = []
    measure(wanted, repeats, done=cells.append, left_out=lambda *_: None)
    return cells


def test_a_noisy_cell_says_so_and_gross_outliers_are_counted() -> None:
    draw = np.random.default_rng(0)
    noisy = Measurement(lambda: float(draw.uniform(0.1, 2)), "step")
    (cell,) = measured(noisy, repeats=Repeats(0.01, most=20))
    values = np.array(noisy.samples)
    # Student's t at 97.5% with 19 degrees of freedom, from a printed table.
    half = 2.093 * values.std(ddof=1) / np.sqrt(20)
    assert cell.relative == pytest.approx(half / values.mean(), rel=1e-3)
    assert cell.relative > 0.1
    samples: Iterator[float] = iter([1.0] * 5 + [1.01, 50.0] * 20)
    repeats = Repeats(0.01, least=10, warmup=0)
    (cell,) = measured(Measurement(lambda: next(samples), "step"), repeats=repeats)
    assert cell.outliers > 0
    assert cell.seconds == pytest.approx(1.0, abs=0.01)


def test_cells_take_turns_and_leave_when_they_are_known() -> None:
    order: list[str] = []

    def steady(name: str, scatter: float) -> Measurement:
        draw = np.random.default_rng(len(name))

        def sample() -> float:
            order.append(name)
            return float(draw.normal(1.0, scatter))

        return Measurement(sample, "step", name)

    def too_large() -> float:
        raise OutOfMemoryError("it does not fit")

    out: list[str] = []
    cells: list[MeasuredCell] = []
    measure(
        [steady("quiet", 1e-4), steady("noisier", 0.05), Measurement(too_large, "step", "huge")],
        Repeats(0.01, least=10, most=500, warmup=2), done=cells.append,
        left_out=lambda measurement, error: out.append(f"{measurement.name}: {error}"),
    )  # fmt: skip
    assert out == ["huge: it does not fit"]
    assert [cell.name for cell in cells] == ["quiet", "noisier"]
    quiet, noisier = cells
    assert (quiet.repeats, order.count("quiet")) == (10, 12)
    assert noisier.repeats == order.count("noisier") - 2 > 50
    assert {"quiet", "noisier"} == set(order[:2]) == set(order[2:4]) == set(order[22:24])


def test_a_part_need_not_be_known_better_than_to_a_share_of_its_whole() -> None:
    draw = np.random.default_rng(0)

    def difference() -> float:  # nothing, but for the noise of the two times it was taken from
        return float(draw.normal(0.0, 1e-4))

    repeats = Repeats(0.01, most=50)
    (alone,) = measured(Measurement(difference, "schedule"), repeats=repeats)
    assert alone.relative > 0.01
    (cell,) = measured(Measurement(difference, "schedule", part_of_s=5e-3), repeats=repeats)
    assert 0 <= cell.seconds < 5e-5
    assert cell.outliers == 0
    assert cell.relative <= 0.01


class Noisy:
    """Makes cells of some sizes too noisy to be known, others as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, which: Callable[[int, int], bool]) -> None:
        step_s, draw = Bench.step_s, np.random.default_rng(0)

        def noisy(bench: Bench, requests: int, batch_tokens: int) -> float:
            spread = draw.uniform(0.1, 2.0) if which(requests, batch_tokens) else 1.0
            return float(step_s(bench, requests, batch_tokens) * spread)

        monkeypatch.setattr(Bench, "step_s", noisy)


def test_a_noisy_cell_is_left_out_and_the_rest_is_written(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with monkeypatch.context() as patch:
        Noisy(patch, lambda requests, tokens: (requests, tokens) == (4, 12))
        log = new_log(pair, tmp_path / "cells.jsonl")
        drift = run(pair, log, told)
    assert any(line.startswith("left out step  4 requests 12 tokens 64 context: known to") for line in told)
    profile = profile_from(log, *pair, OPTIONS, drift).profile
    assert "2 cell(s) noisier than 2.0% left out: step  4 requests 12 tokens" in str(profile.provenance.notes)
    # What stands in its place comes from its neighbours.
    expected = target_s(4, 12, 64)
    assert profile.target_cost().step_time_s(4, 12, 256) == pytest.approx(expected, rel=0.02)
    # The same command measures the noisy cells again, and only these.
    told.clear()
    again = new_log(pair, tmp_path / "cells.jsonl")
    run(pair, again, told)
    assert [line.partition(":")[0] for line in told] == [
        "step  4 requests 12 tokens 64 context", "step  4 requests 12 tokens 256 context",
    ]  # fmt: skip
    assert not again.aside


def test_steps_that_are_noisy_as_a_rule_are_refused(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Noisy(monkeypatch, lambda requests, tokens: requests < 4)
    with pytest.raises(InfeasibleError, match=r"12 of 18 step cells are noisier than 2\.0%: not repeatable"):
        run(pair, new_log(pair, tmp_path / "cells.jsonl"), [])


def test_pass_and_head_add_up_to_the_measured_draft(pair: Any, tmp_path: Path) -> None:
    """Also where single cells fall with requests or heads come out longer than the draft."""
    log = new_log(pair, tmp_path / "cells.jsonl")
    known_cells(log)
    drafts = {1: 1.0e-3, 2: 0.9e-3, 4: 1.3e-3}
    for (kind, name, requests, _, context, _), cell in list(log.cells.items()):
        if (kind, name) == ("draft", "dspark"):
            log.add(replace(cell, seconds=drafts[requests] + 2e-7 * context))
    for requests, head in ((1, 4e-4), (2, 2e-4), (4, 9e-4)):
        log.add(MeasuredCell("head", "dspark", requests, 0, 0, head, head, 0.0, 9, 0, ()))
    spec = (profile_from(log, *pair, OPTIONS, 0.0).profile.drafters or {})["dspark"]
    assert spec.sequential_s is not None
    # 3e-4 s is what a step takes longer for having this drafter (``known_cells``).
    assert np.add(spec.pass_s, np.multiply(4, spec.sequential_s)) == pytest.approx([1.3e-3, 1.3e-3, 1.6e-3])
    assert 4 * np.array(spec.sequential_s) == pytest.approx([4e-4, 4e-4, 7e-4])
    assert spec.pass_s == pytest.approx([9e-4, 9e-4, 9e-4])


def test_the_head_is_the_difference_between_passes_recorded_alike(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[Any] = []
    work = Captured.run

    def recorded(captured: Captured, key: Any, pass_: Any) -> None:
        keys.append(key)
        work(captured, key, pass_)

    monkeypatch.setattr(Captured, "run", recorded)
    bench = Bench(pair[0], pair[1]["dspark"], 4, 16, OPTIONS)
    head_s = bench.sample("head", "dspark", 4, 0)()
    assert head_s == pytest.approx(4 * STAGE_S, abs=0.05 * draft_s(4))
    (with_head, *sizes), (without, *same) = keys
    assert (with_head, without, sizes) == ("draft", "draft without head", same)
    assert bench.executor.state.drafts[:4].unique().numel() > 1


def test_drawn_tokens_are_profiled_as_such(pair: Any, tmp_path: Path) -> None:
    grid = Grid(requests=(1, 2), drafts=(0, 2), context=(16,), prefill=(8,), policies=())
    options = replace(OPTIONS, grid=grid, temperature=1.0)
    log = new_log(pair, tmp_path / "cells.jsonl", options)
    told: list[str] = []
    drift = Profiler(*pair, log, options, told.append).run()
    profile = profile_from(log, *pair, options, drift).profile
    assert profile.provenance.software["sampling"] == "drawn"
    assert profile.name.endswith("--dspark+mtp1--drawn")
    assert set(log.of("sample")["name"]) == {"greedy", "drawn"}
    with pytest.raises(BadInputError, match="another sampling"):
        new_log(pair, tmp_path / "cells.jsonl", replace(options, temperature=0.0))


def test_a_bench_of_drawn_tokens_draws_them(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    draw = sampling.draw

    def counted(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
        drawn.append(len(weights))
        return draw(weights, uniforms)

    monkeypatch.setattr(sampling, "draw", counted)
    Bench(pair[0], pair[1]["dspark"], 4, 16, OPTIONS).step_s(4, 12)
    assert not drawn
    Bench(pair[0], pair[1]["dspark"], 4, 16, replace(OPTIONS, temperature=0.7)).step_s(4, 12)
    assert drawn == [4] * 5  # four positions of the block, and the token behind the accepted ones


def test_a_curve_that_moved_is_refused(pair: Any, tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    run(pair, new_log(pair, path), [])
    lines = path.read_text().splitlines()
    first = json.loads(lines[1])
    lines[1] = json.dumps(first | {"seconds": first["seconds"] * 0.94})
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InfeasibleError, match="not repeatable: the first cell moved"):
        run(pair, new_log(pair, path), [])


def test_what_does_not_fit_is_said_and_the_rest_is_measured(
    pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = profiler.Bench

    def small(target: Any, draft: Any, requests: int, context: int, options: Any) -> Any:
        if requests * context > 128:
            raise OutOfMemoryError("1 requests fit")
        return bench(target, draft, requests, context, options)

    monkeypatch.setattr(profiler, "Bench", small)
    told: list[str] = []
    log = new_log(pair, tmp_path / "cells.jsonl")
    run(pair, log, told)
    assert any("left out 4 requests at context 64: 1 requests fit" in line for line in told)
    measured = log.of("step")
    assert set(measured.loc[measured["context_tokens"] == 64 * measured["requests"], "requests"]) == {1, 2}


def test_grids_that_cannot_tell_axes_apart_are_refused() -> None:
    with pytest.raises(BadInputError, match="two sizes"):
        Grid(requests=(4,))
    with pytest.raises(BadInputError, match="increasing"):
        Grid(context=(512, 64))
    with pytest.raises(BadInputError, match="is not a policy"):
        Grid(policies=("dspark", "dsprak"))
    for wrong, field in (({"relative": 2.0}, "confidence"), ({"least": 1}, "repeats")):
        with pytest.raises(BadInputError, match="must be") as raised:
            Repeats(**wrong)
        assert raised.value.field == field


def test_the_bench_runs_varied_tokens(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    target, drafters = pair
    seen: list[Any] = []
    forward = RaggedTarget.forward

    def recorded(ragged: Any, tokens: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(tokens)
        return forward(ragged, tokens, *arguments, **options)

    monkeypatch.setattr(RaggedTarget, "forward", recorded)
    bench = Bench(target, drafters["dspark"], 32, 64, OPTIONS)
    bench.prefill_s(64)
    # 64 even draws from 512 tokens hit 60 different ones in the mean (512 * (1 - (1 - 1 / 512) ** 64)).
    assert seen[-1].unique().numel() > 50
    for _ in range(3):  # repeats do not wear the variety off
        bench.step_s(32, 32)
        assert seen[-1].unique().numel() > 25
    first = seen[-3]
    again = Bench(target, drafters["dspark"], 32, 64, OPTIONS)
    again.step_s(32, 32)
    assert seen[-1].equal(first)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decisions_are_timed_on_varied_tokens(
    pair: Any, monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    verify = sampling.verify

    def recording(logits: torch.Tensor, drafts: torch.Tensor, *more: Any, **options: Any) -> Any:
        seen.append((logits, drafts))
        return verify(logits, drafts, *more, **options)

    monkeypatch.setattr(sampling, "verify", recording)
    for sample in (judge_sample(pair[0], 32, 4, temperature), judge_sample(pair[0], 32, 4, temperature)):
        assert sample() > 0
    (values, tokens), (again, same) = seen
    # 128 even draws from 512 tokens hit 113 different ones in the mean.
    assert tokens.unique().numel() > 100
    assert tokens.max() > pair[0].vocab_size // 2
    assert tokens.equal(same)
    assert values.equal(again)
