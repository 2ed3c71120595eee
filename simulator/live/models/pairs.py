"""Drafts and the target they belong to: making untrained ones for it, and whether two match."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from simulator.core.errors import BadInputError
from simulator.core.reading import read_json
from simulator.live.models import checkpoints
from simulator.live.models.checkpoints import Fields
from simulator.live.models.draft import Draft
from simulator.live.models.drafts import deepseek, dspark_v4, mtp
from simulator.live.models.drafts.deepseek import DeepSeekMTPConfig, DeepSeekMTPDraft
from simulator.live.models.drafts.dspark import ARCHITECTURE, GEMMA4, DSparkConfig, DSparkDraft
from simulator.live.models.drafts.dspark_v4 import V4Config, V4Draft
from simulator.live.models.drafts.eagle3 import ARCHITECTURES as EAGLE3
from simulator.live.models.drafts.eagle3 import Eagle3Config, Eagle3Draft
from simulator.live.models.drafts.mtp import MTPConfig, MTPDraft
from simulator.live.models.drafts.packaging import architecture
from simulator.live.models.layers import ROPE_TYPES
from simulator.live.models.targets import Target, load_target

_TOKENIZER_FILE = "tokenizer.json"

AnyDraft = DSparkDraft | MTPDraft | DeepSeekMTPDraft | Eagle3Draft
"""Kinds of drafts that a checkpoint can hold; V4's is a DSpark draft."""

_INITIAL_SPREAD = 0.02  # standard deviation of new weights, Qwen3's initializer_range


def new_dspark(
    target: Target,
    *,
    mask_token_id: int,
    block_size: int = 7,
    num_layers: int = 5,
    target_layer_ids: tuple[int, ...] | None = None,
    markov_rank: int = 256,
    markov_head_type: str = "vanilla",
    confidence: bool = True,
    seed: int = 0,
    **shape: Any,
) -> DSparkDraft:
    """Make an untrained DSpark draft for a target, in its dtype, on its device, with its embedding and head.

    ``markov_rank`` 0 with ``confidence`` False is DFlash. ``target_layer_ids`` None spreads five (fewer
    for a shallow target) from layer 1 to the third last, which gives the published drafts' choice.
    ``shape`` overrides fields that are otherwise the target's, such as ``intermediate_size``.
    Raises ``BadInputError`` that names the field for a setting that makes no draft.
    """
    settings = _shape_of(target, num_layers) | {
        "mask_token_id": mask_token_id,
        "block_size": block_size,
        "target_layer_ids": target_layer_ids or spread_layer_ids(target.num_layers),
        "markov_rank": markov_rank,
        "markov_head_type": markov_head_type,
        "enable_confidence_head": confidence,
        "confidence_head_with_markov": markov_rank > 0,
    }
    draft = DSparkDraft(DSparkConfig.from_fields(Fields(settings | shape, "new draft")))
    _initialise(draft, target, seed)
    return draft.to(device=target.device, dtype=target.dtype)


def new_mtp(target: Target, *, seed: int = 0, **shape: Any) -> MTPDraft:
    """Make an untrained MTP module for a target; arguments as for ``new_dspark``. block_size: K, else 1."""
    draft = MTPDraft(MTPConfig.from_fields(Fields(_shape_of(target, 1) | shape, "new draft")))
    _initialise(draft, target, seed)
    return draft.to(device=target.device, dtype=target.dtype)


def new_eagle3(target: Target, *, ttt_length: int = 7, seed: int = 0, **shape: Any) -> Eagle3Draft:
    """Make an untrained Eagle3 drafter for a target; arguments as for ``new_dspark``."""
    settings = _shape_of(target, 1) | {
        "ttt_length": ttt_length,
        "target_layer_ids": [each for each in spread_layer_ids(target.num_layers) if each >= 0],
    }
    draft = Eagle3Draft(Eagle3Config.from_fields(Fields(settings | shape, "new draft")))
    _initialise(draft, target, seed)
    return draft.to(device=target.device, dtype=target.dtype)


def spread_layer_ids(num_target_layers: int, count: int = 5) -> tuple[int, ...]:
    """Up to ``count`` layers at equal distances from 1 to the third last: (1, 9, 17, 25, 33) of 36.

    A target too shallow for that gives the first of its layers but the last, or else its embeddings (-1).
    """
    last = max(num_target_layers - 3, min(0, num_target_layers - 2))
    first = min(1, last)
    evenly = torch.linspace(first, last, min(count, last - first + 1)).round()
    return tuple(int(layer) for layer in evenly)


def _shape_of(target: Target, num_layers: int) -> dict[str, Any]:
    described = target.config.get_text_config()
    shared = (
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
    )
    stated = described.to_dict()  # as attributes, what differs between layers would be refused
    fields = {name: stated.get(name) for name in shared}
    fields["head_dim"] = fields["head_dim"] or target.hidden_size // described.num_attention_heads
    fields["rope_parameters"] = _drafts_rope(fields["rope_parameters"])
    return fields | {
        "vocab_size": target.vocab_size,
        "hidden_size": target.hidden_size,
        "num_hidden_layers": num_layers,
        "num_target_layers": target.num_layers,
    }


