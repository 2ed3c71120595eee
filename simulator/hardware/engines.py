"""What a serving engine adds to kernels: time of its host, and how many prompt tokens it puts into a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.hardware.gpus import Gpu
from simulator.hardware.steps.kernel_modes import Engine


@dataclass(frozen=True, slots=True)
class Host:
    """Time in which a GPU waits for its host, seconds. step_s: of each step. pass_s: of a drafter's pass."""

    step_s: float
    pass_s: float
    source: str

    @property
    def line(self) -> str:
        """Both times and where they are from."""
        step, draft = 1e3 * self.step_s, 1e3 * self.pass_s
        return f"host time {step:.2f} ms a step, {draft:.2f} ms a pass of a drafter: {self.source}"


_FITTED = "fitted to half of the published end-to-end runs, by a hash of their ids (docs/validation.md)"

BLOCKING_STEP_S = 1.53e-3
"""Host time of a step of vLLM before 0.14, whose GPU waits while a step is scheduled; fitted likewise."""

HOSTS: Mapping[Engine, Host] = {
    "vllm": Host(
        0.22e-3, 0.45e-3,
        f"{_FITTED}; from 0.14 on, which schedules ahead (before it: {1e3 * BLOCKING_STEP_S:.2f} ms a step); "
        "a pass: 0.25 and 0.65 ms remain of two published drafters on H100",
    ),
    "sglang": Host(2.04e-3, 2.04e-3, f"{_FITTED}; a pass waits as a step does: two published gains agree"),
    "trtllm": Host(0.20e-3, 0.0, f"{_FITTED}; of a drafter's pass nothing is published"),
}  # fmt: skip
"""By engine: kernel tables hold none of it. A pass of vLLM's drafter is the middle of two that
docs/validation.md takes apart (Llama-3.1-8B on one H100, EAGLE-1 and EAGLE-3); with SGLang's the gains of
Qwen3-30B-A3B on two H100, 0.72 and 0.79, come out as 0.72 and 0.80."""

FORMULA_ENGINE: Engine = "vllm"
"""Whose host and chunk stand beside the formula where no engine is named: the one that runs on every GPU."""


def parse_host(text: str) -> Host:
    """Read ``1.2ms``, or ``1.2ms,0.3ms`` with a drafter's pass; ``BadInputError`` for anything else.

    >>> parse_host("1.2ms,300us").pass_s
    0.0003
    """
    parts = text.split(",")
    if len(parts) > 2:
        raise BadInputError(
            "takes one or two durations", source="host_time", value=text, remedy="as in 1.2ms or 1.2ms,0.3ms"
        )
    times = [parse_duration_s(part, field="host_time") for part in parts]
    if min(times) < 0:
        raise BadInputError("must not be negative", source="host_time", value=text, remedy="as in 1.2ms")
    return Host(times[0], times[1] if len(times) > 1 else 0.0, "as given")


def chunk_tokens(engine: Engine, gpu: Gpu) -> int:
    """Prompt tokens of a step at most, as the engine sets it where nobody does.

    vLLM (``engine/arg_utils.py``, of its server): 8,192 from 70 GiB of memory on except on A100, else 2,048.
    SGLang (``server_args.py``): 2,048 below 35 GiB, 4,096 below 60, 8,192 below 160, else 16,384.
    TensorRT-LLM (``max_num_tokens``): 8,192. Read in November 2026.
    """
    memory = gpu.memory_bytes / 2**30
    if engine == "vllm":
        return 8192 if memory >= 70 and gpu.name != "a100" else 2048
    if engine == "sglang":
        return next((size for least, size in ((160, 16384), (60, 8192), (35, 4096)) if memory >= least), 2048)
    return 8192


def prefills(engine: Engine) -> Literal["chunked", "whole"]:
    """Return where prompts are prefilled, as the engine does where nobody says.

    vLLM and TensorRT-LLM put prompt rows into decode steps. SGLang (``server_args.py``,
    ``enable_mixed_chunk`` is off) runs steps of prompts alone, before any decode step. Read in November 2026.
    """
    return "whole" if engine == "sglang" else "chunked"


def runs_on(engine: Engine, gpu: Gpu) -> None:
    """Raise ``BadInputError`` for an engine that does not run on the GPU."""
    if engine == "trtllm" and not gpu.title.startswith("NVIDIA"):
        raise BadInputError(
            f"does not run on {gpu.title}", source="engine", value=engine, remedy="vllm or sglang"
        )


def as_served(profile: Profile, engine: Engine, gpu: Gpu, host: Host) -> Profile:
    """Return a profile of kernels as an engine serves it: with its host's time and its chunk."""
    if not isinstance(profile.step, AdditiveSpec):
        raise TypeError(f"kernels compose additive costs, not {profile.step.type}")
    step = profile.step.model_copy(update={"bias_s": profile.step.bias_s + host.step_s})
    drafters = {name: _with_host(spec, host) for name, spec in (profile.drafters or {}).items()}
    notes = "; ".join(filter(None, [profile.provenance.notes, host.line]))
    return profile.model_copy(
        update={
            "step": step, "drafters": drafters or None,
            "chunk_tokens": chunk_tokens(engine, gpu),
            "provenance": profile.provenance.model_copy(update={"notes": notes}),
        }
    )  # fmt: skip


def _with_host(spec: DraftSpec, host: Host) -> DraftSpec:
    return spec.model_copy(update={"pass_s": tuple(each + host.pass_s for each in spec.pass_s)})
