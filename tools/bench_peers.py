"""Output tokens that we and AISimulate simulate in a second of processor time, in the same closed loop.

AISimulate 0.13 is on PyPI as a pointer to NVIDIA's own index, from which pip installs it here. It simulates
drafts of one width (``nextn``); we run a fixed length as well, and ``dspark-async``, which decides in every
step. Start-up is subtracted on both sides: each runs two sizes in one process, and the difference counts.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import simulator as sim

PEER, INDEX = "aisimulate==0.13.*", "https://pypi.nvidia.com/"

PROMPT, OUTPUT, DRAFTS, ACCEPTED = 512, 400, 3, 1.5

SIZES = (1_000, 4_000)
"""Requests of the small run and of the large one: tenths of a second, far above what a run scatters by."""

TIMES = 3
"""Runs of each size, of which the cheapest counts."""

THEIRS = """
import sys, time
from aisimulate import CorePredictionConfig, EngineReplayRunnerFactory
from aisimulate.predict import run_prediction
concurrency, times, prompt, output, drafts, accepted, *sizes = map(float, sys.argv[1:])
for size in map(int, sizes):
    config = CorePredictionConfig.model_validate({
        "traffic": {
            "source": {"type": "synthetic", "input_tokens": int(prompt), "output_tokens": int(output)},
            "load": {"type": "concurrency", "concurrency": int(concurrency)}, "stop": {"requests": size},
        },
        "engine": {
            "mode": "aggregated", "model": "Qwen/Qwen3-32B-FP8", "hardware": "h200_sxm", "backend": "vllm",
            "nextn": int(drafts), "nextn_accepted": accepted, "workers": {"aggregated": {}},
        },
    })
    taken = []
    for _ in range(int(times)):
        start = time.process_time()
        run_prediction(config, stack="engine", runner_factory=EngineReplayRunnerFactory())
        taken.append(time.process_time() - start)
    print(size * output, min(taken))
"""


def main() -> None:
    """Install the peer where it is missing, and print a line for each number of concurrent requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path("runs/peers"), help="where the peer is installed")
    parser.add_argument("--concurrency", default="1,64,200")
    options = parser.parse_args()
    python = installed(options.venv)
    us("dspark-async", 1, SIZES[0])  # loads the compiled loop, or compiles it
    for concurrency in map(int, options.concurrency.split(",")):
        theirs = tokens_per_s(peer(python, concurrency))
        line = f"{concurrency:>4} concurrent  AISimulate {theirs / 1e6:7.2f} M tokens/s"
        for policy in (f"fixed:{DRAFTS}", "dspark-async"):
            ours = tokens_per_s([us(policy, concurrency, requests) for requests in SIZES])
            line += f"  {policy} {ours / 1e6:7.2f} M tokens/s, {ours / theirs:6.1f} times"
        print(line, flush=True)


def installed(venv: Path) -> Path:
    """Install the peer into an environment of its own; returns its Python."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*pip, "--extra-index-url", INDEX, PEER], check=True)
    return python


def tokens_per_s(runs: Sequence[tuple[float, float]]) -> float:
    """Return what the larger of two runs does beyond the smaller one: tokens over seconds."""
    (few, before), (many, after) = runs
    return (many - few) / (after - before)


def peer(python: Path, concurrency: int) -> list[tuple[float, float]]:
    """Output tokens and processor seconds of the peer, for each size."""
    asked = [concurrency, TIMES, PROMPT, OUTPUT, DRAFTS, ACCEPTED, *SIZES]
    command = [str(python), "-I", "-c", THEIRS, *map(str, asked)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [each.split() for each in said.splitlines()[-len(SIZES) :]]
    return [(float(tokens), float(seconds)) for tokens, seconds in lines]


def us(policy: str, concurrency: int, requests: int) -> tuple[float, float]:
    """Return the same of ours, over as many steps as about so many requests take."""
    bench = sim.deployment("deepseek-v4-flash")
    steps = requests * OUTPUT // int(concurrency * (1 + ACCEPTED))
    taken = []
    for _ in range(TIMES):
        start_s = time.process_time()
        run = bench.simulate(policy, concurrency=concurrency, steps=steps, lengths=f"fixed:{PROMPT}/{OUTPUT}")
        taken.append(time.process_time() - start_s)
    return float(run.steps["committed_tokens"].sum()), min(taken)


if __name__ == "__main__":
    main()
