"""Scenario files: the example is valid, and each error names the file, the key and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from simulator.core.errors import BadInputError
from simulator.planning.scenario.example import EXAMPLE
from simulator.planning.scenario.reading import load_scenario
from simulator.traffic.sources import ReplayTraffic


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "scenario.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_example_is_valid(tmp_path: Path) -> None:
    example = load_scenario(written(tmp_path, EXAMPLE))
    assert example.demand().rate_per_s == 120
    assert example.parsed_sla().terms[2].traffic_class == "chat"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("headroom", "headrom", r"fleet\.headrom: unknown key; did you mean 'headroom'"),
        ("share: 0.2", "shar: 0.2", r"traffic\.classes\.code\.shar: unknown key; did you mean 'share'"),
        ("policies:", "polices:", "did you mean 'policies'"),
        ("# gpus: 1 ", "gpus: none #", r"replica\.gpus"),
        ("profile: deepseek-v4-flash", "", "profile: is missing"),
        ("name: Chat", "name: [", "is not YAML"),
        ("headroom: 20%", "headroom: 0.2", r"fleet\.headroom: needs a percent sign.*write 0\.2% or 20%"),
        ("headroom: 20%", "headroom: 20", r"fleet\.headroom: needs a percent sign \(got 20\); write 20%"),
        ("precision: 2%", "precision: 2", r"search\.precision: needs a percent sign"),
        ('["0%", "25%"', '["0%", 25', r"traffic\.growth\.1: needs a percent sign \(got 25\); write 25%"),
        ("gpu_hour: 2.0", "gpu_hour: .inf", r"price\.gpu_hour, line \d+: is not a finite number"),
        ("gpu_hour: 2.0", "gpu_hour: .nan", r"price\.gpu_hour, line \d+: is not a finite number"),
        ("sla:", "sla:\nnot_sla:", r"not_sla: unknown key; did you mean 'sla'"),
        ("acceptance: []", "acceptance: length:3@5", r"acceptance: is not a list.*write \[length:3@5\]"),
        ("headroom: 20%", "headroom: '0.2'", r"yaml: fleet\.headroom: needs a percent.*0\.2% or 20%"),
        ("headroom: 20%", "headroom: -5%", r"yaml: fleet\.headroom: is not a percentage of 0% or more"),
        ("headroom: 20%", "headroom: [20%]", r"fleet\.headroom: is not text.*write it without brackets"),
        ('["0%", "25%"', '["0%", "25"', r"yaml: traffic\.growth\.1: needs a percent sign.*write 25%"),
        ("tps_mean>=80", "tps_mean: 80", r"scenario.yaml: sla\.0: is not text.*as in sla: \[tps_mean>=80"),
        ("tps_mean>=80", "tps_mean>=", r"scenario.yaml: sla\.0: is not a term"),
        ("chat:ttft", "chatt:ttft", r"scenario.yaml: sla: no traffic class 'chatt'.*one of chat, code"),
        ('"fixed:3"', "fixed: 3", r'policies\.1: is not text.*write "fixed:3", in quotes'),
        ("acceptance: []", "acceptance: [dspark: x]", r'acceptance\.0: is not text.*write "dspark=x"'),
        ('"fixed:3"', "fixd:3", r"scenario.yaml: policies\.1: is not a policy"),
        ("diurnal:120/s,peak=1.6", "poisson:12", r"scenario.yaml: traffic\.arrivals: has no unit"),
    ],
)  # fmt: skip
def test_typos_are_answered_with_the_nearest_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        load_scenario(written(tmp_path, EXAMPLE.replace(old, new, 1)))


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("tps_p10>=60", r"write \[tps_p10>=60\]"),
        ("tps_p10>=60, ttft_p99<=2s", r"write \[tps_p10>=60, ttft_p99<=2s\]"),
        (80, r"as in sla: \[tps_mean>=80"),
        ({"tps_p10": 60}, r"as in sla: \[tps_mean>=80"),
    ],
)
def test_an_sla_that_is_no_list_is_refused_with_what_to_write(
    given: object, remedy: str, tmp_path: Path
) -> None:
    """The file that the remedy gives is read."""
    with pytest.raises(BadInputError, match=rf"scenario.yaml: sla: is not a list.*{remedy}") as caught:
        load_scenario(written(tmp_path, yaml.safe_load(EXAMPLE) | {"sla": given}))
    remedied = str(caught.value.remedy).removeprefix("write ").removeprefix("as in sla: ")
    assert load_scenario(written(tmp_path, yaml.safe_load(EXAMPLE) | {"sla": yaml.safe_load(remedied)})).sla


@pytest.mark.parametrize("key", ["sla", "policies", "traffic", "price"])
def test_an_empty_key_is_named_with_what_belongs_there(tmp_path: Path, key: str) -> None:
    content = yaml.safe_load(EXAMPLE) | {key: None}
    with pytest.raises(BadInputError, match=f"{key}: is empty; (as in|give it a value)"):
        load_scenario(written(tmp_path, content))


def test_a_recording_is_read_once_and_anew_when_its_file_has_changed(tmp_path: Path) -> None:
    head = "arrival_s,prompt_tokens,output_tokens\n"
    trace = tmp_path / "trace.csv"
    trace.write_text(head + "0,10,20\n1,10,20\n2,10,20\n")
    asked = {"name": "played", "profile": "deepseek-v4-flash", "traffic": {"replay": "trace.csv"}}
    scenario = load_scenario(written(tmp_path, asked | {"sla": ["tps_p10>=60"]}))
    first = scenario.demand(tmp_path)
    assert scenario.demand(tmp_path) is first
    trace.write_text(head + "0,10,20\n1,10,20\n2,10,20\n3,10,20\n4,10,20\n")
    again = scenario.demand(tmp_path)
    assert isinstance(again, ReplayTraffic)
    assert len(again.recorded) == 5
