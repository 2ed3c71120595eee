"""Everything that reads what people write: seeds to spoil, and what takes each of them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import simulator
from simulator.acceptance.trace_file import load_trace
from simulator.cli.app import main
from simulator.core.errors import InfeasibleError
from simulator.core.units import numbers, parse_duration_s, parse_percent, parse_rate_per_s
from simulator.deployment.acceptance_text import parse_acceptance
from simulator.deployment.beliefs import load_table
from simulator.deployment.engine_files import profile_of_rounds, profile_of_table
from simulator.deployment.measured_steps import fitted_profile
from simulator.deployment.profile import load_profile
from simulator.hardware.drafters import parse_drafter
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import smallest_layout
from simulator.hardware.models import load_model, read_config
from simulator.hardware.steps.formula import FormulaTimes
from simulator.interop.acceptance_files import load_acceptance
from simulator.interop.sglang_dump import load_step_dump
from simulator.interop.sglang_profiler import load_rounds
from simulator.parallel.cells import run_cells
from simulator.planning.checks import checked_scenario
from simulator.planning.scenario.example import EXAMPLE
from simulator.schedulers.parse import parse_policy
from simulator.sla.terms import parse_sla
from simulator.traffic.lengths import parse_lengths
from simulator.traffic.parse import parse_arrivals
from simulator.traffic.recorded.files import read_workload
from tests.fuzz.mutations import MUTATIONS, spoiled_json, spoiled_text
from tests.interop.test_acceptance_files import BENCH, VLLM
from tests.interop.test_profiler_rounds import round_of
from tests.interop.test_step_dump import dump_of, request, server_info
from tests.interop.test_tables import ADDITIVE, DIAGONAL, TENSORRT

REPOSITORY = Path(simulator.__file__).parents[1]
TINY = REPOSITORY / "traces" / "models" / "tiny"
Take = Callable[[], object]
SOUND: list[tuple[Mapping[str, bytes], Callable[[Path], object]]] = []
"""Files before they are spoiled, with their readers."""


@dataclass(frozen=True, slots=True)
class Case:
    """One spoiled input: what to call, what the message must name, and the input itself for a report."""

    take: Take
    named: str
    shown: str


Surface = Callable[[Path, random.Random], Case]


def file_cases(seeds: Mapping[str, bytes], take: Callable[[Path], object]) -> Surface:
    """Spoil a file of several makes; the error must name the file. Sound ones are kept for a test of them."""
    SOUND.append((seeds, take))

    def draw(folder: Path, rng: random.Random) -> Case:
        name, content = rng.choice(sorted(seeds.items()))
        path = folder / f"spoiled-{name}"
        path.write_bytes(rng.choice(MUTATIONS)(content, rng))
        return Case(
            lambda: take(path), path.name, path.read_bytes()[:400].decode("utf-8", "backslashreplace")
        )

    return draw


def text_cases(seeds: Mapping[str, Callable[[str], object]]) -> Surface:
    """Spoil a text of an option; the error must show what was got or which part of it is wrong."""

    def draw(folder: Path, rng: random.Random) -> Case:
        text, take = rng.choice(sorted(seeds.items(), key=lambda seed: seed[0]))
        spoiled = spoiled_text(text, rng)
        return Case(lambda: take(spoiled), "", repr(spoiled))

    return draw


def command_line(folder: Path, rng: random.Random) -> Case:
    """Spoil a word of a short command, run in this process."""
    words = list(rng.choice(COMMANDS))
    at = rng.randrange(1, len(words))
    if "/" not in words[at]:
        words[at] = spoiled_text(words[at], rng).replace("\x00", "")
    words = [word.replace("OUT", str(folder / "out")) for word in words]
    return Case(lambda: run_main(words), "", repr(words))


def model_folder(folder: Path, rng: random.Random) -> Case:
    """Spoil a file of a model folder."""
    from simulator.live.models.pairs import load_draft
    from simulator.live.models.targets import load_target

    kind = rng.choice(("target", "dspark", "mtp"))
    place = folder / "model"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(TINY / kind, place)
    path = place / rng.choice(("config.json", "config.json", "config.json", "model.safetensors"))
    content = path.read_bytes()
    spoil = rng.choice((*MUTATIONS, spoiled_json, spoiled_json)) if path.suffix == ".json" else MUTATIONS[0]
    path.write_bytes(spoil(content, rng))
    take = load_target if kind == "target" else load_draft
    return Case(lambda: take(place), "model", path.read_bytes()[:400].decode("utf-8", "backslashreplace"))


def run_directory(folder: Path, rng: random.Random) -> Case:
    """Spoil a file of a finished run: it is computed again or refused, and never taken for other data."""
    place = folder / "run"
    shutil.rmtree(place, ignore_errors=True)
    run_cells(square, [1, 2, 3], directory=place)
    path = rng.choice(sorted(each for each in place.rglob("*") if each.is_file()))
    path.write_bytes(MUTATIONS[0](path.read_bytes(), rng))

    def resume() -> None:
        rows = run_cells(square, [1, 2, 3], directory=place)
        assert [row["square"] for row in rows] == [1, 4, 9], rows

    return Case(resume, "run", str(path.relative_to(folder)))


def square(number: int) -> dict[str, int]:
    """A cell's work."""
    return {"square": number * number}


