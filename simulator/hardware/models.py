"""What a model's ``config.json`` says about its size: weights, keys and values, experts.

Counts follow the published architectures. Norms, biases and routers are counted where they are more than a
rounding error of the whole; each model of the catalogue is checked against its published parameter count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from simulator.core.errors import BadInputError
from simulator.core.files import data_directory
from simulator.core.reading import Strict, complain, is_file, read_json, strictly
from simulator.hardware.attention import CompressedAttention, LatentAttention

Precision = Literal["bf16", "fp8", "fp4"]

WEIGHT_BYTES: Mapping[Precision, float] = {"bf16": 2.0, "fp8": 1.0, "fp4": 0.53125}
"""Bytes of one weight. fp4 is MXFP4: 4 bits and a shared scale of 8 bits for 32 weights (OCP MX 1.0)."""


class Experts(Strict):
    """A mixture of experts: how many there are, how many a token visits, and how wide each is.

    dense_layers: leading layers with a plain feed-forward of ``intermediate``. shared: experts that every
    token visits.
    """

    count: int = Field(gt=0)
    per_token: int = Field(gt=0)
    intermediate: int = Field(gt=0)
    shared: int = Field(default=0, ge=0)
    dense_layers: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _visits_no_more_than_there_are(self) -> Experts:
        if self.per_token > self.count:
            raise ValueError(f"a token cannot visit {self.per_token} of {self.count} experts")
        return self

    def touched(self, rows: float) -> float:
        """Return the expected number of distinct experts that so many rows visit, each at random."""
        return float(self.count * (1 - (1 - self.per_token / self.count) ** rows))


class ModelShape(Strict):
    """Sizes of a decoder; widths in elements.

    windowed_layers: those whose attention sees ``window`` tokens at most. native: precision of the published
    weights, of the experts alone where it is fp4; beside_fp4: of the rest then. parameters_published: total,
    as its makers state it; source: where the shape comes from.
    """

    name: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_width: int = Field(gt=0)
    intermediate: int = Field(default=0, ge=0)
    tied: bool = False
    latent: LatentAttention | None = None
    compressed: CompressedAttention | None = None
    experts: Experts | None = None
    windowed_layers: int = Field(default=0, ge=0)
    window: int | None = Field(default=None, gt=0)
    mtp_layers: int = Field(default=0, ge=0)
    native: Precision = "bf16"
    beside_fp4: Precision = "bf16"
    parameters_published: float | None = Field(default=None, gt=0)
    source: str

    @property
    def attention_parameters(self) -> int:
        """Weights of one layer's attention."""
        kind = self.latent or self.compressed
        if kind is not None:
            return kind.parameters(self.hidden, self.heads)
        return self.hidden * self.head_width * (2 * self.heads + 2 * self.kv_heads)

    @property
    def expert_parameters(self) -> int:
        """Weights of one expert, gate, up and down; 0 in a dense model."""
        return 0 if self.experts is None else 3 * self.hidden * self.experts.intermediate

    @property
    def dense_parameters(self) -> int:
        """Weights that every row meets: attention, dense feed-forwards, routers and shared experts."""
        attention = self.layers * self.attention_parameters
        if self.compressed is not None:
            attention += self.compressed.joining_parameters(self.hidden)
        if self.experts is None:
            return attention + self.layers * 3 * self.hidden * self.intermediate
        sparse = self.layers - self.experts.dense_layers
        routed = sparse * (self.hidden * self.experts.count + self.experts.shared * self.expert_parameters)
        return attention + routed + self.experts.dense_layers * 3 * self.hidden * self.intermediate

    @property
    def routed_parameters(self) -> int:
        """Weights of all experts that a router chooses from."""
        if self.experts is None:
            return 0
        return (self.layers - self.experts.dense_layers) * self.experts.count * self.expert_parameters

    @property
    def head_parameters(self) -> int:
        """Weights of the output matrix, read in every step; the embedding looks rows up."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, the embedding included."""
        tables = self.head_parameters * (1 if self.tied else 2)
        return self.dense_parameters + self.routed_parameters + tables

    @property
    def active_parameters(self) -> int:
        """Weights that one token meets, the output matrix included and the embedding left out."""
        visited = 0
        if self.experts is not None:
            sparse = self.layers - self.experts.dense_layers
            visited = sparse * self.experts.per_token * self.expert_parameters
        return self.dense_parameters + visited + self.head_parameters

    def weight_bytes(self, precision: Precision) -> float:
        """Bytes of all weights; tables stay at 2 bytes, and with fp4 what is no expert is ``beside_fp4``."""
        tables = 2.0 * self.head_parameters * (1 if self.tied else 2)
        dense = self.dense_parameters * WEIGHT_BYTES[self.dense_precision(precision)]
        return tables + dense + self.routed_parameters * WEIGHT_BYTES[precision]

    def dense_precision(self, precision: Precision) -> Precision:
        """Precision of what is no expert, where the model is in ``precision``."""
        return self.beside_fp4 if precision == "fp4" and self.experts is not None else precision

    def kv_bytes_per_token(
        self, element_bytes: float = 2.0, *, shards: int = 1, context: int = 8192
    ) -> float:
        """Bytes of keys and values that a token keeps on each of ``shards`` GPUs.

        Heads are split over the GPUs as far as there are any, and repeated beyond; a latent is on every GPU.
        A windowed layer keeps its window alone: of a request of ``context`` tokens that is its share.
        """
        if self.compressed is not None:
            return self.compressed.kept(context, self.layers, self.window or 0) / context * element_bytes
        if self.latent is not None:
            width = float(self.latent.kv_rank + self.latent.rope_width)
        else:
            width = 2.0 * self.head_width * max(self.kv_heads / shards, 1.0)
        kept = 1.0 if self.window is None else min(1.0, self.window / context)
        whole = self.layers - self.windowed_layers
        return width * element_bytes * (whole + self.windowed_layers * kept)

    def kv_bytes_read(self, element_bytes: float = 2.0, *, shards: int = 1, context: int = 8192) -> float:
        """Bytes that a step reads of a request's keys and values on each GPU: all that it keeps, or fewer."""
        if self.compressed is not None:
            return self.compressed.read(context, self.layers, self.window or 0) * element_bytes
        return context * self.kv_bytes_per_token(element_bytes, shards=shards, context=context)


