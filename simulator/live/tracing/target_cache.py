"""DeepSpec's target cache (version 2) read, and a draft judged on it without the target.

A folder with ``manifest.json``, ``samples.idx`` and shards. An index record is little-endian: sample id (8
bytes), shard id (4), length (4), and the offsets in the shard (8 each) of token ids (int32), attention mask
and loss mask (uint8), the states of the chosen layers side by side and the final-normed state (bfloat16).

What the target says at a position is its head on the final-normed state; a DeepSpec draft carries a copy of
that head.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from simulator.acceptance.trace import AcceptanceTrace
from simulator.core.errors import BadInputError
from simulator.core.provenance import Provenance
from simulator.core.reading import read_json
from simulator.live.models.checkpoints import Fields
from simulator.live.models.drafts.dspark import DSparkDraft
from simulator.live.tracing.record import Kind, judge_read

_VERSION = 2

_RECORD = struct.Struct("<QIIQQQQQ")

_TYPES = {"hidden_dtype": "bfloat16", "token_dtype": "int32", "mask_dtype": "uint8"}


@dataclass(frozen=True, slots=True, eq=False)
class CachedSample:
    """One conversation of T tokens.

    tokens: int64 [T]. loss_mask: bool [T], the target's own answers. features: [T, layers * hidden].
    last_hidden: [T, hidden], behind the final norm. Both are bfloat16.
    """

    tokens: Tensor
    loss_mask: Tensor
    features: Tensor
    last_hidden: Tensor


class TargetCache:
    """A target cache on disk; samples are read one at a time."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        raw = read_json(path)
        if not isinstance(raw, dict):
            raise BadInputError("must hold a JSON object", source=str(path), remedy="prepare the cache again")
        fields = Fields(raw, str(path))
        if fields.integer("version") != _VERSION:
            raise fields.error("version", f"only version {_VERSION} is read", "prepare the cache again")
        if fields.integer("index_record_size") != _RECORD.size:
            raise fields.error("index_record_size", f"must be {_RECORD.size}", "prepare the cache again")
        for name, supported in _TYPES.items():
            if raw.get(name) != supported:
                raise fields.error(name, f"must be {supported}", "prepare the cache again")
        self.hidden_size = fields.integer("hidden_size", minimum=1)
        self.target_layer_ids = fields.integers("target_layer_ids")
        self.samples = fields.integer("num_samples")
        self._shards = [self._shard(each, fields) for each in raw.get("shards") or []]
        self._index = (self.folder / "samples.idx").read_bytes() if self.samples else b""
        if len(self._index) != self.samples * _RECORD.size:
            raise fields.error("num_samples", "is not what samples.idx holds", "prepare the cache again")

    def _shard(self, shard: object, fields: Fields) -> Path:
        name = shard.get("file_name") if isinstance(shard, dict) else None
        if not isinstance(name, str) or Path(name).name != name or not (self.folder / name).is_file():
            raise fields.error("shards", "must name files of this folder", "copy the whole cache")
        return self.folder / name

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[CachedSample]:
        return (self[index] for index in range(self.samples))

    def __getitem__(self, index: int) -> CachedSample:
        """Read one sample; raises ``BadInputError`` for an index that does not fit its shard."""
        if not 0 <= index < self.samples:
            raise IndexError(index)
        number, shard, length, ids, _, mask, features, last = _RECORD.unpack_from(
            self._index, index * _RECORD.size
        )
        if number != index or shard >= len(self._shards):
            raise BadInputError(
                f"is not in order at record {index}", source=str(self.folder / "samples.idx"),
                remedy="prepare the cache again",
            )  # fmt: skip
        file, width = self._shards[shard], self.hidden_size * len(self.target_layer_ids)
        return CachedSample(
            torch.from_numpy(_read(file, ids, length, np.dtype("<i4")).astype(np.int64)),
            torch.from_numpy(_read(file, mask, length, np.dtype("u1"))).bool(),
            _bfloat16(_read(file, features, length * width, np.dtype("<u2"))).view(length, width),
            _bfloat16(_read(file, last, length * self.hidden_size, np.dtype("<u2"))).view(length, -1),
        )


