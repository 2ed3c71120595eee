"""TensorRT-LLM: ``trtllm-serve`` with a YAML of LLM arguments, and the cost table of its confidence planner.

Checked against the reference of ``DSparkDecodingConfig`` in TensorRT-LLM 1.4.0rc4
(nvidia.github.io/TensorRT-LLM/1.4.0rc4/llm-api/reference/DSparkDecodingConfig.html), ``llm_args.py`` at
NVIDIA/TensorRT-LLM 000439672005 and pull request 17056, read on 2026-11-30. The release names the table
``confidence_cost_table_path``; its reference does not say the format. The table here is version 1, which
that pull request reads under the key ``confidence_sps_table_path``.
"""

from __future__ import annotations

import yaml

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

CHECKED = "1.4.0rc4 (reference of DSparkDecodingConfig; llm_args.py at 000439672005, read 2026-11-30)"

OWN_RULE = "the best of a few captured lengths, at least one draft a request"

CONFIG, FILLED = "config.yml", "config.filled.yml"

DECODING = {"dspark": "DSpark", "dflash": "DFlash", "eagle3": "Eagle3", "mtp": "MTP"}
"""``decoding_type`` of each family of drafters."""


def launch(settings: Settings) -> Launch:
    """Return the command line and its YAML. Raises ``BadInputError`` for what cannot be deployed."""
    refuse_oracle(settings)
    named = settings.has_draft_model
    config = FILLED if named else CONFIG
    text = yaml.safe_dump(config_of(settings), sort_keys=False)
    return Launch(
        engine="TensorRT-LLM", checked=CHECKED, model=settings.model, notes=_notes(settings),
        arguments=("trtllm-serve", "$MODEL", "--extra_llm_api_options", config), files={CONFIG: text},
        prepare=(f'sed "s|DRAFT_MODEL|$DRAFT_MODEL|" {CONFIG} > {FILLED}',) if named else (),
    )  # fmt: skip


def config_of(settings: Settings) -> dict[str, object]:
    """Return the LLM arguments; ``DRAFT_MODEL`` stands for the drafter's checkpoint."""
    prompts = 0 if settings.prefill == "elsewhere" else settings.chunk_tokens
    config: dict[str, object] = {
        "backend": "pytorch",
        "tensor_parallel_size": settings.gpus,
        "max_batch_size": settings.concurrency,
        "max_num_tokens": settings.concurrency * (1 + drafted(settings)) + prompts,
        "enable_chunked_prefill": settings.prefill == "chunked",
        "cuda_graph_config": {"enable_padding": True, "batch_sizes": graph_sizes(settings.concurrency)},
    }
    if settings.kv_tokens is not None:
        config["kv_cache_config"] = {"max_tokens": settings.kv_tokens}
    if settings.drafts:
        config["speculative_config"] = speculative_config(settings)
    return config


def speculative_config(settings: Settings) -> dict[str, object]:
    """Return ``speculative_config``."""
    family, drafts = settings.family, drafted(settings)
    config: dict[str, object] = {"decoding_type": DECODING[family]}
    config |= {"num_nextn_predict_layers": drafts} if family == "mtp" else {"max_draft_len": drafts}
    if settings.has_draft_model:
        config["speculative_model"] = "DRAFT_MODEL"
    if family == "dspark" and isinstance(settings.verification, Confidence) and settings.table:
        config |= {"enable_confidence_scheduling": True, "confidence_cost_table_path": TABLE}
        config |= {"confidence_calibration_path": CALIBRATION} if settings.calibration else {}
    return config


def drafted(settings: Settings) -> int:
    """Drafts of a block; DSpark's is that of its checkpoint and cannot be shortened."""
    if not settings.drafts or settings.family == "dspark":
        return settings.block if settings.drafts else 0
    how = settings.verification
    return max(1, how.at(settings.concurrency)) if isinstance(how, ByBatch) else settings.drafts


def _notes(settings: Settings) -> tuple[str, ...]:
    notes = [*nearest(settings, "TensorRT-LLM", ("trtllm",), OWN_RULE)]
    how = settings.verification
    if settings.drafts and settings.family == "dspark" and not isinstance(how, Confidence):
        if isinstance(how, ByBatch) or settings.drafts != settings.block:
            notes.append(
                "TensorRT-LLM takes DSpark's block from its checkpoint: all "
                f"{settings.block} drafts are verified at any load, which {settings.policy} does not."
            )
    elif isinstance(how, ByBatch):
        notes.append(
            f"The length at {settings.concurrency} requests, {drafted(settings)}, is used at any load."
        )
    if isinstance(how, Confidence):
        notes.append(_planner(settings))
    return (*notes, *left_to_you(settings))


def _planner(settings: Settings) -> str:
    if settings.family != "dspark":
        return (
            f"TensorRT-LLM schedules by confidence with DSpark alone: {settings.family} verifies every draft."
        )
    if not settings.table:
        return (
            "Without a cost table the planner verifies everything, so that confidence scheduling is left off."
        )
    return (
        f"{TABLE} is version 1, as pull request 17056 reads it (there: confidence_sps_table_path, "
        "confidence_sts_path, enable_ragged_verify: true). The reference of 1.4.0rc4 does not say its "
        "format: look in the log whether the table was taken."
    )
