"""Fitted models against the paper, on outcomes drawn with seeds the fit never saw."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from simulator.acceptance.calibration import fit_temperatures, prefix_survival, reliability, roc_auc, verdicts
from simulator.acceptance.fitted import (
    ALIASES,
    SOLVING_SEQUENCES,
    Chances,
    FittedModel,
    Predictability,
    catalogue,
    expected_walk,
    fitted_model,
    mean_accepted_length,
    read_parameters,
    solve_level,
)
from simulator.acceptance.rates import conditional_rates
from simulator.acceptance.trace import AcceptanceTrace, anchor_rows
from simulator.core.errors import BadInputError
from simulator.core.files import data_directory, write_json
from simulator.core.random import random_stream
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.paper.acceptance_check import published_comparison, record
from simulator.paper.figures import published
from simulator.paper.fit import (
    Confidence,
    ExpectedSteps,
    confidence_misfit,
    fit_confidence,
    fit_parameters,
    solve_levels,
)
from simulator.paper.texts import expected_threshold
from simulator.report.thresholds import plot_threshold_sweep, published_ends
from simulator.sweeps.thresholds import threshold_sweep
from tests.support.strategies import SYNTHETIC

SEEDS = (7001, 7002)


@cache
def comparison() -> pd.DataFrame:
    """Twelve models share each dataset's text: it is drawn once."""
    drawn: dict[tuple[Predictability, str], Chances] = {}
    draw = Predictability.draw

    def once(of: Predictability, stream: np.random.Generator) -> Chances:
        key = (of, str(stream.bit_generator.state))
        if key not in drawn:
            drawn[key] = draw(of, stream)
        return drawn[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Predictability, "draw", once)
        return published_comparison(SEEDS)


def errors(source: str, quantity: str) -> pd.Series:
    rows = comparison()
    chosen = rows[(rows["source"] == source) & rows["quantity"].str.startswith(quantity)]
    return chosen.set_index(["model", "quantity"])["error"]


# What was fitted.


def test_conditional_acceptance_is_figure_2_at_every_position() -> None:
    found = errors("figure 2", "conditional acceptance")
    assert len(found) == 63
    assert found.abs().max() < 0.01


def test_confidence_ranks_and_errs_as_in_figure_6() -> None:
    for quantity, tolerance in (("ROC-AUC", 0.03), ("ECE raw", 0.015), ("ECE calibrated", 0.015)):
        found = errors("figure 6", quantity)
        assert len(found) == 4
        assert found.abs().max() < tolerance, quantity


def test_accepted_length_is_table_1_in_every_cell() -> None:
    found = errors("table 1", "accepted length")
    cells = found[found.index.get_level_values("quantity") == "accepted length"]
    assert len(cells) == 108
    # One pool gives a length to within 0.02 (one standard deviation), two to 0.014, and models of one
    # dataset share their text: what is asked is 0.02 beyond three deviations of that.
    assert cells.abs().max() < 0.02 + 3 * 0.014
    assert cells.abs().mean() < 0.02


def test_figure_6_computed_step_by_step_without_the_report() -> None:
    """The same numbers by the shortest way, as a check on the report that the tests above rest on."""
    trace = fitted_model("qwen3-4b-chat").trace(SEEDS[0])
    replay = trace.replay(SEEDS[0])
    steps = [
        int(row) for start in replay.sequence_start[:-1] for row in naive_anchors(replay.accepted, start)
    ]
    assert trace.confidence_logits is not None
    observed, _ = verdicts(replay.accepted[steps], 7)
    predicted = prefix_survival(trace.confidence_logits[steps])
    after = fit_temperatures(trace.confidence_logits[steps], observed).ece_after
    for k, figure in published().reliability.positions.items():
        curve = reliability(predicted[:, k - 1], observed[:, k - 1])
        assert curve.ece == pytest.approx(figure.ece_before, abs=0.015)
        assert roc_auc(predicted[:, k - 1], observed[:, k - 1]) == pytest.approx(figure.roc_auc, abs=0.03)
        assert after[k - 1] == pytest.approx(figure.ece_after, abs=0.015)


def naive_anchors(accepted: np.ndarray, start: int) -> list[int]:
    row, rows = int(start), []
    while row < start + 512:
        rows.append(row)
        row += int(accepted[row]) + 1
    return rows


