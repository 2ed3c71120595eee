"""vLLM: ``vllm serve`` with a speculative config, sizes of recorded graphs and limits of the scheduler.

Checked against the docs of vLLM 0.32.0 (features/speculative_decoding/adaptive_verification) and
``vllm/config/speculative.py`` at vllm-project/vllm 002e77c1f0ef, both read on 2026-11-30.
"""

from __future__ import annotations

import json

from simulator.interop.launch.settings import (
    ByBatch,
    Confidence,
    Fixed,
    Launch,
    Settings,
    graph_sizes,
    left_to_you,
    nearest,
    refuse_oracle,
)

CHECKED = "0.32.0 (its docs; vllm/config/speculative.py at 002e77c1f0ef, read 2026-11-30)"

OWN_RULE = "a global search over confidences one step old and costs that it measures at start-up"


def launch(settings: Settings) -> Launch:
    """Return the command line. Raises ``BadInputError`` for what cannot be deployed."""
    refuse_oracle(settings)
    arguments = ["vllm", "serve", "$MODEL", "--tensor-parallel-size", str(settings.gpus)]
    arguments += ["--max-num-seqs", str(settings.concurrency)]
    arguments += ["--max-num-batched-tokens", str(batched_tokens(settings))]
    if settings.memory_share is not None:
        arguments += ["--gpu-memory-utilization", f"{settings.memory_share:g}"]
    sizes = {"cudagraph_capture_sizes": capture_sizes(settings)}
    arguments += ["--compilation-config", json.dumps(sizes)]
    if settings.drafts:
        arguments += ["--speculative-config", json.dumps(speculative_config(settings))]
    return Launch(
        engine="vLLM", checked=CHECKED, arguments=tuple(arguments), notes=_notes(settings),
        model=settings.model,
    )  # fmt: skip


def speculative_config(settings: Settings) -> dict[str, object]:
    """Return the value of ``--speculative-config``."""
    config: dict[str, object] = {"method": settings.family, "num_speculative_tokens": settings.drafts}
    if settings.has_draft_model:
        config["model"] = "$DRAFT_MODEL"
    how = settings.verification
    if isinstance(how, Confidence):
        config["enable_adaptive_verification"] = True
    if isinstance(how, ByBatch):
        config["num_speculative_tokens_per_batch_size"] = _ranges(how, settings.concurrency)
    return config


def batched_tokens(settings: Settings) -> int:
    """Tokens of a step at most: the largest decode step, and the prompt tokens that ride along."""
    prompts = 0 if settings.prefill == "elsewhere" else settings.chunk_tokens
    return settings.rows + prompts


def capture_sizes(settings: Settings) -> list[int]:
    """Tokens of the steps to record as graphs.

    Every request has the same number of rows unless confidences decide: then any number of rows up to
    the largest step may come.
    """
    how = settings.verification
    if isinstance(how, Confidence):
        return graph_sizes(settings.rows)
    counts = graph_sizes(settings.concurrency)
    if isinstance(how, Fixed):
        return [count * (1 + how.length) for count in counts]
    firsts = [first for first, _ in how.ranges if first <= settings.concurrency]
    return sorted({count * (1 + how.at(count)) for count in [*counts, *firsts]})


def _ranges(how: ByBatch, concurrency: int) -> list[tuple[int, int, int]]:
    """Return inclusive ranges (first, last, drafts) up to the most requests."""
    inside = [each for each in how.ranges if each[0] <= concurrency]
    lasts = [first - 1 for first, _ in inside[1:]] + [concurrency]
    return [(first, last, length) for (first, length), last in zip(inside, lasts, strict=True)]


def _notes(settings: Settings) -> tuple[str, ...]:
    notes = [*nearest(settings, "vLLM", ("vllm",), OWN_RULE)]
    if isinstance(settings.verification, Confidence):
        notes.append(
            "vLLM reads no cost table: it measures its steps at start-up, against 8192 tokens of context "
            "(VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN). It needs full CUDA graphs, and takes neither "
            "LoRA nor pipeline parallelism."
        )
    if isinstance(settings.verification, ByBatch):
        notes.append(
            "vLLM counts the requests whose prompt runs in the step, too; the plan counts decoding ones."
        )
    if settings.prefill == "whole":
        notes.append("The plan runs whole prompts between decode steps; vLLM always cuts them into chunks.")
    if settings.memory_share is not None:
        notes.append(
            "The share of memory is the plan's for weights and KV cache; vLLM takes activations out of it."
        )
    if settings.kv_tokens is not None:
        notes.append(
            f"The plan's replica holds {settings.kv_tokens:,} tokens of KV cache; vLLM sizes the cache from "
            "memory: compare with the GPU KV cache size in its log."
        )
    return (*notes, *left_to_you(settings))