def load_model(name: str) -> ModelShape:
    """Load a model of the catalogue by name, or the shape that a ``config.json`` describes.

    Names are looked up without regard to case and, where it is clear, without the organisation. Raises
    ``BadInputError`` with the nearest names, or naming the field that a config lacks.
    """
    known = catalogue()
    by_name = {each.lower(): each for each in known}
    short = {each.split("/")[-1].lower(): each for each in known}
    found = by_name.get(name.lower()) or short.get(name.lower())
    if found is not None:
        return known[found]
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    if path.suffix == ".json" or is_file(path):
        return read_config(path)
    near = [each for each in short if name.lower() in each]  # whoever leaves out "-instruct" means that
    near = (near + get_close_matches(name.lower(), [*by_name, *short], n=3, cutoff=0.4))[:3]
    names = list(dict.fromkeys(by_name.get(each) or short[each] for each in near)) or list(known)[:3]
    raise BadInputError(
        "is not a model of the catalogue", source="model", value=name,
        remedy=f"did you mean {', '.join(names)}? See `dspark-sim list --models`, or give a config.json",
    )  # fmt: skip


@cache
def catalogue() -> dict[str, ModelShape]:
    """Name to shape of every model that comes with the package."""
    path = data_directory("profiles") / "catalogue" / "models.json"
    try:
        shapes = [strictly(ModelShape, entry) for entry in _listed(read_json(path), path)]
    except ValidationError as error:
        raise complain(error, str(path)) from error
    return {shape.name: shape for shape in shapes}


def _listed(content: object, path: Path) -> list[Any]:
    if not isinstance(content, list):
        raise BadInputError("is not a list of models", source=str(path))
    return content


_UNLIKE = {
    "linear attention": ("linear_num_value_heads", "layer_types_linear"),
    "state-space layers": ("mamba_num_heads", "ssm_state_size"),
    "sparse attention": ("index_topk",),
    "blocks of their own": ("block_configs",),
}
"""Kinds of layers whose cost is not described here, and the fields that give them away."""


