"""SGLang: server flags, the mode of verification, and the cost table and calibration that its planner reads.

Checked against ``python/sglang/srt/server_args.py`` at sgl-project/sglang 001067fffe33 and the launch
handling of ``--speculative-algorithm DSPARK``, which came with release 0.5.16; both read on 2026-11-30.
"""

from __future__ import annotations

from simulator.interop.launch.settings import (
    CALIBRATION,
    TABLE,
    ByBatch,
    Confidence,
    Launch,
    Settings,
    graph_sizes,
    left_to_you,
    nearest,
    refuse_oracle,
)

CHECKED = "0.5.16 and later (python/sglang/srt/server_args.py at 001067fffe33, read 2026-11-30)"

OWN_RULE = "a global search two steps before, allocation by current confidences"

MODE = "SGLANG_RAGGED_VERIFY_MODE"
"""Environment variable: ``compact`` schedules by confidence, ``static`` verifies every draft."""


def launch(settings: Settings) -> Launch:
    """Return the command line. Raises ``BadInputError`` for what cannot be deployed."""
    refuse_oracle(settings)
    arguments = ["python3", "-m", "sglang.launch_server", "--model-path", "$MODEL"]
    arguments += ["--tp-size", str(settings.gpus), "--max-running-requests", str(settings.concurrency)]
    counts = graph_sizes(settings.concurrency)
    arguments += ["--cuda-graph-bs-decode", *map(str, counts), *_prefill(settings)]
    if settings.kv_tokens is not None:
        arguments += ["--max-total-tokens", str(settings.kv_tokens)]
    if settings.memory_share is not None:
        arguments += ["--mem-fraction-static", f"{settings.memory_share:g}"]
    if settings.drafts:
        arguments += speculative_flags(settings)
    environment = {}
    if settings.drafts and settings.family == "dspark":
        environment[MODE] = "compact" if isinstance(settings.verification, Confidence) else "static"
    return Launch(
        engine="SGLang", checked=CHECKED, arguments=tuple(arguments), environment=environment,
        notes=_notes(settings), model=settings.model,
    )  # fmt: skip


def speculative_flags(settings: Settings) -> list[str]:
    """Return the flags that name the drafter, its block and what the planner reads."""
    drafts, family = drafted(settings), settings.family
    if family == "dspark":
        flags = ["--speculative-algorithm", "DSPARK", "--speculative-dspark-block-size", str(drafts)]
        if isinstance(settings.verification, Confidence):
            flags += ["--speculative-dspark-sps-table-path", TABLE] if settings.table else []
            flags += ["--speculative-dspark-confidence-sts-path", CALIBRATION] if settings.calibration else []
    elif family == "dflash":
        flags = ["--speculative-algorithm", "DFLASH", "--speculative-num-draft-tokens", str(drafts + 1)]
    else:
        flags = ["--speculative-algorithm", {"eagle3": "EAGLE3", "mtp": "NEXTN"}[family]]
        flags += ["--speculative-num-steps", str(drafts), "--speculative-eagle-topk", "1"]
        flags += ["--speculative-num-draft-tokens", str(drafts + 1)]
    return flags + (["--speculative-draft-model-path", "$DRAFT_MODEL"] if settings.has_draft_model else [])


def drafted(settings: Settings) -> int:
    """Drafts of a block: all of it, or as many as are always verified."""
    how = settings.verification
    return max(1, how.at(settings.concurrency)) if isinstance(how, ByBatch) else settings.drafts


def _prefill(settings: Settings) -> list[str]:
    if settings.prefill == "elsewhere":
        return ["--disaggregation-mode", "decode"]
    if settings.prefill == "chunked":
        return ["--chunked-prefill-size", str(settings.chunk_tokens)]
    return ["--chunked-prefill-size", "-1", "--max-prefill-tokens", str(settings.chunk_tokens)]


def _notes(settings: Settings) -> tuple[str, ...]:
    notes = [*nearest(settings, "SGLang", ("sglang", "dspark-async"), OWN_RULE)]
    how = settings.verification
    if isinstance(how, ByBatch):
        notes.append(
            f"SGLang has no length by batch size: the length at {settings.concurrency} requests, "
            f"{drafted(settings)}, is used at any load."
        )
    if isinstance(how, Confidence) and settings.family != "dspark":
        notes.append(
            f"SGLang schedules by confidence with DSPARK alone: {settings.family} verifies every draft."
        )
    elif isinstance(how, Confidence):
        if not settings.table:
            notes.append(
                "Without a cost table the planner verifies everything: measure one with "
                "sglang.benchmark.dspark_sps_profiler and pass --speculative-dspark-sps-table-path."
            )
        if not settings.calibration:
            notes.append(
                "No calibration: the acceptance of the plan holds no raw confidences. Fit one with "
                "sglang.benchmark.dspark_sts_fit and pass --speculative-dspark-confidence-sts-path."
            )
    if settings.prefill == "chunked":
        notes.append(
            "The plan's prompt chunks ride in decode steps; SGLang may run them in steps of their own."
        )
    return (*notes, *left_to_you(settings))