def _drafts_rope(rope: Any) -> Any:
    """Return a target's rotary settings; where drafts have not their kind, the default with their base."""
    inner = rope.get("full_attention", rope) if isinstance(rope, dict) else None
    if not isinstance(inner, dict) or inner.get("rope_type", "default") in ROPE_TYPES:
        return rope
    return {"rope_type": "default", "rope_theta": inner.get("rope_theta", 10_000.0)}


@torch.no_grad()
def _initialise(draft: DSparkDraft | MTPDraft | Eagle3Draft, target: Target, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for module in draft.modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            module.weight.normal_(0.0, _INITIAL_SPREAD, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
    draft.embed_tokens.weight.copy_(target.embedding)
    draft.lm_head.weight.copy_(target.head)
    draft.embed_tokens.requires_grad_(False)
    draft.lm_head.requires_grad_(False)


def check_pair(target: Target, draft: Draft) -> None:
    """Raise ``BadInputError`` unless the draft can read this target's states and speak its tokens.

    Compares vocabulary, width, depth, dtype, device and, where both folders hold a tokenizer, every
    token's id.
    """
    weight = draft.embed_tokens.weight
    trained_for = "use the target that the draft was trained with"
    converted = "load both with the same dtype= and device="
    for field, of_draft, of_target, remedy in (
        ("vocab_size", draft.shape.vocab_size, target.vocab_size, trained_for),
        ("hidden_size", draft.shape.hidden_size, target.hidden_size, trained_for),
        ("num_target_layers", draft.num_target_layers, target.num_layers, trained_for),
        ("dtype", weight.dtype, target.dtype, converted),
        ("device", weight.device, target.device, converted),
    ):
        if of_draft != of_target:
            raise BadInputError(
                f"is {of_draft} for the draft and {of_target} for the target {target.name}",
                source=draft.source or "draft",
                field=field,
                remedy=remedy,
            )
    if draft.source is not None and target.folder is not None:
        _check_tokenizers(Path(draft.source), target.folder)


def _check_tokenizers(draft_folder: Path, target_folder: Path) -> None:
    ours, theirs = draft_folder / _TOKENIZER_FILE, target_folder / _TOKENIZER_FILE
    if not (ours.is_file() and theirs.is_file()):
        return
    different = _token_ids(ours) ^ _token_ids(theirs)
    if different:
        raise BadInputError(
            f"gives {len(different)} tokens other ids than {theirs} does",
            source=str(ours),
            field="model.vocab",
            value=sorted(different)[0],
            remedy="use the target that the draft was trained with",
        )


@lru_cache(maxsize=8)  # large vocabularies take a good part of a second to parse
def _token_ids(path: Path) -> frozenset[tuple[str, int]]:
    tokenizer = read_json(path)
    try:
        if not isinstance(tokenizer, dict):
            raise TypeError("not a JSON object")
        vocabulary = tokenizer["model"]["vocab"]
        if isinstance(vocabulary, list):  # unigram models: [token, score] in id order
            vocabulary = {entry[0]: index for index, entry in enumerate(vocabulary)}
        added = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    except (KeyError, TypeError, IndexError) as error:
        raise BadInputError(
            f"is not a tokenizer: {error!r}", source=str(path), remedy="export it again"
        ) from error
    return frozenset({**vocabulary, **added}.items())


def load_draft(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    gamma: int | None = None,
    config_only: bool = False,
    seed: int = 0,
) -> Draft:
    """Load a DSpark, DFlash, Eagle3 or MTP draft from a folder or a hub repository.

    Of a checkpoint of DeepSeek-V3 that is the MTP module behind its layers.

    ``dtype`` None keeps the checkpoint's. ``gamma``: the block size; what was trained, but for drafters of
    one layer (Eagle3, MTP), which run as often as is asked. ``config_only`` reads config.json alone and gives
    the draft of that shape random weights (of ``seed``, bfloat16 by default); on the device ``meta`` none.
    Raises ``BadInputError`` for a config, keys, shapes, dtypes or a file that are not what they should be,
    and before loading when memory is too little.
    """
    folder = checkpoints.model_folder(path)
    fields = checkpoints.read_fields(folder)
    with torch.device("meta"):  # no storage and no random numbers spent: every weight comes from the file
        draft = _empty_draft(fields, gamma)
    if gamma is not None and gamma != draft.gamma:
        raise BadInputError(
            f"the draft was trained for block size {draft.gamma}, not {gamma}",
            source=fields.source,
            field="block_size",
            value=gamma,
            remedy="verify fewer tokens with a scheduler, or train a draft for that block size",
        )
    device = torch.device(device)
    if config_only:
        return _with_random_weights(draft, dtype or torch.bfloat16, device, fields.source, seed)
    tensors = draft.read(folder, device)
    checkpoints.require_same_tensors(tensors, draft.state_dict(), str(folder))
    wide = {name: tensors.pop(name).float() for name in list(tensors) if name.endswith(draft.in_float32)}
    dtype = dtype or checkpoints.one_dtype(tensors, str(folder))
    draft.load_state_dict(wide | {name: tensor.to(dtype) for name, tensor in tensors.items()}, assign=True)
    draft.source = str(folder)
    return draft.to(device).eval().requires_grad_(False)


@torch.no_grad()
def _with_random_weights(
    draft: AnyDraft, dtype: torch.dtype, device: torch.device, source: str, seed: int
) -> AnyDraft:
    """Give a draft without storage random matrices; norms and scalars are 1, biases and sinks 0."""
    weights = draft.state_dict()
    needed = sum(each.numel() for each in weights.values()) * dtype.itemsize
    checkpoints.require_memory(needed, device, source)
    kept = {name for name in weights if name.endswith(draft.in_float32)}
    draft = draft.to(dtype).to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed) if device.type != "meta" else None
    for name, weight in draft.state_dict().items():
        if generator is None:
            break
        if weight.dim() > 1:
            weight.normal_(0.0, _INITIAL_SPREAD, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith(("bias", ".base", ".sinks")) else 1.0)
    for name, tensor in (*draft.named_parameters(), *draft.named_buffers()):
        if name in kept:
            tensor.data = tensor.data.float()
    return draft.eval().requires_grad_(False)


def _empty_draft(fields: Fields, gamma: int | None) -> AnyDraft:
    """Return the draft of a config without its weights, run as often as asked where it is one layer."""
    known = (ARCHITECTURE, GEMMA4, *EAGLE3, mtp.ARCHITECTURE, deepseek.ARCHITECTURE, dspark_v4.ARCHITECTURE)
    named = architecture(fields, known)
    if named == dspark_v4.ARCHITECTURE:
        return V4Draft(V4Config.from_fields(fields))
    if named == deepseek.ARCHITECTURE:
        return DeepSeekMTPDraft(replace(DeepSeekMTPConfig.from_fields(fields), block_size=gamma or 1))
    if named == mtp.ARCHITECTURE:
        of_mtp = MTPConfig.from_fields(fields)
        return MTPDraft(replace(of_mtp, block_size=gamma or of_mtp.block_size))
    if named in EAGLE3:
        of_eagle = Eagle3Config.from_fields(fields)
        return Eagle3Draft(replace(of_eagle, ttt_length=gamma or of_eagle.ttt_length))
    return DSparkDraft(DSparkConfig.from_fields(fields))


def save_draft(draft: Draft, path: str | Path) -> None:
    """Write model.safetensors and config.json into a folder, each atomically, for ``load_draft``."""
    if not isinstance(draft, (DSparkDraft, MTPDraft, Eagle3Draft)):
        raise TypeError(f"cannot save a {type(draft).__name__}")
    dtype = str(draft.embed_tokens.weight.dtype).removeprefix("torch.")
    checkpoints.save_model(Path(path), draft.config.to_dict() | {"dtype": dtype}, draft.state_dict())


def asked_dtype(name: str | None, device: str) -> torch.dtype:
    """Return the dtype of that name; None is float32 on a CPU and bfloat16 elsewhere."""
    kind = getattr(torch, name or ("float32" if device.startswith("cpu") else "bfloat16"), None)
    if not isinstance(kind, torch.dtype):
        raise BadInputError("is not a torch dtype", field="dtype", value=name, remedy="bfloat16 or float32")
    return kind


def _steps(name: str, source: str) -> tuple[str, int | None]:
    """Return a source without K, and K: of MTP it stands behind the source (mtp=FOLDER:3) or in the name."""
    place, _, last = source.rpartition(":")
    if name.startswith("mtp") and place and last.isdigit():
        return place, int(last)
    in_name = name.removeprefix("mtp")
    return source, int(in_name) if name.startswith("mtp") and in_name.isdigit() else None


def load_pair(
    target: str, drafts: list[str], device: str, dtype: str | None, threads: int
) -> tuple[Target, dict[str, Draft]]:
    """Load a target and drafts on a device, from ``NAME=FOLDER`` or, untrained, ``NAME=new[:GAMMA]``."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInputError("no CUDA device is here", field="device", value=device, remedy="use cpu")
    torch.set_num_threads(threads)
    kind = asked_dtype(dtype, device)
    model = load_target(target, dtype=kind, device=device)
    loaded: dict[str, Draft] = {}
    for text in drafts:
        name, _, source = text.partition("=")
        source, steps = _steps(name, source)
        made, _, gamma = source.partition(":")
        if made == "new" and name.startswith("mtp"):
            loaded[name] = new_mtp(model, block_size=steps or 1)
        elif made == "new":
            loaded[name] = new_dspark(model, mask_token_id=0, block_size=int(gamma or 7))
        elif source:
            loaded[name] = load_draft(source, dtype=kind, device=device, gamma=steps)
        else:
            raise BadInputError("names no draft", field="draft", value=text, remedy="as in dspark=FOLDER")
    return model, loaded
