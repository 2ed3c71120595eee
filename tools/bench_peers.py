"""Output tokens that we and AISimulate simulate in a second of processor time, in the same closed loop.

AISimulate 0.13 is on PyPI as a pointer to NVIDIA's own index, from which pip installs it here. It simulates
drafts of one width (``nextn``); we run a fixed length as well, and ``dspark-async``, which decides in every
step. Start-up is subtracted on both sides: each runs two sizes, and the difference counts.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import simulator as sim

PEER, INDEX = "aisimulate==0.13.*", "https://pypi.nvidia.com/"

PROMPT, OUTPUT, DRAFTS, ACCEPTED = 512, 400, 3, 1.5

TURNS = (20, 120)
"""Requests for each slot, small and large run; ten times as many at one slot."""

TIMES = 2
"""Runs of each size, of which the cheapest counts."""

SCENARIO = """\
traffic:
  source: {{type: synthetic, input_tokens: {prompt}, output_tokens: {output}}}
  load: {{type: concurrency, concurrency: {concurrency}}}
  stop: {{requests: {requests}}}
engine:
  mode: aggregated
  model: Qwen/Qwen3-32B-FP8
  hardware: h200_sxm
  backend: vllm
  nextn: {drafts}
  nextn_accepted: {accepted}
  workers: {{aggregated: {{}}}}
execution:
  resources: {{initialization_timeout_seconds: 600, shutdown_timeout_seconds: 120}}
"""


def main() -> None:
    """Install the peer where it is missing, and print a line for each number of concurrent requests."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", type=Path, default=Path("runs/peers"), help="where the peer is installed")
    parser.add_argument("--concurrency", default="1,64,200")
    options = parser.parse_args()
    command = installed(options.venv)
    for concurrency in map(int, options.concurrency.split(",")):
        turns = [each * (10 if concurrency == 1 else 1) for each in TURNS]
        sizes = [each * concurrency for each in turns]
        theirs = tokens_per_s(partial(peer, command, concurrency), sizes)
        line = f"{concurrency:>4} concurrent  AISimulate {theirs / 1e6:7.2f} M tokens/s"
        for policy in (f"fixed:{DRAFTS}", "dspark-async"):
            ours = tokens_per_s(partial(us, policy, concurrency), sizes)
            line += f"  {policy} {ours / 1e6:7.2f} M tokens/s, {ours / theirs:6.1f} times"
        print(line, flush=True)


def installed(venv: Path) -> Path:
    """Install the peer into an environment of its own; returns its command."""
    command = venv / "bin" / "aisimulate"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [str(venv / "bin" / "pip"), "install", "--quiet", "--only-binary", ":all:"]
        subprocess.run([*pip, "--extra-index-url", INDEX, PEER], check=True)
    return command


def tokens_per_s(run: Callable[[int], tuple[float, float]], sizes: list[int]) -> float:
    """Return what the larger run does beyond the smaller one: tokens over seconds."""
    small, large = ([run(size) for _ in range(TIMES)] for size in sizes)
    (few, before), (many, after) = (min(each, key=lambda one: one[1]) for each in (small, large))
    return (many - few) / (after - before)


def peer(command: Path, concurrency: int, requests: int) -> tuple[float, float]:
    """Output tokens and processor seconds of one run of the peer, its child processes included."""
    with tempfile.TemporaryDirectory() as folder:
        scenario = Path(folder) / "scenario.yaml"
        scenario.write_text(
            SCENARIO.format(
                prompt=PROMPT, output=OUTPUT, concurrency=concurrency, requests=requests, drafts=DRAFTS,
                accepted=ACCEPTED,
            )
        )  # fmt: skip
        start_s = _children_s()
        subprocess.run(
            [command, "predict", "-c", scenario, "--output-dir", Path(folder) / "out"],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        return float(requests * OUTPUT), _children_s() - start_s


def us(policy: str, concurrency: int, requests: int) -> tuple[float, float]:
    """Return the same of one run of ours, of as many steps as about so many requests take."""
    bench = sim.deployment("deepseek-v4-flash")
    steps = max(requests * OUTPUT // int(concurrency * (1 + ACCEPTED)), 100)
    start_s = time.process_time()
    run = bench.simulate(policy, concurrency=concurrency, steps=steps, lengths=f"fixed:{PROMPT}/{OUTPUT}")
    return float(run.steps["committed_tokens"].sum()), time.process_time() - start_s


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
