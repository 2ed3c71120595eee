"""What every draft that runs in a chain must do, whichever packaging it came in."""

from __future__ import annotations

from typing import Any

import torch


def assert_batches_agree(target: Any, draft: Any) -> None:
    """Two requests drafted together, in packed blocks and each alone get the same drafts.

    target: of a vocabulary of 64 tokens.
    """
    tokens = torch.randint(64, (2, 14), generator=torch.Generator().manual_seed(4))
    states = target.forward(tokens, layer_ids=draft.target_layer_ids).features
    counts = [3, 6]
    together = draft.propose(
        torch.cat([states[row, :count] for row, count in enumerate(counts)]),
        torch.cat([tokens[row, 1 : count + 1] for row, count in enumerate(counts)]),
        torch.tensor(counts), draft.new_cache(2, 20),
    )  # fmt: skip
    packed = draft.packed_blocks(states[:, :6], tokens, torch.tensor([[1, 3], [6, 2]]), follow=False)
    for row, count in enumerate(counts):
        alone = draft.propose(
            states[row, :count], tokens[row, 1 : count + 1], torch.tensor([count]), draft.new_cache(1, 20)
        )
        torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
        at = 1 - row  # the anchor's place among the packed ones
        torch.testing.assert_close(packed.logits[row, at], alone.logits[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(packed.tokens[row, at], alone.tokens[0])