def run_main(words: list[str]) -> None:
    """Run the command line with these words; raises ``SystemExit`` with its code."""
    import sys

    before, sys.argv = sys.argv, words
    try:
        main()
    finally:
        sys.argv = before


_FAST = ("--seeds", "1", "--steps", "60", "--workers", "1")
_FLASH = ("--profile", "deepseek-v4-flash")
COMMANDS = (
    ("dspark-sim", "frontier", *_FLASH, "--policy", "fixed:3", "--concurrency", "2,4", *_FAST,
     "--out", "OUT/f.csv"),
    ("dspark-sim", "compare", *_FLASH, "--sla", "p10>=80", "--concurrency", "2,4", *_FAST, "--out", "OUT/c"),
    ("dspark-sim", "simulate", *_FLASH, "--policy", "dspark-async:2", "--concurrency", "2", "--traffic",
     "gamma:5/s,cv=2", "--lengths", "lognormal:100,cv=1/20,cv=1", "--requests", "20", "--seed", "1",
     "--out", "OUT/s"),
    ("dspark-sim", "acceptance", "show", "0.5*qwen3-4b-chat+0.5*qwen3-4b-math", "--thresholds", "0,0.5",
     "--out", "OUT/a.csv"),
    ("dspark-sim", "fleet", *_FLASH, "--traffic", "poisson:5/s", "--lengths", "fixed:50/20",
     "--sla", "ttft_p99<=2s", "--replicas", "2", "--pods", "1", "--duration", "20s", "--workers", "1",
     "--out", "OUT/fl"),
    ("dspark-sim", "regret", *_FLASH, "--believed", "floor:4", "--concurrency", "4", "--seeds", "2",
     "--workers", "1", "--lengths", "fixed:50/20", "--out", "OUT/r.csv"),
    ("dspark-sim", "list"),
    ("dspark-sim", "frontier", "--model", "qwen3-8b", "--gpu", "h100", "--tp", "1", "--precision", "fp8",
     "--drafter", "dspark:5l@7", "--acceptance", "length:3@7", "--policy", "fixed:3", "--concurrency", "2",
     *_FAST, "--out", "OUT/h.csv"),
    ("dspark-sim", "export", "sglang", "deepseek-v4-flash", "--context", "100", "--out", "OUT/t.json"),
)  # fmt: skip

TEXTS: Mapping[str, Callable[[str], object]] = {
    "dspark-async:2@dspark": parse_policy, "tiered:0,2,4:2": parse_policy, "threshold:0.6": parse_policy,
    "batch-table:1-16=5,17-=2": parse_policy, "length:3.5@5": parse_acceptance,
    "rate:0.34@7": parse_acceptance,
    "conditional:0.9,0.8,0.7": parse_acceptance, "0.6*qwen3-4b-chat@5+0.4*length:2@5": parse_acceptance,
    "lognormal:1500,cv=1,max=9000/300,cv=0.8": parse_lengths, "geometric:300/fixed:20": parse_lengths,
    "gamma:12/s,cv=3": parse_arrivals, "diurnal:40/min,peak=2": parse_arrivals,
    "ttft_p99<=2s": lambda text: parse_sla([text]),
    "chat:ttft+16*tpot_p95<=900ms": lambda text: parse_sla([text]),
    "0,0.1,...,0.9": lambda text: numbers(text, float, "--thresholds"),
    "24h": lambda text: parse_duration_s(text, field="--duration"),
    "600rpm": lambda text: parse_rate_per_s(text, field="rate"),
    "dspark:5l@7": parse_drafter, "mtp:3": parse_drafter, "h100": load_gpu, "qwen3-32b": load_model,
    "20%": lambda text: parse_percent(text, "headroom"),
}  # fmt: skip


def _contents(pattern: str, folder: Path = REPOSITORY) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.glob(pattern)):
        yield path.name, path.read_bytes()


