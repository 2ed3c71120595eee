"""What a serving engine adds to kernels, and how many prompt tokens it puts into a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.core.errors import BadInputError
from simulator.core.units import parse_duration_s
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec, DraftSpec
from simulator.hardware.gpus import Gpu
from simulator.hardware.models import ModelShape, Precision
from simulator.hardware.steps.kernel_modes import Engine

Kind = Literal["16 bits", "fewer bits", "latent"]
"""Kinds of models whose engines add different times: by precision of weights, or with latent attention."""


def kind_of(model: ModelShape, precision: Precision) -> Kind:
    """Return which times an engine adds to a model."""
    if model.latent is not None or model.compressed is not None:
        return "latent"
    return "16 bits" if precision == "bf16" else "fewer bits"


@dataclass(frozen=True, slots=True)
class Host:
    """What an engine adds to kernels, seconds.

    step_s: of each step. pass_s: of a drafter's pass. request_s: of each request in a step. prompts: share by
    which rows of prompts are dearer than their kernels measured one at a time.
    """

    step_s: float
    pass_s: float
    source: str
    request_s: float = 0.0
    prompts: float = 0.0

    @property
    def line(self) -> str:
        """All of it, and where it is from."""
        step, draft, each = 1e3 * self.step_s, 1e3 * self.pass_s, 1e6 * self.request_s
        more = f" and {each:.0f} us a request in it" if self.request_s else ""
        dearer = f", prompts {self.prompts:.0%} dearer than their kernels" if self.prompts else ""
        return (
            f"host time {step:.2f} ms a step{more}, {draft:.2f} ms a pass of a drafter{dearer}: {self.source}"
        )


_FITTED = "fitted to half of the published end-to-end runs, by a hash of their ids (docs/validation.md)"

BLOCKING_STEP_S = 1.42e-3
"""Host time of a step of vLLM before 0.14, whose GPU waits while a step is scheduled, with weights in 16
bits; in fewer 1.01 ms. Fitted likewise."""

_VLLM_PASS_S = 0.45e-3
"""The middle of what remains of two published drafters, 0.25 and 0.65 ms, once their kernels are taken out
(docs/validation.md: Llama-3.1-8B on one H100, EAGLE-1 and EAGLE-3)."""

_VLLM = (
    f"{_FITTED}; from 0.14 on, which schedules ahead (before it: {1e3 * BLOCKING_STEP_S:.2f} ms a step); "
    "a pass: 0.25 and 0.65 ms remain of two published drafters on H100"
)
_SGLANG = f"{_FITTED}; a pass waits as a step does"
_TRTLLM = f"{_FITTED}; of a drafter's pass nothing is published"

HOSTS: Mapping[Engine, Mapping[Kind, Host]] = {
    "vllm": {
        "16 bits": Host(0.16e-3, _VLLM_PASS_S, f"{_VLLM}; of fewer bits: no such run is published", 7e-6),
        "fewer bits": Host(0.16e-3, _VLLM_PASS_S, _VLLM, 7e-6, 0.34),
        "latent": Host(0.0, _VLLM_PASS_S, _VLLM),
    },
    "sglang": {
        "16 bits": Host(1.27e-3, 1.27e-3, _SGLANG, 5e-6),
        "fewer bits": Host(4.08e-3, 4.08e-3, f"{_SGLANG}; with weights scaled by blocks", 8e-6, 0.45),
        "latent": Host(1.19e-3, 1.19e-3, _SGLANG, prompts=0.69),
    },
    "trtllm": {
        "16 bits": Host(0.42e-3, 0.0, _TRTLLM, 9e-6),
        "fewer bits": Host(0.0, 0.0, _TRTLLM, prompts=0.08),
        "latent": Host(0.74e-3, 0.0, _TRTLLM, 20e-6),
    },
}  # fmt: skip
"""By engine and kind of model: kernel tables hold none of it."""

LARGE = 16
"""Steps above this part of the largest measured one are large: rows there cost by their number."""

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


def chunk_tokens(engine: Engine, gpu: Gpu, groups: int = 1) -> int:
    """Prompt tokens of a step at most, as the engine sets it where nobody does.

    groups: with attention of their own; each takes so many, except with SGLang, which shares them out.

    vLLM (``engine/arg_utils.py``, of its server): 8,192 from 70 GiB of memory on except on A100, else 2,048.
    SGLang (``server_args.py``): 2,048 below 35 GiB, 4,096 below 60, 8,192 below 160, else 16,384.
    TensorRT-LLM (``max_num_tokens``): 8,192. Read in November 2026.
    """
    memory = gpu.memory_bytes / 2**30
    if engine == "sglang":
        return next((size for least, size in ((160, 16384), (60, 8192), (35, 4096)) if memory >= least), 2048)
    if engine == "vllm" and (memory < 70 or gpu.name == "a100"):
        return 2048 * groups
    return 8192 * groups


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


def row_s(step: AdditiveSpec) -> float:
    """Seconds of a row of a prompt: what the last rows of large steps add, and its attention."""
    at, took = np.array(step.token_probes), np.array(step.theta_s)
    many, few = at[-1], at[-1] / LARGE
    return float((took[-1] - np.interp(few, at, took)) / (many - few)) + step.prefill_s_per_token


def as_served(profile: Profile, engine: Engine, gpu: Gpu, host: Host, *, groups: int = 1) -> Profile:
    """Return a profile of kernels as an engine serves it: with what it adds and its chunk."""
    if not isinstance(profile.step, AdditiveSpec):
        raise TypeError(f"kernels compose additive costs, not {profile.step.type}")
    drafters = {name: _with_host(spec, host) for name, spec in (profile.drafters or {}).items()}
    notes = "; ".join(filter(None, [profile.provenance.notes, host.line]))
    speed = profile.prefill_tokens_per_s
    return profile.model_copy(
        update={
            "step": _served(profile.step, host), "drafters": drafters or None,
            "chunk_tokens": chunk_tokens(engine, gpu, groups),
            "prefill_tokens_per_s": None if speed is None else speed / (1 + host.prompts),
            "provenance": profile.provenance.model_copy(update={"notes": notes}),
        }
    )  # fmt: skip


def _served(step: AdditiveSpec, host: Host) -> AdditiveSpec:
    """Add what each step, request and row of a prompt takes longer; alpha starts at 0 at its first probe."""
    first = step.request_probes[0]
    alpha = (
        took + host.request_s * (at - first)
        for at, took in zip(step.request_probes, step.alpha_s, strict=True)
    )
    return step.model_copy(
        update={
            "bias_s": step.bias_s + host.step_s + host.request_s * first, "alpha_s": tuple(alpha),
            "prefill_s_per_token": step.prefill_s_per_token + host.prompts * row_s(step),
        }
    )  # fmt: skip


def _with_host(spec: DraftSpec, host: Host) -> DraftSpec:
    return spec.model_copy(update={"pass_s": tuple(each + host.pass_s for each in spec.pass_s)})
