"""Drafters of one layer that runs once for each draft token: MTP-K and Eagle3.

Entry i of such a drafter joins a state of position i with the token at i + 1, attends to the entries before
it and predicts the token at i + 2. For committed positions the state is the target's. Behind the anchor it is
the drafter's own: the output of one step is the state of the next, joined with the token just drafted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from simulator.live.models import sampling
from simulator.live.models.draft import DraftModule, PackedBlocks, Proposal
from simulator.live.models.kv_cache import DraftContext
from simulator.live.models.layers import KeysValues, Mask, Reach, Rotary


class ChainedDraft(DraftModule, ABC):
    """What MTP-K and Eagle3 share; ``gamma`` steps of one layer make a block."""

    has_confidence = False
    gamma: int
    rotary: Rotary

    @abstractmethod
    def enter(self, features: Tensor) -> Tensor:
        """Turn the target's states [..., width] into states of this drafter, [..., d]."""

    @abstractmethod
    def join(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Pair states [..., d] with the tokens behind them [...]: the residual, and what attention reads."""

    @abstractmethod
    def keys_values(self, inputs: Tensor, rope: KeysValues) -> KeysValues:
        """Keys and values [..., kv_heads, head_dim] of what attention reads."""

    @abstractmethod
    def run_layer(
        self, residual: Tensor, inputs: Tensor, rope: KeysValues, reach: Reach, mask: Mask
    ) -> Tensor:
        """One step of the layer: [R, Q, d]."""

    @abstractmethod
    def leave(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the state of the next step and the logits of this one: [..., d], [..., V]."""

    def propose(
        self,
        features: Tensor,
        tokens: Tensor,
        counts: Tensor,
        cache: DraftContext,
        *,
        temperature: float = 0.0,
        uniforms: Tensor | None = None,
    ) -> Proposal:
        """See ``Draft.propose``.

        Every new position leaves its keys and values behind, but only the anchor's is asked for a prediction,
        so there is one query row per request however many positions are new. Steps behind the anchor write
        behind the context, where the next context overwrites them.
        """
        residual, inputs = self.join(self.enter(features), tokens)
        rows, positions = cache.claim(counts)
        rope = self.rotary(positions, inputs.dtype)
        cache.write(0, rows, positions, *self.keys_values(inputs, rope))
        last = counts.cumsum(0).to(inputs.device) - 1
        # The anchor's own keys and values are in the cache already.
        hidden = self.run_layer(
            residual[last][:, None], inputs[last][:, None], (rope[0][last][:, None], rope[1][last][:, None]),
            lambda *_: cache.read(0), cache.mask(),
        )  # fmt: skip
        drafted, logits, states = [], [], []
        for k in range(self.gamma):
            state, row = self.leave(hidden)
            token = sampling.choose(row, temperature, None if uniforms is None else uniforms[:, k : k + 1])
            drafted.append(token)
            logits.append(row)
            states.append(state)
            if k + 1 < self.gamma:
                hidden = self._continue(state, token, cache, k)
        all_logits = torch.cat(logits, dim=1)
        q_draft = None if sampling.is_greedy(temperature) else sampling.distribution(all_logits, temperature)
        return Proposal(
            torch.cat(drafted, dim=1), all_logits, None, q_draft, torch.cat(states, dim=1), inputs
        )

    def _continue(self, states: Tensor, tokens: Tensor, cache: DraftContext, k: int) -> Tensor:
        """Run the step behind the k-th draft: states [R, 1, d] and tokens [R, 1] -> [R, 1, d]."""
        residual, inputs = self.join(states, tokens)
        rows = torch.arange(cache.rows, device=inputs.device)[:, None]
        positions = cache.lengths.to(inputs.device)[:, None] + k

        def reach(keys: Tensor, values: Tensor) -> KeysValues:
            cache.write(0, rows, positions, keys, values)
            return cache.read(0, beyond=k + 1)

        rope = self.rotary(positions, inputs.dtype)
        return self.run_layer(residual, inputs, rope, reach, cache.mask(beyond=k + 1))

    def sequence_outputs(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, KeysValues]:
        """Run the layer over whole sequences, causally: features [S, n, width], tokens i + 1 [S, n].

        Returns the layer's outputs [S, n, d], and keys and values of all entries [S, n, kv_heads, head_dim].
        """
        residual, inputs = self.join(self.enter(features), tokens)
        steps = torch.arange(tokens.shape[1], device=tokens.device)
        rope = self.rotary(steps, inputs.dtype)
        past = self.keys_values(inputs, rope)
        causal = (steps <= steps[:, None])[None]
        hidden = self.run_layer(
            residual, inputs, rope, lambda *_: (past[0].transpose(1, 2), past[1].transpose(1, 2)), causal
        )
        return hidden, past

    def packed_blocks(
        self, features: Tensor, tokens: Tensor, anchors: Tensor, *, follow: bool
    ) -> PackedBlocks:
        """See ``Draft.packed_blocks``: the steps of all anchors run side by side."""
        known = features.shape[1]
        hidden, past = self.sequence_outputs(features, tokens[:, 1 : known + 1])
        sequences = torch.arange(len(tokens), device=tokens.device)[:, None]
        hidden = hidden[sequences, anchors - 1]  # entry i joins the state at i with token i + 1, the anchor
        drafted, logits = [], []
        for k in range(self.gamma):
            states, row = self.leave(hidden)
            token = row.argmax(dim=-1)
            drafted.append(token)
            logits.append(row)
            if k + 1 < self.gamma:
                token = tokens.gather(1, anchors + k + 1) if follow else token
                hidden, past = self._continue_packed(states, token, anchors, past, k, known)
        return PackedBlocks(torch.stack(drafted, dim=-1), torch.stack(logits, dim=-2), None)

    def _continue_packed(
        self, states: Tensor, tokens: Tensor, anchors: Tensor, past: KeysValues, k: int, known: int
    ) -> tuple[Tensor, KeysValues]:
        """Run the step behind the k-th draft of each anchor: [S, A, d] each; keys and values grow by A."""
        residual, inputs = self.join(states, tokens)
        rope = self.rotary(anchors + k, inputs.dtype)
        keys, values = self.keys_values(inputs, rope)
        grown = torch.cat((past[0], keys), dim=1), torch.cat((past[1], values), dim=1)
        blocks = anchors.shape[1]
        context = torch.arange(known, device=anchors.device) < anchors[..., None]
        own = torch.eye(blocks, dtype=torch.bool, device=anchors.device).repeat(1, k + 1)
        mask = torch.cat((context, own.expand(len(anchors), -1, -1)), dim=2)
        hidden = self.run_layer(
            residual, inputs, rope, lambda *_: (grown[0].transpose(1, 2), grown[1].transpose(1, 2)), mask
        )
        return hidden, grown
