"""The split kernels against the definition, row by row: interpreted on a CPU, compiled on a GPU.

Whatever lies behind a request's own context is NaN, so that reading any of it shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from simulator.live.engine.attention.kernels import explicit, plain
from simulator.live.engine.attention.ragged import RaggedTarget
from simulator.live.engine.attention.rows import RaggedRows
from simulator.live.models.kv_cache import DraftStep
from simulator.live.models.layers import DraftCache, OwnContext
from simulator.live.models.pairs import new_dspark, new_mtp
from tests.live.conftest import MakeTarget, randomise
from tests.support.interpreted import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

EXACT: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def split() -> Iterator[ModuleType]:
    with kernels("simulator.live.engine.attention.split") as module:
        yield module


def case(
    counts: Sequence[int], starts: Sequence[int], *, heads: int = 4, kv_heads: int = 2, head_dim: int = 16,
    padding: int = 2, behind: float = float("nan"), dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, RaggedRows]:  # fmt: skip
    """Queries, keys, values and rows of requests with these rows at these positions."""
    draw = torch.Generator().manual_seed(0)
    ends = [count + start for count, start in zip(counts, starts, strict=True)]
    shape = (len(counts), max(ends) + 5, kv_heads, head_dim)
    keys, values = torch.randn((2, *shape), generator=draw).to(dtype)
    for request, end in enumerate(ends):
        keys[request, end:] = values[request, end:] = behind
    query = torch.randn((sum(counts) + padding, heads, head_dim), generator=draw).to(dtype)
    rows = RaggedRows.of(
        torch.tensor(counts, device=DEVICE), torch.tensor(starts, device=DEVICE), len(query),
        block=max(counts), context=max(ends),
    )  # fmt: skip
    return query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), rows


def ours(
    split: ModuleType, query: Tensor, keys: Tensor, values: Tensor, rows: RaggedRows, **how: Any
) -> Tensor:
    mixed: Tensor = split.attend(
        query, keys, values, rows.first_rows, rows.counts, rows.starts, rows.valid,
        block=rows.block, scale=0.3, causal=True, **how,
    )  # fmt: skip
    return mixed


@pytest.mark.parametrize(
    ("counts", "starts", "shape"),
    [
        ([3, 1, 0, 8], [5, 0, 7, 60], {}),
        ([2, 1, 8], [5, 1500, 90], {}),  # one long context beside short ones
        ([1, 1], [63, 64], {}),  # contexts that end with a stretch of keys, and one behind
        ([2, 5], [3, 70], {"heads": 6, "kv_heads": 3, "head_dim": 24}),
        ([2, 1], [30, 3], {"heads": 4, "kv_heads": 1}),
        ([40], [100], {"heads": 8}),  # rows of one request in several tiles, as of a prompt
    ],
    ids=["ragged", "long", "ends", "odd width", "one key head", "prompt"],
)
def test_rows_see_their_own_context_as_the_definition_says(
    split: ModuleType, counts: list[int], starts: list[int], shape: dict[str, int]
) -> None:
    query, keys, values, rows = case(counts, starts, **shape)
    mixed = ours(split, query, keys, values, rows)
    torch.testing.assert_close(mixed, plain(query, keys, values, rows, 0.3, None), **EXACT)
    assert mixed[sum(counts) :].eq(0).all()


@pytest.mark.parametrize("window", [1, 7, 100])
def test_a_window_hides_what_is_older(split: ModuleType, window: int) -> None:
    query, keys, values, rows = case([3, 1, 8], [5, 300, 90])
    for request, (start, count) in enumerate(zip([5, 300, 90], [3, 1, 8], strict=True)):
        first = (start - window + 1) // 64 * 64  # keys are read 64 at a time, and none before those
        if first > 0:
            keys[request, :first] = values[request, :first] = float("nan")
        assert count
    mixed = ours(split, query, keys, values, rows, window=window)
    torch.testing.assert_close(mixed, plain(query, keys, values, rows, 0.3, window), **EXACT)


@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [True, False])
def test_caps_and_sinks_are_those_of_the_softmax_spelled_out(
    split: ModuleType, cap: float | None, with_sinks: bool
) -> None:
    query, keys, values, rows = case([3, 1, 8], [5, 0, 90], behind=0.0)
    sinks = torch.tensor([0.5, -1.0, 3.0, 0.0], device=DEVICE) if with_sinks else None
    mixed = ours(split, query, keys, values, rows, cap=cap, sinks=sinks)
    expected = explicit(query, keys, values, rows, 0.3, None, cap=cap, sinks=sinks)
    torch.testing.assert_close(mixed[:12], expected[:12], **EXACT)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("window", [None, 100])
def test_half_precision_is_within_its_rounding(
    split: ModuleType, dtype: torch.dtype, unit: float, window: int | None
) -> None:
    query, keys, values, rows = case([3, 1, 8], [5, 300, 90], dtype=dtype)
    expected = plain(query.float(), keys.float(), values.float(), rows, 0.3, window)
    mixed = ours(split, query, keys, values, rows, window=window)
    assert mixed.dtype == dtype
    # Weights, which sum to 1, are rounded before they meet the values, and so is what comes out: at most one
    # unit of rounding each. Of bfloat16 it is 2^-8 on a device; the interpreter cuts instead: 2^-7.
    largest = float(values.nan_to_num().abs().max())
    torch.testing.assert_close(mixed.float(), expected, atol=unit * largest, rtol=unit)


def test_one_long_context_adds_no_work_to_short_ones(
    split: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of keys that are read, counted from the loop's own bounds."""
    if DEVICE == "cuda":
        pytest.skip("counts inside the interpreter")
    read: list[int] = []

    def counted(begin: Any, end: Any, step: Any) -> range:
        bounds = range(int(begin.handle.data.item()), int(end.handle.data.item()), int(step))
        read.append(len(bounds))
        return bounds

    monkeypatch.setattr(split, "range", counted, raising=False)
    ours(split, *case([1, 1, 1, 1], [63, 63, 63, 959]))
    # Of 64 keys each, for two key heads: one of each short context and 15 of the long one.
    assert sum(read) == 2 * (3 * 1 + 15)


