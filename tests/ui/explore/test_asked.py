"""A state of the page Explore: through its address and back, and as what can be run elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as st

from simulator.cli import app as cli
from simulator.cli.explore import DEFAULT_LOADS
from simulator.core.errors import BadInputError
from simulator.sweeps.comparison import parse_speed
from simulator.ui.explore.asked import (
    Deployed,
    Explored,
    as_commands,
    as_python,
    from_query,
    to_query,
    widths_of,
)
from simulator.ui.explore.form import BY_POSITION, POLICIES, acceptance_of, check, layouts_of, state_of
from simulator.ui.explore.view import FIRST_LOOK, View, answered, view_of
from simulator.ui.explore.work import (
    COARSE_STEPS,
    LOADS,
    Line,
    bench_of,
    conditional_rates,
    hardware_of,
    is_composed,
    tasks_of,
)
from simulator.ui.figures import line_figure
from simulator.ui.running.jobs import Seen
from tests.support.dash_text import words

ON_HARDWARE = Explored(
    Deployed("", "Qwen/Qwen3-32B", "h100", "vllm", "fp8", "qwen3-14b/dspark/mt-bench", "tp4"),
    ("mtp1", "dspark"), sla=25, statistic="p10",
)  # fmt: skip

WORDS = st.text(max_size=12).map(str.strip)


@given(
    st.builds(
        Explored,
        st.builds(Deployed, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS, WORDS),
        st.lists(WORDS.filter(bool), max_size=12, unique=True).map(tuple),
        st.sampled_from(["usual", "full"]),
        st.integers(1, 10**5).map(lambda tenths: tenths / 10),
        st.sampled_from(["mean", "p10"]),
    )
)
def test_a_state_survives_its_address(state: Explored) -> None:
    assert from_query("?" + to_query(state)) == state


def test_the_usual_state_has_a_short_address() -> None:
    assert to_query(Explored()) == ""
    assert from_query("") == Explored()
    assert from_query("?unknown=1&sla=90") == replace(Explored(), sla=90.0)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("sla=fast", "sla: "),
        ("sla=0", "must be a speed"),
        ("statistic=p90", "mean, p10"),
        ("effort=x", "usual, full"),
    ],
)
def test_a_wrong_address_names_its_word(query: str, said: str) -> None:
    with pytest.raises(BadInputError, match=said):
        from_query(query)


@pytest.mark.parametrize(
    "state", [Explored(), ON_HARDWARE, replace(Explored(), on=Deployed(acceptance="conditional:0.9,0.8"))]
)
def test_commands_are_read_by_the_command_line(state: Explored) -> None:
    """What the parser reads is what the state says."""
    root: Any = typer.main.get_command(cli.commands())
    for text, name in zip(as_commands(state, (1, 10), 1), ("frontier", "compare"), strict=True):
        program, command, *options = shlex.split(text)
        assert (program, command) == ("dspark-sim", name)
        read = root.commands[command].make_context(command, options).params
        on = state.on
        assert (read["profile"] or "") == on.profile
        assert (read["model"] or "", read["gpu"] or "") == (on.model, on.gpu)
        assert (read["engine"] or "", read["precision"] or "") == (on.engine, on.precision)
        assert read["tp"] == (4 if on.layout else None)
        assert list(read["acceptance"] or []) == ([on.acceptance] if on.acceptance else [])
        assert tuple(read["policy"]) == state.policies
        assert (read["concurrency"], read["seeds"]) == ("1,10", 1)
    assert [parse_speed(each) for each in read["sla"]] == [parse_speed(state.term)]


def test_python_gives_the_table_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """The text is run as it stands, with loads that take no time, beside what a worker computes."""
    state = replace(Explored(), policies=("autoregressive",), sla=50.0)
    names: dict[str, Any] = {}
    exec(as_python(state, (2, 200), 1), names)
    bench, _ = bench_of(state.on)
    mine = bench.frontier("autoregressive", (2, 200), seeds=1).table
    assert names["line"].table.equals(mine)
    assert "tps_mean>=50" in capsys.readouterr().out


def test_python_on_hardware_compiles_and_names_all() -> None:
    text = as_python(ON_HARDWARE, (1,), 1)
    compile(text, "shown", "exec")
    assert "sim.hardware('Qwen/Qwen3-32B', 'h100', tp=4, engine='vllm', precision='fp8')" in text


@pytest.mark.parametrize(
    ("label", "widths"), [("", {}), ("tp8", {"tp": 8}), ("tp1-dp16", {"tp": 1, "dp": 16})]
)
def test_the_label_of_a_layout_names_its_widths(label: str, widths: dict[str, int]) -> None:
    assert widths_of(label) == widths


def test_every_layout_of_a_node_that_fits_can_be_chosen() -> None:
    """By hand: 66 GB of weights leave room for 12,026 tokens on one GPU of 80 GiB; a node has eight."""
    on = Deployed("", "Qwen/Qwen3-32B", "h100")
    shown = layouts_of(on)
    assert [*shown] == ["tp2", "tp4", "tp8"]
    assert shown["tp8"].startswith("8 (tp8), ")
    for label in shown:
        assert hardware_of(replace(on, layout=label)).layout().label == label
    assert layouts_of(replace(on, model="none-such")) == {}


def test_a_layout_in_groups_is_what_the_command_and_python_name() -> None:
    """The library's layouts are listed: groups too, where a model has a latent and experts."""
    on = replace(R1, acceptance="conditional:0.8", layout="tp1-dp8-ep8")
    assert "tp1-dp8-ep8" in layouts_of(on)
    assert (hardware_of(on).tp, hardware_of(on).dp, hardware_of(on).ep) == (1, 8, 8)
    assert "--gpu h200 --tp 1 --dp 8 --ep 8 " in as_commands(Explored(on), (1,), 1)[0]
    assert "'h200', tp=1, dp=8, ep=8)" in as_python(Explored(on), (1,), 1)


