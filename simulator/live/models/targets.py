"""Target models: any Hugging Face causal LM, with the hidden states that drafts read.

Hidden states are taken by forward hooks on the chosen modules. transformers can return all of them
(``output_hidden_states``), but that keeps every layer's output of a whole prefill alive, 10 GB for
32 000 tokens of an 8B model, and for the last layer it gives the normed state instead of the raw one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn

from simulator.core.errors import BadInputError
from simulator.live.families.architectures import (
    LayerShape,
    layer_shapes,
    mtp_prefixes,
    refuse_older,
    refuse_untested,
)
from simulator.live.models import checkpoints
from simulator.live.models.checkpoints import Fields

_AUTO_MODEL: Any = transformers.AutoModelForCausalLM

# The argument was renamed in transformers 4.56.
_DTYPE_ARGUMENT = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"

_READS_ROPE_PARAMETERS = Version(transformers.__version__) >= Version("5.0")

# Published shapes (each model's config.json on its hub page); the rest is Qwen3Config's default.
_QWEN3: dict[str, Any] = {
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
}

PRESETS: dict[str, dict[str, Any]] = {
    "qwen3-4b": _QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": _QWEN3
    | {
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "qwen3-14b": _QWEN3
    | {
        "hidden_size": 5120,
        "intermediate_size": 17408,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True, slots=True, eq=False)
class TargetOutput:
    """One forward pass of the target.

    logits: [R, T, V], or [R, 1, V] when only the last were asked for. features: [R, T, width], the
    chosen states side by side, in id order; width is hidden size times the number of ids.
    """

    logits: Tensor
    features: Tensor


class Target:
    """A frozen causal LM. Its states: -1 the embeddings, l layer l's output, L the final norm's."""

    def __init__(self, model: Any, name: str, folder: Path | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.folder = folder
        self.config: Any = model.config
        refuse_untested(self.config, name)
        self._decoder: nn.Module = model.get_decoder()
        self._layers = _decoder_layers(self._decoder, name)
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

    @cached_property
    def digest(self) -> str:
        """Digest of config and weights: the same model by another path has it, other weights do not."""
        if self.folder is None:
            config = self.config.to_diff_dict()
        else:
            config = checkpoints.read_fields(self.folder).raw
        return checkpoints.content_digest(config, self.model.state_dict())

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self._layers)

    @property
    def layers(self) -> list[nn.Module]:
        """Decoder layers, as modules."""
        return self._layers

    @property
    def layer_shapes(self) -> tuple[LayerShape, ...]:
        """What each layer keeps of a position in a key-value cache."""
        return layer_shapes(self.config, self._layers)

    @property
    def embedding(self) -> Tensor:
        """Input embedding [V, d]."""
        return _weight(self.model, "get_input_embeddings")

    @property
    def head(self) -> Tensor:
        """Output head [V, d]."""
        return _weight(self.model, "get_output_embeddings")

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""
        return self.head.shape[0]

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return self.head.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.head.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    @property
    def weights_read(self) -> int:
        """Weights that a forward pass over text reads: the decoder without its tables, and the head.

        Of a table of embeddings a pass reads single rows. What is there for images or sound is not read.
        """
        tables = [each.weight for each in self._decoder.modules() if isinstance(each, nn.Embedding)]
        apart = {id(each) for each in (*tables, self.head)}
        of_decoder = (each for each in self._decoder.parameters() if id(each) not in apart)
        return self.head.numel() + sum(each.numel() for each in of_decoder)

    def bytes_read(self, context_tokens: int) -> int:
        """Bytes that a decode step reads at least: the weights once, and its contexts' keys and values.

        context_tokens: positions in the KV cache, summed over requests.
        """
        cached = context_tokens * sum(shape.numbers for shape in self.layer_shapes)
        return self.dtype.itemsize * (self.weights_read + cached)

    def new_cache(self) -> Any:
        """Return an empty key-value cache.

        It is made without the model's config on purpose: every layer then keeps all positions, also
        those with a sliding window, which a cache that forgets could not be cropped back to.
        """
        return transformers.DynamicCache()

    def forward(
        self,
        tokens: Tensor,
        *,
        layer_ids: Sequence[int] = (),
        cache: Any = None,
        last_logits_only: bool = False,
    ) -> TargetOutput:
        """Run the target on tokens [R, T] that continue ``cache`` (grown in place) or start from nothing."""
        arguments: dict[str, Any] = {"use_cache": cache is not None, self._cache_argument: cache}
        # As a tensor: of a number, Gemma 4 cuts the states of its last layers too.
        kept = torch.tensor([tokens.shape[1] - 1], device=tokens.device) if last_logits_only else 0
        with torch.no_grad(), self.capture(layer_ids) as states:
            output = self.model(input_ids=tokens, logits_to_keep=kept, **arguments)
        features = [states[layer] for layer in layer_ids]
        nothing = output.logits.new_empty((*tokens.shape, 0))
        return TargetOutput(output.logits, torch.cat(features, dim=-1) if features else nothing)

    def crop(self, cache: Any, length: int) -> None:
        """Shorten a cache to its first ``length`` positions."""
        surplus = cache.get_seq_length() - length
        if surplus > 0:
            cache.crop(-surplus)  # transformers 4 takes a length too, transformers 5 only the surplus

    @contextmanager
    def capture(self, layer_ids: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Inside, every forward pass of the model leaves the states asked for in the yielded dictionary."""
        states: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            for layer in layer_ids:
                hooks.callback(self._hook(layer, states).remove)
            yield states

    def _hook(self, layer: int, states: dict[int, Tensor]) -> torch.utils.hooks.RemovableHandle:
        if not -1 <= layer <= self.num_layers:
            raise BadInputError(
                f"the target's states go from -1 (embeddings) to {self.num_layers} (final norm)",
                source=self.name,
                field="layer_ids",
                value=layer,
                remedy="use a draft that was trained with this target",
            )

        def keep(output: Any) -> None:
            states[layer] = output if isinstance(output, Tensor) else output[0]

        if layer == -1:
            # What enters layer 0 is the embedding as the model scales it (Gemma does).
            return self._layers[0].register_forward_pre_hook(
                lambda _, args, kwargs: keep(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
        module = self._decoder if layer == self.num_layers else self._layers[layer]
        return module.register_forward_hook(lambda _, args, output: keep(output))


def load_target(
    path_or_name_or_preset: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    config_only: bool = False,
    seed: int = 0,
) -> Target:
    """Load a causal LM from a folder, the hub, or a preset's shape.

    A preset (``qwen3-4b``, ``qwen3-8b``, ``qwen3-14b``; a folder of that name goes first) has random
    weights of the true shape, for timing; ``config_only`` does the same from any model's config.json.
    Random weights depend on ``seed`` alone. ``dtype`` None is the config's (bfloat16 for presets).
    Raises ``BadInputError`` when memory does not suffice (before loading), when weights are missing,
    left over or corrupt, and when there are only pickled ones.
    """
    name, device = str(path_or_name_or_preset), torch.device(device)
    if name in PRESETS and not Path(name).is_dir():
        config = transformers.AutoConfig.for_model("qwen3", **PRESETS[name], rope_theta=1_000_000.0)
        return _random_target(config, dtype or torch.bfloat16, device, name, seed)
    folder = checkpoints.model_folder(path_or_name_or_preset)
    fields = checkpoints.read_fields(folder)
    stated = _stated_dtype(fields)  # before transformers, which trips over a dtype it does not know
    config = _read_config(folder, fields)
    dtype = dtype or stated
    if config_only:
        return _random_target(config, dtype, device, name, seed)
    checkpoints.weight_files(folder)
    needed = _weight_bytes(config, dtype, name)
    for place in {torch.device("cpu"), device}:  # transformers reads weights into host memory first
        checkpoints.require_memory(needed, place, name)
    return Target(_pretrained(folder, config, dtype).to(device), name, folder)


def _read_config(folder: Path, fields: Fields) -> Any:
    refuse_older(fields.raw.get("model_type"), fields.source)
    try:
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a config's mistakes come out as whatever its class trips over
        raise BadInputError(
            f"is not a model that this transformers ({transformers.__version__}) knows: {error}",
            source=fields.source,
            field="model_type",
            remedy="update transformers, or choose another target",
        ) from error
    refuse_untested(config, fields.source)
    if getattr(config.get_text_config(), "attn_logit_softcapping", None):
        # Older transformers run these through SDPA, which silently leaves the cap out.
        config._attn_implementation = "eager"
    rope = fields.raw.get("rope_parameters")
    if rope is not None and not isinstance(rope, dict):
        raise fields.error("rope_parameters", "must be an object of settings", "export the model again")
    if rope and not _READS_ROPE_PARAMETERS:
        _spell_rope_as_before(config, rope)
    return config


def _spell_rope_as_before(config: Any, rope: dict[str, Any]) -> None:
    """Say in transformers 4's fields what transformers 5 wrote, or 4 would silently use its default base."""
    of_full = rope.get("full_attention", rope)
    config.rope_theta = of_full["rope_theta"]
    config.rope_scaling = None if of_full.get("rope_type", "default") == "default" else dict(of_full)
    if "sliding_attention" in rope:
        config.rope_local_base_freq = rope["sliding_attention"]["rope_theta"]


def _stated_dtype(fields: Fields) -> torch.dtype:
    name = "dtype" if "dtype" in fields.raw else "torch_dtype"  # as transformers 5 and 4 write it
    dtype = getattr(torch, str(fields.raw.get(name) or "float32"), None)
    if not isinstance(dtype, torch.dtype):
        raise fields.error(name, "is not a torch dtype", "pass dtype=")
    return dtype


def _weight_bytes(config: Any, dtype: torch.dtype, name: str) -> int:
    """Bytes of the weights at ``dtype``, counted on a model without storage; tied weights count once."""
    with torch.device("meta"):
        model = _from_config(config, dtype, name)
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _from_config(config: Any, dtype: torch.dtype, name: str) -> nn.Module:
    try:
        model: nn.Module = _AUTO_MODEL.from_config(config, **{_DTYPE_ARGUMENT: dtype})
    except Exception as error:  # a config's mistakes come out as whatever the model's code trips over
        raise BadInputError(
            f"describes no model that transformers can build: {type(error).__name__}: {error}",
            source=name,
            field="config.json",
            remedy="mend the field, or choose another target",
        ) from error
    return model


def _random_target(config: Any, dtype: torch.dtype, device: torch.device, name: str, seed: int) -> Target:
    checkpoints.require_memory(_weight_bytes(config, dtype, name), device, name)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        return Target(_from_config(config, dtype, name), name)


@contextmanager
def _only_errors_logged() -> Iterator[None]:
    """Keep transformers from drawing bars, and a table of what is refused in one line right after."""
    logging = transformers.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _pretrained(folder: Path, config: Any, dtype: torch.dtype) -> nn.Module:
    """Load the model on the CPU; whatever transformers would only warn about is an error."""
    behind = mtp_prefixes(config)
    arguments = {
        _DTYPE_ARGUMENT: dtype, "output_loading_info": True, "use_safetensors": True,
        "ignore_mismatched_sizes": True,  # else transformers raises without saying which; refused below
    }  # fmt: skip
    try:
        with _only_errors_logged():
            model, info = _AUTO_MODEL.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False, **arguments
            )
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInputError(
            f"cannot be loaded: {error}",
            source=str(folder),
            remedy="check the checkpoint against its config.json",
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        names = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info[problem])
        names = [name for name in names if not name.startswith(behind)]
        if names:
            raise BadInputError(
                f"{len(names)} {problem.replace('_', ' ')} in the checkpoint",
                source=str(folder),
                field=names[0],
                value=names,
                remedy="the weights and config.json describe different models: take both from one export",
            )
    loaded: nn.Module = model
    return loaded


def _decoder_layers(decoder: nn.Module, name: str) -> list[nn.Module]:
    layer_lists = [child for child in decoder.children() if isinstance(child, nn.ModuleList)]
    if len(layer_lists) != 1:
        raise BadInputError(
            "has no single list of decoder layers",
            source=name,
            remedy="choose a decoder-only target such as Qwen3",
        )
    return list(layer_lists[0])


def _weight(model: Any, getter: str) -> Tensor:
    weight: Tensor = getattr(model, getter)().weight
    return weight