def read_config(path: Path) -> ModelShape:
    """Read the shape out of a Hugging Face ``config.json``.

    Raises ``BadInputError`` naming a field that is missing or of another kind, and for architectures whose
    layers are of a kind that is not described here.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise BadInputError("is not a JSON object", source=str(path), field="config")
    config: dict[str, Any] = content.get("text_config") or content
    for kind, marks in _UNLIKE.items():
        if any(config.get(mark) for mark in marks) and not _is_compressed(config):
            raise BadInputError(
                f"has {kind}, whose cost is not described", source=str(path), field="config",
                remedy="measure it: `dspark-sim profile`",
            )  # fmt: skip

    whole = _reader(config, path)
    hidden, heads, layers = whole("hidden_size"), whole("num_attention_heads"), whole("num_hidden_layers")
    if min(hidden, heads, layers) < 1:
        raise BadInputError("must be positive", source=str(path), field="hidden_size, heads, layers")
    experts = whole("n_routed_experts", "num_experts", "num_local_experts", default=0)
    types = config.get("layer_types")
    window = whole("sliding_window", default=0) if config.get("use_sliding_window", True) else 0
    windowed = layers if window else 0
    if _is_compressed(config):
        windowed = 0  # every layer has a window beside what it compresses
    elif isinstance(types, list):
        windowed = sum(str(each) == "sliding_attention" for each in types) if window else 0
    try:
        return ModelShape(
            name=str(content.get("_name_or_path") or path.parent.name or path.stem),
            layers=layers, hidden=hidden, vocabulary=whole("vocab_size"), heads=heads,
            kv_heads=max(whole("num_key_value_heads", default=heads), 1),
            head_width=whole("head_dim", default=hidden // heads),
            intermediate=whole("intermediate_size", default=0),
            tied=bool(config.get("tie_word_embeddings", content.get("tie_word_embeddings", False))),
            latent=_latent(config, whole), compressed=_compressed(config, whole),
            experts=None if not experts else Experts(
                count=experts, per_token=whole("num_experts_per_tok", "experts_per_token"),
                intermediate=whole("moe_intermediate_size", "intermediate_size"),
                shared=whole("n_shared_experts", "num_shared_experts", default=0),
                dense_layers=whole("first_k_dense_replace", default=0),
            ),
            windowed_layers=windowed, window=window or None,
            mtp_layers=whole("num_nextn_predict_layers", "num_mtp_modules", default=0),
            native=_native(config), beside_fp4="fp8" if _is_compressed(config) else "bf16", source=str(path),
        )  # fmt: skip
    except ValidationError as error:
        raise complain(error, str(path)) from error


def _reader(config: Mapping[str, Any], path: Path) -> Callable[..., int]:
    """Return what reads a whole number of the first of several names, and complains of it by that name."""

    def whole(*names: str, default: int | None = None) -> int:
        for name in names:
            value = config.get(name)
            if value is not None:
                if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                    raise BadInputError("must be a whole number", source=str(path), field=name, value=value)
                return value
        if default is None:
            raise BadInputError(
                "is missing", source=str(path), field=names[0], remedy="give a model's config.json"
            )
        return default

    return whole


def _is_compressed(config: Mapping[str, Any]) -> bool:
    """Whether attention is DeepSeek-V4's: its layers join 4 tokens, 128 or none."""
    ratios = config.get("compress_ratios")
    return isinstance(ratios, list) and set(ratios) <= {0, 4, 128}


def _compressed(config: Mapping[str, Any], whole: Callable[..., int]) -> CompressedAttention | None:
    if not _is_compressed(config):
        return None
    ratios = Counter(config["compress_ratios"][: whole("num_hidden_layers")])
    return CompressedAttention(
        width=whole("head_dim"), query_rank=whole("q_lora_rank"), output_rank=whole("o_lora_rank"),
        output_groups=whole("o_groups"), sparse_layers=ratios[4], heavy_layers=ratios[128],
        index_heads=whole("index_n_heads"), index_width=whole("index_head_dim"), top=whole("index_topk"),
    )  # fmt: skip


def _latent(config: Mapping[str, Any], whole: Callable[..., int]) -> LatentAttention | None:
    if not config.get("kv_lora_rank"):
        return None
    return LatentAttention(
        kv_rank=whole("kv_lora_rank"), rope_width=whole("qk_rope_head_dim"),
        nope_width=whole("qk_nope_head_dim"), value_width=whole("v_head_dim"),
        query_rank=whole("q_lora_rank", default=0) or None,
    )  # fmt: skip


def _native(config: Mapping[str, Any]) -> Precision:
    quantised = config.get("quantization_config")
    method = str(quantised.get("quant_method", "")) if isinstance(quantised, Mapping) else ""
    if "fp4" in method:
        return "fp4"
    if config.get("expert_dtype") == "fp4":
        return "fp4"
    return "fp8" if "fp8" in method else "bf16"