def test_a_layout_that_does_not_fit_is_refused_at_its_field() -> None:
    with pytest.raises(BadInputError, match="does not hold deepseek-ai/DeepSeek-R1 on h200") as caught:
        check(Deployed("", "deepseek-ai/DeepSeek-R1", "h200", acceptance="conditional:0.8", layout="tp4"))
    assert (caught.value.source, caught.value.remedy) == ("layout", ", ".join(layouts_of(R1)))
    check(replace(R1, layout="tp8"))


R1 = Deployed("", "deepseek-ai/DeepSeek-R1", "h200")


def test_the_stages_are_what_the_page_says() -> None:
    assert ",".join(map(str, LOADS["full"])) == DEFAULT_LOADS
    assert len(COARSE_STEPS) == len(LOADS["coarse"])
    coarse, refined = (
        [getattr(task, "stage", None) for task in tasks_of(Explored())].index(stage)
        for stage in ("coarse", "usual")
    )
    assert coarse < refined  # a first look of every policy comes before any line is refined


def test_a_curve_that_takes_seconds_is_stood_in_for_by_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of two curves never stand beside each other; the composed curve's replace the formula's."""
    composed = Deployed("", "Qwen/Qwen3-8B", "l40s", acceptance="conditional:0.8")
    shipped = replace(composed, gpu="h100")
    assert [is_composed(on) for on in (composed, shipped, Deployed(), replace(composed, gpu="mi300x"))] == [
        True, False, False, False
    ]  # fmt: skip
    state = Explored(composed, ("mtp1", "autoregressive"))
    tasks = tasks_of(state)
    names = [(type(task).__name__, getattr(task, "stage", None)) for task in tasks[:4]]
    assert names == [
        ("CurveTask", None),
        ("LineTask", "formula"),
        ("LineTask", "formula"),
        ("CurveTask", None),
    ]
    jobs = Known(dict.fromkeys(tasks[1:3], Line(pd.DataFrame({"policy": ["formula"]}), ())))
    jobs.found[tasks[0]] = tasks[0].run(str)
    jobs.found[tasks[4]] = Line(pd.DataFrame({"policy": ["kernels"]}), ())  # of one policy only
    seen = view_of(jobs, "", state)  # type: ignore[arg-type]
    assert set(seen.table["policy"]) == {"formula"}
    assert seen.curve is not None
    assert (seen.curve.profile.provenance.kind, seen.notes) == ("modelled", (FIRST_LOOK,))
    jobs.found[tasks[5]] = jobs.found[tasks[4]]
    assert set(view_of(jobs, "", state).table["policy"]) == {"kernels"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        (1.5, "fixed:3 carries"),
        (1.0, "dspark-async is not worse for sure"),
        (0.5, "dspark-async carries"),
    ],
)
def test_a_fixed_length_that_wins_or_ties_is_said_so(fixed: float, said: str) -> None:
    """Lines that are multiples of each other: dspark-async is twice as fast as mtp1."""
    rows = [
        {"policy": policy, "concurrency": load, "concurrency_mean": load,
         "throughput_tok_per_s": factor * rate, "throughput_ci95": 1.0,
         "tps_mean": factor * rate / load, "tps_p10": factor * rate / load,
         "verification_budget_mean": 2.0}
        for policy, factor in (("mtp1", 1.0), ("fixed:3", 2 * fixed), ("dspark-async", 2.0))
        for load, rate in ((1, 100.0), (10, 500.0))
    ]  # fmt: skip
    told, _ = answered(View(None, pd.DataFrame(rows), (), (), ()), Explored(sla=60.0))
    assert said in "".join(words(told))


@dataclass
class Known:
    """Jobs of which this was found."""

    found: dict[Any, object]

    def look(self, session: str, tasks: Sequence[Any]) -> Seen:
        return Seen(self.found, True, "")


def test_rates_are_edited_up_to_the_first_gap() -> None:
    assert acceptance_of(BY_POSITION, [0.9, 0.85, None, 0.5]) == "conditional:0.9,0.85"
    assert acceptance_of("qwen3-4b-chat", [0.9]) == "qwen3-4b-chat"
    with pytest.raises(BadInputError, match="names no rate"):
        acceptance_of(BY_POSITION, [None, 0.5])


def test_rates_of_a_model_are_those_that_it_was_given() -> None:
    """Conditional rates of plain rates: known by construction, within what chance allows."""
    from simulator.deployment.acceptance_text import parse_acceptance

    found = conditional_rates(parse_acceptance("conditional:0.9,0.6,0.3"))
    assert found == pytest.approx((0.9, 0.6, 0.3), abs=0.01)


def test_every_policy_to_choose_from_can_be_read() -> None:
    state = state_of("profile", "deepseek-v4-flash", None, None, "", "", "", "", POLICIES, "usual")
    assert state.policies == POLICIES
    for policy in set(POLICIES) - {"fixed:7"}:  # longer than the blocks of this profile, not than others'
        bench_of(Deployed())[0].plan(policy)


def test_published_points_are_named_once_in_the_legend() -> None:
    table = pd.DataFrame({"policy": ["a", "b"], "concurrency": [1, 1], "x": [1, 3], "y": [1, 3]})
    drawn = line_figure(table, "x", "y", ("x", "y"), "light", published={"a": [(1, 1)], "b": [(2, 2)]})
    marks = [each for each in drawn["data"] if each["mode"] == "markers"]
    assert [(each["name"], each["showlegend"]) for each in marks] == [
        ("published", True),
        ("published", False),
    ]
    assert [each["hovertemplate"].split(":")[0] for each in marks] == ["a, published", "b, published"]