def _read(file: Path, offset: int, count: int, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    values = np.fromfile(file, dtype=dtype, count=count, offset=offset)
    if len(values) != count:
        raise BadInputError(
            "ends before what its index lists", source=str(file), field="offset", value=offset,
            remedy="copy the whole cache",
        )  # fmt: skip
    return values


def _bfloat16(bits: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def trace_cache(
    cache: TargetCache, draft: DSparkDraft, *, name: str, temperature: float = 1.0, kind: Kind = "expected"
) -> AcceptanceTrace:
    """Judge a draft at every position of the answers in a cache; each run of answer tokens is a sequence.

    kind: ``expected`` or ``coupled``, whose law is right where the answers were sampled at ``temperature``.
    Raises ``BadInputError`` for a draft of other layers and for a cache without answers.
    """
    ids, wanted = cache.target_layer_ids, tuple(draft.target_layer_ids)
    if ids != wanted or cache.hidden_size != draft.shape.hidden_size:
        raise BadInputError(
            f"is of layers {list(ids)} and width {cache.hidden_size}, the draft reads {list(wanted)} and "
            f"{draft.shape.hidden_size}", source=str(cache.folder), field="target_layer_ids",
            remedy="use the cache that the draft was trained on",
        )  # fmt: skip
    pieces = [
        _judged_run(sample, first, end, draft, temperature, kind)
        for sample in cache
        for first, end in _runs(sample.loss_mask)
        if end - first > 1
    ]
    if not pieces:
        raise BadInputError("holds no answer of the target", source=str(cache.folder), field="loss_mask",
                            remedy="choose another cache")  # fmt: skip
    outcome, confidence, effective, tokens = (list(part) for part in zip(*pieces, strict=True))
    logits = [each for each in confidence if each is not None]
    return AcceptanceTrace(
        name=name,
        confidence_logits=np.concatenate(logits) if logits else None,
        sequence_start=np.concatenate([[0], np.cumsum([len(each) for each in tokens])]),
        provenance=Provenance(
            kind="measured", source=f"DeepSpec's target cache {cache.folder.name}", date="undated",
            draft=Path(draft.source).name if draft.source else None,
            notes=f"acceptance at temperature {temperature:g}, {kind}",
        ),
        acceptance_probability=np.concatenate(outcome),
        effective_length=np.concatenate(effective),
        target_tokens=np.concatenate(tokens),
    )  # fmt: skip


def _runs(mask: Tensor) -> list[tuple[int, int]]:
    """First position and end of each run of True whose first has a position before it."""
    padded = np.concatenate([[0], mask.numpy().astype(np.int8), [0]])
    first, end = np.flatnonzero(np.diff(padded) == 1), np.flatnonzero(np.diff(padded) == -1)
    return [(max(int(a), 1), int(b)) for a, b in zip(first, end, strict=True)]


_Piece = tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.uint8], NDArray[np.int64]]


def _judged_run(
    sample: CachedSample, first: int, end: int, draft: DSparkDraft, temperature: float, kind: Kind
) -> _Piece:
    """Outcome, confidences, effective lengths and tokens of anchors first .. end - 2 of one answer."""
    weight = draft.lm_head.weight
    anchors = torch.arange(first, end - 1, device=weight.device)
    padded = torch.nn.functional.pad(sample.tokens[:end], (0, draft.gamma))[None].to(weight.device)
    reading = _FromCache(sample, draft, end)
    judged = judge_read(reading, draft, padded, anchors, (kind,), temperature=temperature)
    confidence = judged.confidence_logits
    return (
        judged.outcomes[kind][0].float().cpu().numpy(),
        None if confidence is None else confidence[0].cpu().numpy(),
        (end - 1 - anchors).clamp(max=draft.gamma).to(torch.uint8).cpu().numpy(),
        sample.tokens[first : end - 1].numpy(),
    )


class _FromCache:
    """States and logits of a cached sample, as ``record`` reads them from a target."""

    def __init__(self, sample: CachedSample, draft: DSparkDraft, end: int) -> None:
        weight = draft.lm_head.weight
        self._draft = draft
        self._features = sample.features[None, :end].to(weight)
        self._last = sample.last_hidden[:end].to(weight)

    def features_to(self, end: int) -> Tensor:
        """Features [1, end, width] of the positions before ``end``, or of all that there are."""
        return self._features[:, :end]

    def logits_at(self, slots: Tensor) -> Tensor:
        """Logits [1, A, gamma, V]; behind the answer's end, those of its last position."""
        return self._draft.base_logits(self._last[slots.clamp(max=len(self._last) - 1)])