def test_reliability_and_histogram_follow_figure_6() -> None:
    steps = record(fitted_model("qwen3-4b-chat"), SEEDS)
    observed, _ = verdicts(steps.accepted, 7)
    predicted = prefix_survival(steps.logits)
    for k, figure in published().reliability.positions.items():
        curve = reliability(predicted[:, k - 1], observed[:, k - 1])
        histogram, gap = np.zeros(20), np.zeros(20)
        histogram[curve.bin] = curve.weight / curve.weight.sum()
        gap[curve.bin] = np.abs(curve.observed - np.asarray(figure.before)[curve.bin, 1])
        # Alpaca is accepted 0.03 more often at position 1 than chat at large, which is what is fitted.
        assert np.abs(np.cumsum(histogram - np.asarray(figure.histogram))).max() < 0.12
        assert gap @ np.asarray(figure.histogram) < 0.03


def test_calibrated_survival_is_nearer_the_truth_than_raw() -> None:
    trace = fitted_model("qwen3-4b-chat").trace(SEEDS[0])
    calibrated, raw = trace.replay(1), trace.replay(1, raw=True)
    rows = anchor_rows(calibrated)
    observed, _ = verdicts(calibrated.accepted[rows], 7)
    for k in (0, 2, 4, 6):
        better = reliability(calibrated.survival[rows, k], observed[:, k]).ece
        worse = reliability(raw.survival[rows, k], observed[:, k]).ece
        assert better < 0.6 * worse


# What was not fitted, asserted loosely and reported beside the published value.


def test_domain_means_of_table_1_follow_from_figure_2() -> None:
    found = errors("table 1", "accepted length, domain mean")
    assert len(found) == 9
    assert found.abs().max() < 0.08


def test_threshold_sweeps_end_where_figure_5_ends() -> None:
    """Two unknowns a domain meet two numbers: what is left is what two seeds scatter."""
    assert errors("figure 5", "accepted length").abs().max() < 0.05
    assert errors("figure 5", "acceptance rate").abs().max() < 0.01
    rows = comparison()
    assert rows[(rows["source"] == "figure 5") & rows["quantity"].str.contains("0.9")]["fitted"].all()


def test_a_threshold_in_expectation_is_what_drawn_blocks_give() -> None:
    model = fitted_model("qwen3-4b/dspark/gsm8k")
    assert model.head is not None
    found = expected_threshold(model.log_odds(), model.head.stretch, model.head.offset, 0.9)
    drawn = [threshold_sweep(model, [0.9], seed).iloc[0] for seed in range(4)]
    for name, value in (("accepted_length_mean", found[0]), ("acceptance_rate", found[1])):
        assert np.mean([row[name] for row in drawn]) == pytest.approx(value, rel=0.01)
    everything = expected_threshold(model.log_odds(), model.head.stretch, model.head.offset, 0.0)
    assert everything.accepted_length == pytest.approx(model.accepted_length(), rel=1e-6)
    assert everything.acceptance_rate == pytest.approx(everything.accepted_length / 8, rel=1e-6)


def test_each_dataset_of_figure_5_has_a_spread_of_its_own() -> None:
    """Figure 6 measured Alpaca; math and code are wider, and so is MT-Bench, whose domain is Alpaca's."""
    texts = read_parameters(data_directory("traces") / "fitted.json").texts
    assert set(texts) == {"math", "code", "mt-bench"}
    wide, plain = (fitted_model(f"qwen3-4b/dspark/{name}") for name in ("mt-bench", "alpaca"))
    factor = texts["mt-bench"].spread
    assert factor > 1.2
    assert_allclose(wide.predictability.token_scale, factor * np.array(plain.predictability.token_scale))
    assert plain.predictability.passage_scale == fitted_model("qwen3-4b-chat").predictability.passage_scale


# The shipped parameters are what the fit gives.


