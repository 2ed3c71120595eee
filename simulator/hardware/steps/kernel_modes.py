"""What the public kernel tables call a model and the ways in which its weights and caches are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from simulator.core.errors import BadInputError
from simulator.core.files import write_json
from simulator.hardware.gpus import Gpu
from simulator.hardware.models import ModelShape, Precision

Engine = Literal["vllm", "sglang", "trtllm"]

ENGINES: tuple[Engine, ...] = ("vllm", "sglang", "trtllm")

PACKAGE = "aiconfigurator_core"

Scales = Literal["matrix", "block", "computed"]
"""What one scale of 8-bit weights covers: a matrix, with those of rows measured beforehand; a block of
128 x 128; a matrix, with those of rows computed as they come (a 16-bit checkpoint rounded at load)."""

_NAMES = {
    "meta-llama/Llama-3.1": "meta-llama/Meta-Llama-3.1",
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Meta-Llama-3.1-70B",
}
"""Models that the tables know by another name: how ours begins, and theirs. Llama 3.3 is shaped as 3.1."""

_NVFP4 = {"deepseek-ai/DeepSeek-R1": "nvidia/DeepSeek-V3.1-NVFP4",
          "deepseek-ai/DeepSeek-V3": "nvidia/DeepSeek-V3.1-NVFP4"}  # fmt: skip
"""4-bit checkpoints under another name. They keep parts of attention in 16 bits, which their configs say."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a model is served, beyond its layout.

    attention_over: groups of GPUs that each hold the attention of their own requests (data-parallel
    attention). experts_over: GPUs over which whole experts are dealt (expert parallelism). small_cache: keys
    and values in 8 bits; None as the engine does with such weights. scales: of 8-bit weights; None by blocks
    where the published weights are in 8 bits, else by matrices.
    """

    attention_over: int = 1
    experts_over: int = 1
    small_cache: bool | None = None
    scales: Scales | None = None

    def caches_small(self, engine: Engine, precision: Precision) -> bool:
        """Whether keys and values take 8 bits: TensorRT-LLM's fp8 checkpoints bring such a cache along."""
        if self.small_cache is None:
            return engine == "trtllm" and precision == "fp8"
        return self.small_cache