def traffic_seeds() -> dict[str, bytes]:
    """Small recordings in several layouts."""
    rows = [(index * 250, 100 + index, 20 + index % 7) for index in range(120)]
    return {
        "generic.csv": b"arrival_s,prompt_tokens,output_tokens\n"
        + b"".join(b"%.3f,%d,%d\n" % (ms / 1000, prompt, output) for ms, prompt, output in rows),
        "azure.csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + b"".join(
            b"2023-11-16 18:17:%02d.%03d0000,%d,%d\n" % (ms // 1000, ms % 1000, prompt, output)
            for ms, prompt, output in rows
        ),
        "mooncake.jsonl": b"".join(
            b'{"timestamp": %d, "input_length": %d, "output_length": %d, "hash_ids": [%d]}\n'
            % (ms, prompt, output, ms)
            for ms, prompt, output in rows
        ),
    }


def engine_seeds() -> dict[str, bytes]:
    """Logs, counters and dumps in the forms that engines print, as the tests of each reader write them."""
    dump = server_info(dump_of("compact", *(request(4, each % 4) for each in range(40))))
    return {
        "vllm.log": f"{VLLM}\n".encode() * 3,
        "bench.json": json.dumps(BENCH).encode(),
        "server_info.json": json.dumps(dump).encode(),
    }


def rounds_seeds() -> dict[str, bytes]:
    """Rounds of SGLang's profiler."""
    sizes = [(size, share) for size in (1, 4, 16) for share in (0.25, None)]
    rounds = [round_of(size, 0.01 + 0.0005 * size * (share or 2), share) for size, share in sizes]
    return {"r.rounds.jsonl": "".join(json.dumps(each) + "\n" for each in rounds).encode()}


def config_seeds() -> dict[str, bytes]:
    """Configurations of models: dense, with experts, with latent attention and windows."""
    dense = {
        "hidden_size": 4096, "head_dim": 128, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 36, "intermediate_size": 12288, "vocab_size": 151936,
        "tie_word_embeddings": False,
    }  # fmt: skip
    experts = {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    latent = {
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "q_lora_rank": 1536, "first_k_dense_replace": 3, "n_shared_experts": 1,
    }  # fmt: skip
    windows = {"sliding_window": 1024, "layer_types": ["sliding_attention", "full_attention"] * 18}
    return {
        "dense.json": json.dumps(dense).encode(),
        "experts.json": json.dumps(dense | experts | latent).encode(),
        "windows.json": json.dumps({"text_config": dense | windows}).encode(),
    }


def sized(path: Path) -> object:
    """Read a configuration and lay it out; that it does not fit is an answer."""
    model = read_config(path)
    assert model.parameters > 0
    try:
        laid_out = smallest_layout(model, load_gpu("h200"), "bf16")
        assert FormulaTimes(laid_out).operations_s(64) > 0
    except InfeasibleError:
        pass
    return model


def imported(path: Path) -> object:
    """Import an engine's file by what it looks like."""
    if path.suffix == ".jsonl":
        return profile_of_rounds(path, name="fuzzed")
    return profile_of_table(path, "sglang", name="fuzzed")


def steps_seed() -> bytes:
    """Steps that somebody timed."""
    rows = [
        f"{count},{count * each},{count * context},{0.008 + 2e-4 * count + 3e-5 * count * each:.6f}"
        for count in (1, 8, 32) for each in (1, 3, 6) for context in (500, 4000)
    ]  # fmt: skip
    return "\n".join(["requests,batch_tokens,context_tokens,step_time_s", *rows]).encode()


SURFACES: Mapping[str, Surface] = {
    "scenario": file_cases({"s.yaml": EXAMPLE.encode()}, checked_scenario),
    "profile": file_cases(dict(_contents("profiles/deepseek-v4-*.json")), lambda path: load_profile(path)),
    "table": file_cases(
        {
            "sglang.json": json.dumps(DIAGONAL).encode(),
            "additive.json": json.dumps(ADDITIVE).encode(),
            "trt.json": json.dumps(TENSORRT).encode(),
            **dict(_contents("profiles/deepseek-v4-flash.json")),
        },
        load_table,
    ),
    "engine": file_cases(engine_seeds(), lambda path: load_acceptance(path)),
    "dump": file_cases({"server_info.json": engine_seeds()["server_info.json"]}, load_step_dump),
    "rounds": file_cases(rounds_seeds(), lambda path: load_rounds(path)),
    "trace": file_cases(dict(_contents("traces/acceptance/tiny-dspark-code-*.parquet")), load_trace),
    "traffic": file_cases(traffic_seeds(), lambda path: read_workload(path)),
    "text": text_cases(TEXTS),
    "command": command_line,
    "model": model_folder,
    "run": run_directory,
    "config": file_cases(config_seeds(), sized),
    "import": file_cases(
        {
            "sglang.json": json.dumps(DIAGONAL).encode(),
            "additive.json": json.dumps(ADDITIVE).encode(),
            **rounds_seeds(),
        },
        imported,
    ),
    "steps": file_cases({"steps.csv": steps_seed()}, lambda path: fitted_profile(path, name="fuzzed")),
}
"""By the name that ``scripts/fuzz --kind`` takes."""
