"""A scenario between form, text and address; names only; errors at their controls."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import pytest
import yaml

from simulator.core.errors import BadInputError
from simulator.core.reading import MAX_YAML_BYTES
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.scenario import Scenario
from simulator.ui.plan.asked import (
    FIELDS,
    Planned,
    example,
    field_of,
    form_of,
    from_query,
    mapping_of,
    scenario_of,
    to_query,
    with_field,
    written,
)
from simulator.ui.plan.work import PlanTask, tasks_of
from tests.ui.plan.conftest import SCENARIO, Known


def test_a_state_survives_its_address() -> None:
    kept = to_query(Planned("name: other\n"))
    state = Planned("name: täglich & mehr\nsla: [a, b]\n", ("h100", "h200"), "scenario", kept)
    assert from_query("?" + to_query(state)) == state
    assert from_query("") == Planned(example())


def test_the_first_scenario_is_that_of_the_command() -> None:
    assert scenario_of(example()) == Scenario.model_validate(yaml.safe_load(EXAMPLE))


@pytest.mark.parametrize("packed", ["%%%", "AAAA", "eJw", ""])
def test_a_spoilt_address_is_an_error(packed: str) -> None:
    if packed:
        with pytest.raises(BadInputError, match="copy the whole address"):
            from_query(f"scenario={packed}")
    with pytest.raises(BadInputError, match="effort"):
        from_query("effort=none")


def test_a_few_bytes_do_not_grow_without_end() -> None:
    bomb = base64.urlsafe_b64encode(zlib.compress(b"a" * (100 * MAX_YAML_BYTES), 9)).decode()
    assert len(bomb) < MAX_YAML_BYTES
    with pytest.raises(BadInputError, match="too large"):
        from_query(f"scenario={bomb}")


def test_every_control_writes_the_key_that_it_shows() -> None:
    """Put what the form shows of one scenario into an empty one: the same scenario comes out."""
    built: dict[str, Any] = {"search": SCENARIO["search"]}
    for name, value in form_of(SCENARIO).items():
        if value is not None:
            built = with_field(built, name, value)
    assert scenario_of(written(built)) == scenario_of(written(SCENARIO))
    assert {name for name, value in form_of(SCENARIO).items() if value is None} == {
        "model", "gpu", "tp", "acceptance", "headroom", "price"
    }  # fmt: skip


def test_a_model_and_a_profile_put_each_other_out() -> None:
    on_gpu = with_field(with_field(SCENARIO, "model", "Qwen/Qwen3-8B"), "gpu", "h100")
    assert "profile" not in on_gpu
    back = with_field(on_gpu, "profile", "deepseek-v4-flash")
    assert "hardware" not in back
    assert with_field(SCENARIO, "prefill", None)["replica"] == {"concurrency": 8}
    assert SCENARIO["replica"]["prefill_tokens_per_s"] == 10000.0  # what was given is left alone


ON_THREE = {"model": "Qwen/Qwen3-8B", "gpu": "h100", "tp": 3}


@pytest.mark.parametrize(
    ("change", "control", "said"),
    [
        ({"sla": ["tps_p10>60"]}, "sla", "tps_p10"),
        ({"policies": ["fixed:x"]}, "policies", "needs a number"),
        ({"traffic": {"arrivals": "poisson:12"}}, "arrivals", "has no unit"),
        ({"profile": "none-such"}, "profile", "is not a shipped profile"),
        ({"acceptance": ["../trace.parquet"]}, "acceptance", "is not in the catalogue"),
        ({"replica": {"concurrency": 0}}, "concurrency", "greater than 0"),
        ({"colour": "red"}, "yaml", "unknown key"),
        ({"fleet": {"headroom": "lots"}}, "headroom", "lots"),
        ({"price": {"gpu_hour": -1}}, "price", "greater than 0"),
        ({"profile": None, "hardware": ON_THREE}, "tp", "must be a power of two"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_belongs_to_its_control(change: dict[str, Any], control: str, said: str) -> None:
    scenario = {key: value for key, value in {**SCENARIO, **change}.items() if value is not None}
    with pytest.raises(BadInputError) as caught:
        scenario_of(written(scenario))
    assert field_of(caught.value) == control
    assert said in str(caught.value)
    assert "/" not in (caught.value.source or "")  # no path of this machine


@pytest.mark.parametrize(
    "change",
    [
        {"profile": "/etc/passwd"},
        {"traffic": {"replay": "/etc/passwd"}},
        {"traffic": {"arrivals": "poisson:1/s", "lengths": "empirical:/etc/passwd"}},
        {"traffic": {"arrivals": "poisson:1/s", "classes": {"a": {"lengths": "empirical:x.csv"}}}},
        {"traffic": {"arrivals": "poisson:1/s", "classes": {"a": {"acceptance": ["/etc/passwd"]}}}},
        {"profile": None, "hardware": {"model": "/etc", "gpu": "h100"}},
        {"profile": None, "hardware": {"model": "Qwen/Qwen3-8B", "gpu": "/etc/gpu.yaml"}},
    ],
)
def test_no_word_of_a_scenario_reaches_a_file(change: dict[str, Any]) -> None:
    scenario = {key: value for key, value in {**SCENARIO, **change}.items() if value is not None}
    with pytest.raises(BadInputError, match=r"catalogue|shipped|cannot read"):
        scenario_of(written(scenario))


def test_text_that_is_no_scenario_is_said_without_a_path() -> None:
    for text in ("- a\n- b\n", "a: [", "a: 1\na: 2\n"):
        with pytest.raises(BadInputError) as caught:
            mapping_of(text)
        assert field_of(caught.value) == "yaml"
        assert "/tmp" not in str(caught.value)


def test_further_gpus_are_planned_at_their_own_price() -> None:
    on_gpu = written({**with_field(with_field(SCENARIO, "model", "Qwen/Qwen3-8B"), "gpu", "h100"),
                      "price": {"gpu_hour": 1.5}})  # fmt: skip
    first, other = (PlanTask(on_gpu, gpu, "scenario").scenario() for gpu in ("", "h200"))
    assert first.hardware is not None
    assert other.hardware is not None
    assert (first.hardware.gpu, first.price.gpu_hour) == ("h100", 1.5)
    assert (other.hardware.gpu, other.price.gpu_hour) == ("h200", 4.0)  # the catalogue's
    coarse = PlanTask(on_gpu, "", "first").scenario()
    assert (coarse.search.precision, coarse.search.requests) == ("10%", 400)
    with pytest.raises(BadInputError, match="is measured on its own GPU"):
        PlanTask(written(SCENARIO), "h200", "first").scenario()
    with pytest.raises(BadInputError, match="is not in the catalogue"):
        PlanTask(on_gpu, "../gpu", "first").scenario()


def test_coarse_plans_of_all_gpus_come_first() -> None:
    tasks = tasks_of(Planned("x", ("h200",), "scenario"))
    listed = [(task.gpu, task.effort) for task in tasks if isinstance(task, PlanTask)]
    assert listed == [("", "first"), ("h200", "first"), ("", "scenario"), ("h200", "scenario")]


def test_a_plan_says_how_far_it_is(known: Known) -> None:
    """Both policies and the prefill pools of all rates first: the count rises by one up to their number."""
    rates = [said for said in known.said if said.startswith("sustainable rates, ")]
    assert rates == known.said[: len(rates)]
    assert rates == [f"sustainable rates, {done} of {len(rates)}" for done in range(1, len(rates) + 1)]
    assert len(rates) >= len(SCENARIO["policies"])
    assert set(FIELDS) == set(form_of(SCENARIO))
