"""Anchors and losses beyond what the reference's fixtures show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from simulator.live.models.pairs import new_dspark
from simulator.live.training import losses
from tests.live.conftest import MakeTarget


@given(
    mask=st.lists(st.lists(st.booleans(), min_size=9, max_size=9), min_size=1, max_size=3),
    count=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_anchors_are_candidates_in_order_without_repetition(
    mask: list[list[bool]], count: int, seed: int
) -> None:
    loss_mask = torch.tensor(mask)
    anchors, keep = losses.sample_anchors(loss_mask, count, torch.Generator().manual_seed(seed))
    candidates = losses.anchor_candidates(loss_mask)
    assert anchors.shape == keep.shape == (len(mask), count)
    for row in range(len(mask)):
        drawn = anchors[row][keep[row]].tolist()
        assert drawn == sorted(set(drawn))
        assert candidates[row, drawn].all()
        assert len(drawn) == min(count, int(candidates[row].sum()))
        assert not anchors[row][~keep[row]].any()


def test_every_candidate_is_equally_likely() -> None:
    loss_mask = torch.ones(4000, 6)
    anchors, _ = losses.sample_anchors(loss_mask, 2, torch.Generator().manual_seed(0))
    frequencies = anchors.flatten().bincount(minlength=5) / 8000
    assert frequencies.tolist() == pytest.approx([0.2] * 5, abs=0.02)


def test_a_block_ends_at_the_end_of_the_sequence_and_at_the_first_unsupervised_label() -> None:
    tokens = torch.arange(10, 18)[None]
    loss_mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]])
    anchors, keep = torch.tensor([[0, 5, 0]]), torch.tensor([[True, True, False]])
    blocks = losses.make_blocks(tokens, loss_mask, anchors, keep, gamma=4)
    assert blocks.mask.long().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]]
    assert blocks.previous[0, 0].tolist() == [10, 11, 12, 13]
    assert blocks.labels[0, 1, :2].tolist() == [16, 17]


@pytest.fixture(scope="module")
def setting(make_target: MakeTarget) -> Any:
    target = make_target()
    tokens = torch.randint(64, (4, 16), generator=torch.Generator().manual_seed(0))
    draft = new_dspark(target, mask_token_id=5, block_size=4, num_layers=1, markov_rank=0, confidence=False)
    anchors, keep = losses.sample_anchors(torch.ones(4, 16), 5, torch.Generator().manual_seed(1))
    blocks = losses.make_blocks(tokens, torch.ones(4, 16), anchors, keep, draft.gamma)
    states = target.forward(tokens, layer_ids=(*draft.target_layer_ids, target.num_layers)).features
    width = states.shape[-1] - target.hidden_size
    return target, draft, tokens, blocks, states[..., :width], states[..., width:]


def test_target_logits_are_the_targets_own(setting: Any) -> None:
    target, _, tokens, blocks, _, last_hidden = setting
    own = target.forward(tokens).logits
    rebuilt = losses.target_logits(last_hidden, target.head, blocks)
    for s, a, k in blocks.mask.nonzero().tolist():
        torch.testing.assert_close(rebuilt[s, a, k], own[s, int(blocks.anchors[s, a]) + k])


def test_sums_add_up_over_micro_batches(setting: Any) -> None:
    target, draft, tokens, blocks, features, last_hidden = setting
    weights = losses.LossWeights(1.0, 0.5, 0.0)

    def sums(rows: slice) -> losses.LossSums:
        part = losses.Blocks(
            blocks.anchors[rows], blocks.previous[rows], blocks.labels[rows], blocks.mask[rows]
        )
        output = losses.forward_blocks(draft, features[rows], tokens[rows], part)
        assert output.confidence_logits is None
        return losses.loss_sums(
            output, losses.target_logits(last_hidden[rows], target.head, part), part, weights
        )

    whole, halves = sums(slice(0, 4)), [sums(slice(0, 1)), sums(slice(1, 4))]
    for name in ("cross_entropy", "l1", "confidence", "weight"):
        torch.testing.assert_close(getattr(whole, name), sum(getattr(half, name) for half in halves))
    assert float(whole.confidence) == 0


def test_a_batch_without_supervised_tokens_has_a_loss_of_zero(setting: Any) -> None:
    target, draft, tokens, blocks, features, last_hidden = setting
    empty = losses.Blocks(blocks.anchors, blocks.previous, blocks.labels, torch.zeros_like(blocks.mask))
    output = losses.forward_blocks(draft, features, tokens, empty)
    weights = losses.LossWeights()
    sums = losses.loss_sums(output, losses.target_logits(last_hidden, target.head, empty), empty, weights)
    assert float(sums.total(weights).detach()) == 0


def test_a_draft_equal_to_the_target_has_the_whole_block_as_tau() -> None:
    acceptance, mask = torch.ones(1, 2, 3), torch.tensor([[[1, 1, 1], [1, 0, 0]]]).bool()
    assert float(losses.probabilistic_tau(acceptance, mask)) == pytest.approx(1 + (3 + 1) / 2)