def test_shipped_levels_and_shifts_are_reproduced_by_their_stages() -> None:
    shipped = read_parameters(data_directory("traces") / "fitted.json")
    text = shipped.predictability.draw(random_stream(0, "solving pool"), SOLVING_SEQUENCES)
    rates = published().conditional_acceptance.values["chat"]["dspark"]
    levels = solve_levels(text, rates)
    assert_allclose(levels, shipped.shapes["dspark/chat"].levels, atol=2e-4)
    assert_allclose(
        ExpectedSteps.of(text + levels.astype(np.float32)).conditional_acceptance, rates, atol=1e-4
    )
    shift = solve_level(text + levels.astype(np.float32), 3.58)
    assert shift == pytest.approx(shipped.models["qwen3-8b/dspark/alpaca"].shift, abs=1e-3)


@pytest.mark.parametrize("hopeless", [slice(0, None, 2), slice(1, None, 2)])
def test_a_level_is_found_though_a_few_sequences_are_unlike_all(hopeless: slice) -> None:
    """One draft a block. Half of the sequences accept none; the others have to accept 0.25 / 0.5 of theirs.

    A hopeless sequence takes a step a row, and one that accepts a share p takes 1 / (1 + p) of them: with
    512 rows the mean length is 2 / (1 + 1 / (1 + p)), which is 1.2 at p = 0.5, where log-odds are 0.
    """
    logits = np.full((128, 512, 1), -1.0, np.float32)
    logits[hopeless] = -100.0
    assert solve_level(logits, 1.2) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(ValueError, match="no change of sign"):
        solve_level(logits, 1.5)


def test_shipped_confidence_is_a_local_optimum_of_the_misfit() -> None:
    shipped = read_parameters(data_directory("traces") / "fitted.json")
    spread = shipped.predictability
    ends = [scale[end] for scale in (spread.passage_scale, spread.token_scale) for end in (0, -1)]
    head = [values[k - 1] for values in (shipped.stretch, shipped.offset) for k in (1, 3, 5, 7)]
    best = [spread.skew, *ends, *head]
    misfit = np.square(confidence_misfit(best, published())).sum()
    for index in (5, 8, 9):  # stretch at the first and last position, offset at the first
        for change in (-0.08, 0.08):
            moved = [value + change * (i == index) for i, value in enumerate(best)]
            assert np.square(confidence_misfit(moved, published())).sum() > misfit


def vector(found: Confidence) -> list[float]:
    return [found.skew, *found.passage_scale, *found.token_scale, *found.stretch, *found.offset]


def test_a_small_refit_improves_and_repeats() -> None:
    start = Confidence(0.9, (1.5, 1.0), (1.2, 1.2), (1.2,) * 4, (0.2,) * 4)
    first = fit_confidence(published(), sequences=8, evaluations=3)
    assert first == fit_confidence(published(), sequences=8, evaluations=3)
    misfit = [np.square(confidence_misfit(vector(found), published(), 8)).sum() for found in (start, first)]
    assert misfit[1] < 0.5 * misfit[0]


def test_the_later_stages_give_a_whole_parameter_file(tmp_path: Path) -> None:
    cells = published().accepted_length
    some = {"qwen3-4b": cells.values["qwen3-4b"], "qwen3-8b": {"dspark": cells.values["qwen3-8b"]["dspark"]}}
    figures = published().model_copy(update={"accepted_length": cells.model_copy(update={"values": some})})
    confidence = Confidence(1.2, (1.1, 0.65), (1.15, 0.75), (1.25, 1.3, 1.25, 1.1), (0.3, 0.15, 0.0, 0.0))
    told: list[str] = []
    fitted = fit_parameters(
        figures, confidence, command="a test", sequences=8, text_sequences=8, progress=told.append
    )
    assert len(fitted.models) == 9 + 4 * 9
    assert len(told) == 3 + 12 + 4 * 9  # kinds of text, shapes, cells
    assert fitted.shapes["dspark/chat"].temperatures is not None
    assert fitted.shapes["eagle3/chat"].temperatures is None
    write_json(tmp_path / "fitted.json", fitted.model_dump(mode="json", by_alias=True, exclude_none=True))
    assert read_parameters(tmp_path / "fitted.json") == fitted


# The catalogue.