def modes(
    model: ModelShape, gpu: Gpu, gpus: int, engine: Engine, precision: Precision, setting: Setting
) -> dict[str, Any]:
    """Arguments with which the tables compile an engine, parallel widths included.

    Raises ``BadInputError`` where the widths do not divide each other.
    """
    groups, experts = setting.attention_over, setting.experts_over
    if gpus % groups or gpus % experts:
        raise BadInputError(
            f"must divide the {gpus} GPUs", field="attention_over, experts_over", value=f"{groups}, {experts}"
        )
    found: dict[str, Any] = {"tp_size": gpus // groups}
    if groups > 1:
        found["attention_dp_size"] = groups
    matrices, routed = _weights(model, gpu, engine, precision, setting.scales)
    if matrices is not None:
        found["gemm_quant_mode"] = matrices
    found["kvcache_quant_mode"] = "fp8" if setting.caches_small(engine, precision) else "bfloat16"
    found["fmha_quant_mode"] = "bfloat16"  # products of attention: most tables have no others
    if model.experts is not None:
        found |= {"moe_tp_size": gpus // experts, "moe_ep_size": experts}
        if routed is not None:
            found["moe_quant_mode"] = routed
    return found


def _weights(
    model: ModelShape, gpu: Gpu, engine: Engine, precision: Precision, scales: Scales | None
) -> tuple[str | None, str | None]:
    """Modes of matrices and of experts; None leaves it to the published checkpoint.

    8-bit checkpoints of models that are published in 16 bits carry scales measured beforehand, so that
    rounding the rows is part of the operation before. Block-scaled ones round rows as they come. vLLM's table
    of the latter was measured with a kernel that takes 2 to 8 times as long as its products scaled by rows
    (Llama-3.1-70B on one and eight H200, 4 rows), which read the same bytes and stand in.
    """
    if precision == "bf16":
        return "bfloat16", "bfloat16"
    if precision == "fp8":
        covered = _scales(model, scales)
        if covered != "block":
            return ("fp8_static" if covered == "matrix" else "fp8"), "fp8"
        return ("fp8" if rows_stand_in(model, engine, precision, scales) else "fp8_block"), "fp8_block"
    if model.native == "fp4":  # MXFP4; TensorRT-LLM's kernels on Blackwell take rows in 8 bits
        return None, "w4a8_mxfp4_mxfp8" if engine == "trtllm" and "fp4" in gpu.flop_per_s else None
    if nvfp4_checkpoint(model.name) is not None:
        return None, None
    return "nvfp4", "nvfp4"


def rows_stand_in(model: ModelShape, engine: Engine, precision: Precision, scales: Scales | None) -> bool:
    """Whether products scaled by rows stand in for block-scaled ones: on vLLM, except of a latent's blocks.

    vLLM's own table of the latter stands 57% to 395% apart from the engines' median (MiniMax-M2.5 and
    Qwen3-235B-A22B on H100, H200, B200 and B300).
    """
    block = precision == "fp8" and _scales(model, scales) == "block"
    return block and engine == "vllm" and model.latent is None


def _scales(model: ModelShape, asked: Scales | None) -> Scales:
    return asked or ("block" if model.native == "fp8" else "matrix")


def nvfp4_checkpoint(name: str) -> str | None:
    """Name of the 4-bit checkpoint of a model whose config the tables bring along, or None."""
    checkpoint = _NVFP4.get(name, f"nvidia/{name.split('/')[-1]}-NVFP4")
    return checkpoint if _is_known(checkpoint) else None


def described(model: ModelShape, precision: Precision, folder: Path) -> str:
    """Name the model as the tables do, or write its shape where they read it: nothing is fetched.

    Raises ``BadInputError`` for a shape that the tables do not know and that is no plain transformer's.
    """
    if precision == "fp4" and model.native != "fp4":
        checkpoint = nvfp4_checkpoint(model.name)
        if checkpoint is not None:
            return checkpoint
    name = model.name
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    if _is_known(name):
        return name
    brought = _config_file(name)
    if brought.is_file():  # there, and yet the tables would fetch it by its name
        (folder / "config.json").write_bytes(brought.read_bytes())
        return str(folder)
    experts = model.experts
    if model.latent or model.windowed_layers or (experts and (experts.shared or experts.dense_layers)):
        raise BadInputError(
            "is not among the models of the tables, and has layers of several kinds", source="model",
            value=model.name,
        )  # fmt: skip
    write_json(folder / "config.json", _config(model))
    return str(folder)


def _is_known(name: str) -> bool:
    return name in import_module(f"{PACKAGE}.sdk.common").DefaultHFModels


def _config_file(name: str) -> Path:
    known = Path(str(import_module(PACKAGE).__file__)).parent / "model_configs"
    return known / f"{name.replace('/', '--')}_config.json"


def _config(model: ModelShape) -> Mapping[str, Any]:
    config: dict[str, Any] = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": model.hidden,
        "num_hidden_layers": model.layers, "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads, "head_dim": model.head_width,
        "intermediate_size": model.intermediate, "vocab_size": model.vocabulary,
        "max_position_embeddings": 131072, "torch_dtype": "bfloat16", "tie_word_embeddings": model.tied,
        "hidden_act": "silu", "rms_norm_eps": 1e-6,
    }  # fmt: skip
    if model.experts is not None:
        config |= {
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
            "num_experts": model.experts.count, "num_experts_per_tok": model.experts.per_token,
            "moe_intermediate_size": model.experts.intermediate,
        }  # fmt: skip
    return config
