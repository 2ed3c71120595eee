"""Launch scripts are read back as the engine would: flags, types, files, and the rules between them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from simulator.core.errors import BadInputError
from simulator.interop import sglang_tables, tensorrt_llm
from simulator.interop.launch import sglang, vllm
from simulator.interop.launch import tensorrt_llm as trtllm
from simulator.interop.launch.settings import (
    ByBatch,
    Confidence,
    Fixed,
    Launch,
    Settings,
    graph_sizes,
)

FIELDS = json.loads((Path(__file__).parent / "fields.json").read_text())
LAUNCHES = {"vllm": vllm.launch, "sglang": sglang.launch, "tensorrt_llm": trtllm.launch}
BY_BATCH = ByBatch(((1, 5), (17, 2), (65, 0)))

POLICIES = {
    "autoregressive": Settings(
        policy="autoregressive", verification=Fixed(0), drafter=None, block=0, gpus=1, concurrency=32
    ),
    "mtp1": Settings(policy="mtp1", verification=Fixed(1), drafter="mtp1", block=1, gpus=8, concurrency=100),
    "fixed:3": Settings(
        policy="fixed:3", verification=Fixed(3), drafter="dspark", block=5, gpus=1, concurrency=64,
        prefill="whole", memory_share=0.9,
    ),
    "dspark-async": Settings(
        policy="dspark-async", verification=Confidence(), drafter="dspark", block=5, gpus=1, concurrency=160,
        prefill="chunked", kv_tokens=500_000, table=True, calibration=True,
    ),
    "balanced": Settings(
        policy="balanced@eagle3", verification=Confidence(), drafter="eagle3", block=7, gpus=2, concurrency=5
    ),
    "batch-table": Settings(
        policy="batch-table:1-16=5,17-64=2,65-=0", verification=BY_BATCH, drafter="dflash", block=7, gpus=1,
        concurrency=48,
    ),
}  # fmt: skip


def command(made: Launch) -> list[str]:
    """Words of the last command of a launch script, variables left open."""
    text = made.script().replace("\\\n", " ").rstrip().splitlines()[-1]
    return shlex.split(text.removeprefix("exec "))


def options(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            assert word not in found, f"{word} is given twice"
            found[word] = []
        elif found:
            found[list(found)[-1]].append(word)
    return found


def check(value: object, rule: object, files: set[str]) -> None:
    """Hold a value against a rule of fields.json; strings of a command line are read as numbers first."""
    if isinstance(rule, dict):
        assert isinstance(value, dict)
        for key, inner in value.items():
            check(inner, rule[key], files)
        return
    if isinstance(rule, list):
        assert value in rule
        return
    if isinstance(value, str) and rule in ("whole", "whole or -1", "share"):
        value = json.loads(value)
    match rule, value:
        case (("whole" | "whole or -1"), int()) if not isinstance(value, bool):
            assert value > 0 or (rule, value) == ("whole or -1", -1)
        case "share", float():
            assert 0 < value < 1
        case "flag", bool():
            pass
        case "text", str():
            assert value
        case "file", str():
            assert value in files
        case "wholes", list():
            assert value == sorted(set(value))
            assert value[0] > 0
        case "ranges", list():
            assert all(first <= last and length >= 0 for first, last, length in value)
        case _:
            pytest.fail(f"{value!r} is not {rule}")


@pytest.mark.parametrize("engine", LAUNCHES)
@pytest.mark.parametrize("policy", POLICIES)
def test_every_script_is_bash_and_says_its_versions(engine: str, policy: str) -> None:
    made = LAUNCHES[engine](POLICIES[policy])
    script = made.script()
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert re.search(r"^# For \S+ [0-9]+\.[0-9]+.* read 2026-11-30\)\.$", script, re.MULTILINE)
    assert '"${MODEL:?set MODEL' in script
    needs_drafter = policy in ("fixed:3", "dspark-async", "balanced", "batch-table")
    assert ('"${DRAFT_MODEL:?set DRAFT_MODEL' in script) == needs_drafter
    assert all(f"# {note}" in script for note in made.notes)


@pytest.mark.parametrize("policy", POLICIES)
def test_vllm_reads_every_flag(policy: str) -> None:
    settings = POLICIES[policy]
    words = command(vllm.launch(settings))
    assert words[:3] == ["vllm", "serve", "$MODEL"]
    given = options(words[3:])
    for flag, values in given.items():
        assert len(values) == 1
        rule = FIELDS["vllm"]["flags"][flag]
        if rule == "json":
            json.loads(values[0])
        else:
            check(values[0], rule, set())
    sizes = json.loads(given["--compilation-config"][0])["cudagraph_capture_sizes"]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] >= settings.concurrency  # the largest step runs as a graph
    rows = int(given["--max-num-batched-tokens"][0])
    assert rows >= settings.concurrency * (1 + settings.drafts)
    if settings.drafts:
        speculative = json.loads(given["--speculative-config"][0])
        check(speculative, FIELDS["vllm"]["speculative"], set())
        assert ("model" in speculative) == (speculative["method"] != "mtp")
    else:
        assert "--speculative-config" not in given


def test_vllm_says_of_each_policy_what_it_can() -> None:
    of = {name: vllm.speculative_config(each) for name, each in POLICIES.items() if each.drafts}
    assert of["mtp1"] == {"method": "mtp", "num_speculative_tokens": 1}
    assert of["fixed:3"] == {"method": "dspark", "num_speculative_tokens": 3, "model": "$DRAFT_MODEL"}
    assert of["dspark-async"]["enable_adaptive_verification"] is True
    assert of["dspark-async"]["num_speculative_tokens"] == 5
    # 48 requests at most: the range from 65 on cannot come.
    assert of["batch-table"]["num_speculative_tokens_per_batch_size"] == [(1, 16, 5), (17, 48, 2)]
    # A multiple of 1 + 3 rows each: 1, 2, 3, 4, 6, ... 64 requests.
    assert vllm.capture_sizes(POLICIES["fixed:3"]) == [
        4 * n for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    ]
    assert vllm.capture_sizes(POLICIES["dspark-async"])[-1] == 160 * 6
    # 6 rows a request up to 16, 3 rows from 17 on.
    table = vllm.capture_sizes(POLICIES["batch-table"])
    assert table == sorted({6 * n for n in (1, 2, 3, 4, 6, 8, 12, 16)} | {3 * n for n in (17, 24, 32, 48)})
    assert vllm.batched_tokens(POLICIES["dspark-async"]) == 160 * 6 + 2048
    assert vllm.batched_tokens(POLICIES["mtp1"]) == 200


@pytest.mark.parametrize("policy", POLICIES)
def test_sglang_reads_every_flag(policy: str) -> None:
    settings = POLICIES[policy]
    made = sglang.launch(settings)
    words = command(made)
    assert words[:3] == ["python3", "-m", "sglang.launch_server"]
    given = options(words[3:])
    files = {"cost_table.json", "calibration.json"}
    for flag, values in given.items():
        rule = FIELDS["sglang"]["flags"][flag]
        check([int(value) for value in values] if rule == "wholes" else values[0], rule, files)
        assert rule == "wholes" or len(values) == 1
    if mode := made.environment.get("SGLANG_RAGGED_VERIFY_MODE"):
        assert mode in FIELDS["sglang"]["SGLANG_RAGGED_VERIFY_MODE"]
        assert f"export SGLANG_RAGGED_VERIFY_MODE={mode}" in made.script()
    has_table = "--speculative-dspark-sps-table-path" in given
    assert not has_table or made.environment["SGLANG_RAGGED_VERIFY_MODE"] == "compact"  # else a no-op
    if "--speculative-num-steps" in given:  # a chain: one draft a step, and the anchor
        assert given["--speculative-eagle-topk"] == ["1"]
        steps = int(given["--speculative-num-steps"][0])
        assert int(given["--speculative-num-draft-tokens"][0]) == steps + 1
    if given.get("--speculative-algorithm") == ["DSPARK"]:  # they set the block themselves
        assert not {"--speculative-num-steps", "--speculative-num-draft-tokens"} & given.keys()


def test_sglang_schedules_dspark_async_itself_and_says_what_it_cannot() -> None:
    own, fixed = sglang.launch(POLICIES["dspark-async"]), sglang.launch(POLICIES["fixed:3"])
    assert not any("no rule" in note for note in own.notes)
    assert (own.environment, fixed.environment) == (
        {"SGLANG_RAGGED_VERIFY_MODE": "compact"}, {"SGLANG_RAGGED_VERIFY_MODE": "static"}
    )  # fmt: skip
    assert options(command(fixed))["--speculative-dspark-block-size"] == ["3"]
    assert options(command(fixed))["--chunked-prefill-size"] == ["-1"]
    assert any("no length by batch size" in note for note in sglang.launch(POLICIES["batch-table"]).notes)
    assert any("DSPARK alone" in note for note in sglang.launch(POLICIES["balanced"]).notes)
    assert options(command(sglang.launch(POLICIES["batch-table"])))["--speculative-num-draft-tokens"] == ["3"]


@pytest.mark.parametrize("policy", POLICIES)
def test_tensorrt_llm_reads_every_key(policy: str) -> None:
    settings = POLICIES[policy]
    made = trtllm.launch(settings)
    config = yaml.safe_load(made.files["config.yml"])
    check(config, FIELDS["tensorrt_llm"]["arguments"], {"cost_table.json", "calibration.json"})
    assert config["max_batch_size"] == config["cuda_graph_config"]["batch_sizes"][-1] == settings.concurrency
    speculative = config.get("speculative_config", {})
    assert bool(speculative) == bool(settings.drafts)
    drafts = speculative.get("max_draft_len", speculative.get("num_nextn_predict_layers", 0))
    assert config["max_num_tokens"] >= settings.concurrency * (1 + drafts)
    if speculative.get("decoding_type") == "DSpark":
        assert drafts == settings.block  # the checkpoint's, or it is refused


def test_the_drafter_is_filled_into_the_yaml_by_the_shell(tmp_path: Path) -> None:
    made = trtllm.launch(POLICIES["dspark-async"])
    made.write(tmp_path)
    script = (tmp_path / "launch.sh").read_text().replace("exec trtllm-serve", "echo")
    done = subprocess.run(
        ["bash", "-c", script, str(tmp_path / "launch.sh")], capture_output=True, text=True, check=True,
        env={"MODEL": "org/target", "DRAFT_MODEL": "/data/draft", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split() == ["org/target", "--extra_llm_api_options", "config.filled.yml"]
    filled = yaml.safe_load((tmp_path / "config.filled.yml").read_text())
    assert filled["speculative_config"]["speculative_model"] == "/data/draft"


def test_the_shell_fills_checkpoints_into_vllm_s_json(tmp_path: Path) -> None:
    vllm.launch(POLICIES["dspark-async"]).write(tmp_path)
    script = (tmp_path / "launch.sh").read_text().replace("exec vllm", r"printf '%s\n'")
    done = subprocess.run(
        ["bash", "-c", script, str(tmp_path / "launch.sh")], capture_output=True, text=True, check=True,
        env={"MODEL": "org/target", "DRAFT_MODEL": "org/a draft", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[1] == "org/target"
    assert json.loads(words[words.index("--speculative-config") + 1])["model"] == "org/a draft"


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    vllm.launch(POLICIES["mtp1"]).write(tmp_path)
    done = subprocess.run([tmp_path / "launch.sh"], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "set MODEL to the checkpoint of the target" in done.stderr


def test_what_no_engine_runs_is_refused() -> None:
    oracle = Settings(
        policy="oracle", verification=Confidence(), drafter="dspark", block=5, gpus=1, concurrency=8
    )
    own = Settings(policy="fixed:2", verification=Fixed(2), drafter="medusa", block=4, gpus=1, concurrency=8)
    for start in LAUNCHES.values():
        with pytest.raises(BadInputError, match="no engine can run it"):
            start(oracle)
        with pytest.raises(BadInputError, match=r"dspark, dflash, eagle3, mtp"):
            start(own)


def test_sizes_of_graphs_pad_a_step_by_less_than_a_half() -> None:
    assert graph_sizes(1) == [1]
    assert graph_sizes(10) == [1, 2, 3, 4, 6, 8, 10]
    for most in (5, 48, 100, 1000):
        sizes = graph_sizes(most)
        padded = [next(size for size in sizes if size >= rows) / rows for rows in range(1, most + 1)]
        assert sizes[-1] == most
        assert max(padded) < 1.5


def test_tables_that_are_launched_with_are_what_engines_read(tmp_path: Path) -> None:
    import simulator as sim

    flash = sim.deployment("deepseek-v4-flash")
    for engine, load in (("sglang", sglang_tables.load_table), ("trtllm", tensorrt_llm.load_table)):
        made = flash.launch("dspark-async", engine, concurrency=64)
        made.write(tmp_path / engine)
        table = load(tmp_path / engine / "cost_table.json")
        cost = table.cost if isinstance(table, tensorrt_llm.EngineTable) else table
        step = flash.plan("dspark-async").cost
        assert cost.step_time_s(40, 120) == pytest.approx(step.step_time_s(40, 120), rel=0.02)
    assert "cost_table.json" not in flash.launch("fixed:3@dspark", "sglang", concurrency=64).files
    assert "cost_table.json" not in flash.launch("dspark-async", "vllm", concurrency=64).files
    with pytest.raises(BadInputError, match="vllm, sglang, trtllm"):
        flash.launch("mtp1", "vllmm", concurrency=4)


def test_field_rules_of_the_reference_hold(tmp_path: Path) -> None:
    reference = Path(__file__).parents[4] / "shared" / "reference" / "engines.md"
    if not reference.is_file():
        pytest.skip("the reference of engines' files is not here")
    text = reference.read_text()
    import simulator as sim

    flash = sim.deployment("deepseek-v4-flash")
    flash.launch("dspark-async", "sglang", concurrency=64).write(tmp_path)
    keys = json.loads((tmp_path / "cost_table.json").read_text())
    additive = re.search(r"\*\*SGLang additive table\*\* \(seconds\) `(.+?)`", text)
    assert additive is not None
    assert keys.keys() == json.loads(additive[1]).keys()
    flash.launch("dspark-async", "trtllm", concurrency=64).write(tmp_path)
    table = re.search(r"\*\*TensorRT-LLM table\*\* \(ms\) `(.+?)`", text)
    assert table is not None
    assert json.loads((tmp_path / "cost_table.json").read_text()).keys() == json.loads(table[1]).keys()