def test_the_catalogue_names_every_cell_with_its_published_length() -> None:
    models = {model.name: model for model in catalogue()}
    assert len(models) == 4 * 3 * 9 + 9
    for target, drafter, dataset, _, length in published().accepted_length.cells():
        model = models[f"{target}/{drafter}/{dataset}"]
        assert model.published_accepted_length == length
        assert model.has_confidence == (drafter == "dspark")
        assert (model.provenance.kind, model.provenance.model, model.provenance.draft) == (
            "fitted",
            target,
            drafter,
        )
    assert {"qwen3-8b/dspark/gsm8k", "gemma4-12b/eagle3/alpaca", "qwen3-4b/dflash/code"} <= models.keys()


def test_aliases_and_specs_name_the_same_models() -> None:
    assert set(ALIASES) == {"qwen3-4b-math", "qwen3-4b-code", "qwen3-4b-chat"}
    for alias, name in ALIASES.items():
        assert fitted_model(alias) == fitted_model(name) == parse_acceptance(alias)
    assert parse_acceptance("Qwen3-8B/DSpark/GSM8K").name == "qwen3-8b/dspark/gsm8k"
    assert parse_acceptance("qwen3-4b-chat@5").gamma == 5
    mix = parse_acceptance("0.6*qwen3-4b-chat+0.4*qwen3-4b-code")
    assert mix.name == "0.6*qwen3-4b/dspark/chat+0.4*qwen3-4b/dspark/code"
    assert parse_acceptance("0.6*qwen3-4b-chat@5 + 0.4*qwen3-4b-code@5").gamma == 5


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("qwen3-4b-chta", "qwen3-4b-chat"),
        ("qwen3-8b/dspark/gsm8", "qwen3-8b/dspark/gsm8k"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(BadInputError, match=f"not a known acceptance model.*did you mean .*{nearest}"):
        parse_acceptance(name)
    with pytest.raises(BadInputError, match="dspark-sim list"):
        parse_acceptance("zzzzzz")


def test_loading_by_name_takes_milliseconds() -> None:
    """In a fresh interpreter, imports aside; and a pool is drawn well within what a run notices."""
    code = (
        "import time; from simulator.acceptance.fitted import fitted_model; t = time.process_time();"
        "m = fitted_model('qwen3-4b-chat'); print(time.process_time() - t);"
        "t = time.process_time(); m.replay(1); print(time.process_time() - t)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    load, draw = map(float, out.split())
    assert load < 0.1
    assert draw < 1.0


# The model.


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    model = fitted_model("qwen3-8b/dspark/gsm8k")
    one, again, other = model.replay(5), model.replay(5), model.replay(6)
    assert one.survival.tobytes() == again.survival.tobytes()
    assert one.accepted.tobytes() == again.accepted.tobytes()
    assert one.accepted.tobytes() != other.accepted.tobytes()
    assert one.rows == 131_072


def test_a_shorter_block_is_the_beginning_of_the_longer_one() -> None:
    model = fitted_model("qwen3-4b-code")
    whole, cut = model.replay(2), model.truncated(5).replay(2)
    assert_array_equal(cut.survival, whole.survival[:, :5])
    assert_array_equal(cut.accepted, np.minimum(whole.accepted, 5))
    with pytest.raises(BadInputError, match="block size must be 1 to 7"):
        model.truncated(8)


def test_drafters_of_a_dataset_see_the_same_text() -> None:
    chances = {}
    for drafter in ("dspark", "eagle3"):
        probability = fitted_model(f"qwen3-8b/{drafter}/gsm8k").trace(3).acceptance_probability
        assert probability is not None
        chances[drafter] = probability[:, 0]
    assert np.corrcoef(chances["dspark"], chances["eagle3"])[0, 1] > 0.95


def test_without_a_head_only_the_mean_is_known() -> None:
    replay = fitted_model("qwen3-4b/eagle3/chat").replay(1)
    assert np.all(replay.survival == replay.survival[0])
    assert_allclose(replay.survival[0, 0], (replay.accepted >= 1).mean(), atol=1e-6)


def test_a_level_moves_acceptance_and_confidence_together() -> None:
    model = fitted_model("qwen3-4b-chat")
    easier = model.shifted(0.5)
    assert easier.name == "qwen3-4b/dspark/chat+0.5"
    assert easier.shifted(-0.5) == model
    assert easier.replay(1).accepted.mean() > model.replay(1).accepted.mean() + 0.3
    assert easier.replay(1).survival.mean() > model.replay(1).survival.mean()
    with pytest.raises(BadInputError, match="level: must be finite"):
        model.shifted(float("nan"))


@pytest.mark.parametrize(("gamma", "wanted"), [(7, 4.2), (5, 3.0), (1, 1.85)])
def test_an_accepted_length_can_be_asked_for(gamma: int, wanted: float) -> None:
    model = fitted_model("qwen3-4b-chat").truncated(gamma).with_accepted_length(wanted)
    assert model.accepted_length() == pytest.approx(wanted, abs=1e-3)
    assert 1 + record(model, SEEDS).accepted.mean() == pytest.approx(wanted, abs=0.04)


def test_a_level_is_solved_where_the_first_sequences_are_not_like_all() -> None:
    """Every other sequence is far easier: the half that is asked first has its level elsewhere."""
    logits = np.random.default_rng(3).normal(0, 1, (128, 50, 3)).astype(np.float32)
    logits[1::2] += 6
    level = solve_level(logits, 2.5)
    assert mean_accepted_length(logits + np.float32(level)) == pytest.approx(2.5, abs=1e-3)
    assert mean_accepted_length(logits[::2] + np.float32(level)) < 2
    with pytest.raises(ValueError, match="no change of sign"):
        solve_level(logits, 4.5)


@pytest.mark.parametrize("wanted", [1.0, 8.0, 9.0, float("nan")])
def test_an_accepted_length_out_of_reach_is_refused(wanted: float) -> None:
    with pytest.raises(BadInputError, match="above 1 and below 8"):
        fitted_model("qwen3-4b-chat").with_accepted_length(wanted)


def test_the_expected_walk_is_the_mean_of_drawn_walks() -> None:
    rng = np.random.default_rng(1)
    chances = rng.uniform(0.3, 0.95, (1, 40, 3)).astype(np.float32)
    visits, prefix = expected_walk(chances)
    assert_allclose(prefix, np.cumprod(chances, axis=2), rtol=1e-6)
    copies = 4000
    trace = AcceptanceTrace(
        name="copies",
        confidence_logits=None,
        sequence_start=np.arange(copies + 1) * 40,
        provenance=SYNTHETIC,
        acceptance_probability=np.tile(chances[0], (copies, 1)),
    )
    seen = np.bincount(anchor_rows(trace.replay(1)) % 40, minlength=40) / copies
    assert_allclose(visits[0], seen, atol=0.04)
    steady = np.full((2, 400, 3), 0.5, np.float32)
    assert mean_accepted_length(np.zeros_like(steady)) == pytest.approx(1 + 0.5 + 0.25 + 0.125)


def test_a_broken_parameter_file_is_refused_by_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "fitted.json"
    shipped = read_parameters(data_directory("traces") / "fitted.json").model_dump(mode="json", by_alias=True)
    write_json(path, shipped | {"stretch": ["much"]})
    with pytest.raises(BadInputError, match=r"fitted.json: stretch.0.*much"):
        read_parameters(path)
    write_json(path, {key: value for key, value in shipped.items() if key != "shapes"})
    with pytest.raises(BadInputError, match="shapes: is missing"):
        read_parameters(path)


# The threshold sweep.


def naive_sweep(model: FittedModel, threshold: float, seed: int) -> tuple[float, float]:
    """Verified and accepted length, bonus included, block by block."""
    trace = model.trace(seed)
    replay = trace.replay(seed)
    assert trace.confidence_logits is not None
    verified, committed = [], []
    for start in replay.sequence_start[:20]:
        row = int(start)
        while row < start + 512:
            sure = 0
            for logit in trace.confidence_logits[row]:
                if 1 / (1 + np.exp(-float(logit))) < threshold:
                    break
                sure += 1
            verified.append(sure + 1)
            committed.append(min(int(replay.accepted[row]), sure) + 1)
            row += committed[-1]
    return float(np.mean(verified)), float(np.mean(committed))


def test_a_threshold_sweep_walks_as_a_serving_engine_would() -> None:
    model = fitted_model("qwen3-4b-chat")
    whole = model.trace(4)
    twenty = AcceptanceTrace(
        name=model.name,
        confidence_logits=None if whole.confidence_logits is None else whole.confidence_logits[: 20 * 512],
        sequence_start=whole.sequence_start[:21],
        provenance=SYNTHETIC,
        accepted=model.replay(4).accepted[: 20 * 512],
        temperatures=whole.temperatures,
    )
    sweep = threshold_sweep(twenty, [0.0, 0.5, 0.9], seed=0)
    for threshold, verified, committed, rate in sweep.itertuples(index=False):
        assert (verified, committed) == pytest.approx(naive_sweep(model, threshold, 4))
        assert rate == pytest.approx(committed / verified)
    assert sweep["verified_length_mean"][0] == 8


def test_a_higher_threshold_verifies_less_and_better() -> None:
    sweep = threshold_sweep(fitted_model("qwen3-4b-math"), np.linspace(0, 1, 11).tolist(), seed=2)
    assert list(sweep) == ["threshold", "verified_length_mean", "accepted_length_mean", "acceptance_rate"]
    assert sweep["verified_length_mean"].is_monotonic_decreasing
    # Committed tokens fall anchor by anchor; which anchors a walk meets changes the mean by about 1e-3.
    assert np.diff(sweep["accepted_length_mean"]).max() < 2e-3
    assert sweep["acceptance_rate"].is_monotonic_increasing


@pytest.mark.parametrize(
    ("spec", "thresholds", "message"),
    [
        ("qwen3-4b/eagle3/chat", [0.5], "no confidence head"),
        ("qwen3-4b-chat", [0.5, 1.5], r"thresholds: must be within 0..1 \(got 1.5\)"),
        ("qwen3-4b-chat", [float("nan")], "within 0..1"),
        ("qwen3-4b-chat", [], "needs at least one"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(spec: str, thresholds: list[float], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        threshold_sweep(parse_acceptance(spec), thresholds, seed=0)


def test_the_plot_shows_both_curves_and_the_published_ends(tmp_path: Path) -> None:
    model = fitted_model("qwen3-4b/dspark/mt-bench")
    figure = plot_threshold_sweep(threshold_sweep(model, [0, 0.5, 0.9], seed=1), model)
    lengths, rates = figure.axes
    assert lengths.get_xlabel()
    assert lengths.get_ylabel()
    assert rates.get_ylabel()
    assert_allclose(lengths.lines[-1].get_ydata(), [3.64, 1.995])
    assert_allclose(rates.lines[-1].get_ydata(), [0.457, 0.957])
    figure.savefig(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    plain = conditional_rates([0.9, 0.8])
    unpublished = plot_threshold_sweep(threshold_sweep(plain, [0, 0.85], seed=1), plain)
    assert [len(axes.lines) for axes in unpublished.axes] == [2, 1]


def test_published_ends_belong_to_one_target_drafter_and_block_size() -> None:
    of_dataset = published_ends(fitted_model("qwen3-4b/dspark/gsm8k"))
    assert of_dataset == published_ends(fitted_model("qwen3-4b-math"))
    assert of_dataset is not None
    assert of_dataset[0] == "gsm8k"
    for other in (
        "qwen3-8b/dspark/gsm8k",
        "qwen3-4b/dflash/math",
        "qwen3-4b/dspark/aime25",
        "qwen3-4b-math@5",
    ):
        assert published_ends(parse_acceptance(other)) is None


def test_levels_share_a_text_that_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two levels of a model, and another drafter on the same kind of text, differ by no draw."""
    drawn: list[int] = []
    draw = Predictability.draw

    def counted(self: Predictability, *arguments: Any) -> Chances:
        drawn.append(1)
        return draw(self, *arguments)

    model = fitted_model("qwen3-4b-chat")
    expected = model.predictability.draw(random_stream(9, "text/chat"))
    monkeypatch.setattr(Predictability, "draw", counted)
    low, high = model.shifted(-0.5).trace(9), model.shifted(0.5).trace(9)
    assert len(drawn) == 1
    for level, trace in ((-0.5, low), (0.5, high)):
        logits = expected + np.float32(model.levels) + np.float32(level)
        chance = 1 / (1 + np.exp(-np.clip(logits.reshape(-1, model.gamma).astype(float), -16, 16)))
        assert_allclose(trace.acceptance_probability, chance, rtol=1e-5)
    model.trace(10)
    assert len(drawn) == 2
