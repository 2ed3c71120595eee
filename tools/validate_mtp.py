"""Hold speculative passes of measured kernels against published runs with and without MTP; print Markdown.

    python -m tools.validate_mtp

The pairs of ``profiles/sources/inferencex-mtp.json`` differ in MTP alone. The source states no accepted
length: one is fitted, on every other pair, and the rest is predicted.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from simulator.api.workbench import Workbench, deployment
from simulator.core.files import data_directory
from simulator.core.reading import read_json
from simulator.hardware.curves import composed
from simulator.hardware.drafters import parse_drafter
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import layout
from simulator.hardware.models import load_model
from simulator.hardware.steps.kernel_modes import Engine, Setting
from simulator.hardware.steps.kernels import KernelTables

ENGINE: Engine = "trtllm"

PROBED_LENGTH = 2.5
"""Accepted length at which the time of a step is taken; it hardly depends on it."""

SHORTEST = 0.8
"""InferenceX draws each length from this share of the nominal one up to it; here all have the mean."""

STEPS = 500


@cache
def bench(gpus: int, experts_over: int, accepted: float) -> Workbench:
    """Return DeepSeek-R1 in NVFP4 on so many B200, MTP with three drafts and such an accepted length."""
    model, drafter = load_model("deepseek-ai/DeepSeek-R1"), parse_drafter("mtp:3")
    laid_out = layout(model, load_gpu("b200"), gpus, "fp4")
    setting = Setting(experts_over=experts_over, small_cache=True)
    tables = KernelTables(model, laid_out.gpu, gpus, "fp4", setting)
    profile = composed(laid_out, tables, tables.gates(), ENGINE, [drafter])
    return deployment(profile, {"mtp": f"length:{accepted}@3"})


def tpot_ms(pair: dict[str, Any], policy: str, accepted: float) -> float:
    """Return the mean time per output token in a closed loop with chunked prefill, ms."""
    prompt, output = (int(pair[name]) for name in ("prompt_tokens", "output_tokens"))
    lengths = "/".join(f"fixed:{round((1 + SHORTEST) / 2 * tokens)}" for tokens in (prompt, output))
    run = bench(pair["gpus"], pair["experts_over"], accepted).simulate(
        policy, concurrency=pair["requests"], lengths=lengths, steps=max(STEPS, int(1.3 * output)),
        prefill="chunked", chunk_tokens=8192,
    )  # fmt: skip
    return 1e3 * float(run.requests["tpot_s"].mean())


def main() -> None:
    """Fit one accepted length, predict the other half, print all."""
    source: Any = read_json(data_directory("profiles") / "sources" / "inferencex-mtp.json")
    pairs = source["pairs"]
    plain = [tpot_ms(pair, "autoregressive", PROBED_LENGTH) for pair in pairs]
    probed = [PROBED_LENGTH * tpot_ms(pair, "fixed:3@mtp", PROBED_LENGTH) for pair in pairs]
    implied = [step / pair["mtp_ms"] for step, pair in zip(probed, pairs, strict=True)]
    accepted = float(np.median(implied[::2]))
    print(f"accepted length fitted to every other pair: {accepted:.2f}\n")
    print("| GPUs | prompt | output | requests | without, measured | predicted | error "
          "| with, measured | predicted | error | |\n|" + " ---: |" * 10 + " --- |")  # fmt: skip
    errors = []
    for index, (pair, without, step) in enumerate(zip(pairs, plain, probed, strict=True)):
        both = (without, pair["plain_ms"]), (step / accepted, pair["mtp_ms"])
        shown = " | ".join(f"{out:.2f} | {said:.2f} | {said / out - 1:+.0%}" for said, out in both)
        sizes = " | ".join(str(pair[name]) for name in ("gpus", "prompt_tokens", "output_tokens", "requests"))
        print(f"| {sizes} | {shown} | {'' if index % 2 else 'fitted'} |")
        if index % 2:
            errors.append(abs(both[1][0] / both[1][1] - 1))
    print(f"\nwith MTP, pairs that nothing was fitted to: median error {np.median(errors):.1%}")


if __name__ == "__main__":
    main()
