"""DSpark's sequential heads and its confidence head (DSpark section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MarkovHead(nn.Module):
    """First-order head: bias = W2 W1[previous token] (equation 5)."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, vocab_size, bias=False)

    def step(self, embedding: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One position: W1[previous] [..., r] and hidden [..., d] -> (input of W2 [..., r], next state).

        The state is None at the first position of a block.
        """
        return embedding, None

    def forward(self, previous: Tensor, hidden: Tensor) -> Tensor:
        """Biases of whole blocks: previous tokens [..., gamma], hidden [..., gamma, d] -> [..., gamma, V]."""
        embeddings = self.markov_w1(previous)
        state, rows = None, []
        for k in range(previous.shape[-1]):
            row, state = self.step(embeddings[..., k, :], hidden[..., k, :], state)
            rows.append(row)
        biases: Tensor = self.markov_w2(torch.stack(rows, dim=-2))
        return biases


class GatedMarkovHead(MarkovHead):
    """First-order head whose embedding is gated by the hidden state."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.gate_proj = nn.Linear(hidden_size + rank, rank)

    def step(self, embedding: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See ``MarkovHead.step``."""
        gate = torch.sigmoid(self.gate_proj(torch.cat((hidden, embedding), dim=-1)))
        return gate * embedding, None


class RecurrentHead(MarkovHead):
    """Head with a gated recurrent state over the whole block prefix (equation 6)."""

    def __init__(self, vocab_size: int, hidden_size: int, rank: int) -> None:
        super().__init__(vocab_size, hidden_size, rank)
        self.joint_proj = nn.Linear(2 * rank + hidden_size, 3 * rank)

    def step(self, embedding: Tensor, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See ``MarkovHead.step``; the output reads the state before its update."""
        state = torch.zeros_like(embedding) if state is None else state
        gate, candidate, output = self.joint_proj(torch.cat((state, embedding, hidden), dim=-1)).chunk(
            3, dim=-1
        )
        gate = torch.sigmoid(gate)
        return torch.tanh(output), gate * state + (1 - gate) * torch.tanh(candidate)


HEADS: dict[str, type[MarkovHead]] = {"vanilla": MarkovHead, "gated": GatedMarkovHead, "rnn": RecurrentHead}


class ConfidenceHead(nn.Module):
    """Logit of P(token k is accepted | those before are), from h_k and the token before (equation 7)."""

    def __init__(self, hidden_size: int, markov_rank: int, bias: bool = True) -> None:
        super().__init__()
        self.proj = nn.Linear(hidden_size + markov_rank, 1, bias=bias)

    def forward(self, hidden: Tensor, embedding: Tensor | None) -> Tensor:
        """Hidden [..., d] and W1[previous] [..., r] (None without Markov input) -> logits [...]."""
        inputs = hidden if embedding is None else torch.cat((hidden, embedding), dim=-1)
        logits: Tensor = self.proj(inputs)[..., 0]
        return logits