@pytest.mark.parametrize("drafter", ["dspark", "mtp1"])
def test_a_draft_reads_each_context_to_its_end(
    split: ModuleType, make_target: MakeTarget, drafter: str
) -> None:
    target = make_target()
    draft: Any = new_mtp(target)
    if drafter == "dspark":
        draft = new_dspark(target, mask_token_id=5, block_size=4, num_layers=2, markov_rank=4)
    randomise(draft, seed=3, spread=0.2)
    draft.to(DEVICE)
    lengths = torch.tensor([40, 9, 200], device=DEVICE)
    counts = torch.tensor([2, 1, 3])
    draw = torch.Generator().manual_seed(1)
    features = torch.randn(6, 32 * len(draft.target_layer_ids), generator=draw).to(DEVICE)
    tokens = torch.randint(0, 64, (6,), generator=draw).to(DEVICE)
    rows = torch.tensor([0, 0, 1, 2, 2, 2], device=DEVICE)
    positions = torch.tensor([38, 39, 8, 197, 198, 199], device=DEVICE)
    proposals = []
    for attend in (None, split.attend):
        cache: DraftCache = draft.new_cache(3, 256)
        past = torch.randn(cache.keys.shape, generator=torch.Generator().manual_seed(2)).to(DEVICE)
        cache.keys.copy_(past)
        cache.values.copy_(past.flip(-1))
        if attend:  # what the plain path hides by a mask is not there at all
            for request, length in enumerate(lengths.tolist()):
                cache.keys[:, request, :, length:] = cache.values[:, request, :, length:] = float("nan")
        view = DraftStep(cache, rows, positions, lengths, context=256, attend=attend)
        assert isinstance(view.mask(), OwnContext) == bool(attend)
        with torch.no_grad():
            proposals.append(draft.propose(features, tokens, counts, view))
    torch.testing.assert_close(proposals[1].logits, proposals[0].logits, atol=1e-4, rtol=1e-3)


def test_a_target_with_the_split_kernel_is_the_model(split: ModuleType, make_target: MakeTarget) -> None:
    target = make_target()
    tokens = torch.randint(0, 64, (2, 20), generator=torch.Generator().manual_seed(1))
    target.model.to(DEVICE)
    ragged = RaggedTarget(target, "split")
    assert (ragged.kernel_name, ragged.draft_attend) == ("split", split.attend)
    cache = ragged.new_cache(2, 40)
    first = RaggedRows.of(torch.tensor([12, 3]), torch.tensor([0, 0]), 15, block=12, context=12)
    ragged.forward(torch.cat((tokens[0, :12], tokens[1, :3])), [first], cache)
    rows = RaggedRows.of(torch.tensor([2, 5]), torch.tensor([12, 3]), 7, block=5, context=14)
    output = ragged.forward(torch.cat((tokens[0, 12:14], tokens[1, 3:8])), [rows], cache)
    expected = torch.cat((target.forward(tokens[:1, :14]).logits[0, 12:],
                          target.forward(tokens[1:, :8]).logits[0, 3:]))  # fmt: skip
    torch.testing.assert_close(output.logits, expected, atol=5e-4, rtol=1e-3)
