"""DSpark's draft written down naively from its equations, without caches, batches or modules.

It reads a saved folder as the reference would (through transformers' own config and rotary tables)
and recomputes a block from the whole context, one head at a time, to hold the real one against.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding


class Oracle:
    """The draft in a folder."""

    def __init__(self, folder: Path) -> None:
        self.fields: dict[str, Any] = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.rotary = Qwen3RotaryEmbedding(AutoConfig.from_pretrained(folder))

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return x @ self.weights[f"{name}.weight"].T + (0 if bias is None else bias)

    def rms(self, name: str, x: Tensor) -> Tensor:
        scale = (x.pow(2).mean(-1, keepdim=True) + self.fields["rms_norm_eps"]).rsqrt()
        return x * scale * self.weights[f"{name}.weight"]

    def rotate(self, x: Tensor, position: int) -> Tensor:
        cos, sin = (table[0, 0] for table in self.rotary(x, torch.tensor([[position]])))
        half = len(x) // 2
        return x * cos + torch.cat((-x[half:], x[:half])) * sin

    def heads(self, name: str, norm: str | None, x: Tensor, first_position: int) -> Tensor:
        """[T, d] -> [heads, T, head_dim], normed and rotated where there is a norm."""
        size = self.fields["head_dim"]
        split = self.linear(name, x).view(len(x), -1, size)
        if norm is not None:
            split = self.rms(norm, split)
            split = torch.stack(
                [
                    torch.stack([self.rotate(head, first_position + t) for head in row])
                    for t, row in enumerate(split)
                ]
            )
        return split.transpose(0, 1)

    def attention(self, name: str, context: Tensor, block: Tensor) -> Tensor:
        start = len(context)
        queries = self.heads(f"{name}.q_proj", f"{name}.q_norm", block, start)
        both = torch.cat((context, block))
        keys = self.heads(f"{name}.k_proj", f"{name}.k_norm", both, 0)
        values = self.heads(f"{name}.v_proj", None, both, 0)
        group = len(queries) // len(keys)
        mixed = [
            torch.softmax(query @ keys[h // group].T / query.shape[-1] ** 0.5, dim=-1) @ values[h // group]
            for h, query in enumerate(queries)
        ]
        return self.linear(f"{name}.o_proj", torch.cat(mixed, dim=-1))

    def hidden(self, features: Tensor, anchor: int) -> Tensor:
        """Backbone output [gamma, d] behind ``anchor``, from the features of every position before it."""
        masks = [self.fields["mask_token_id"]] * (self.fields["block_size"] - 1)
        x = self.weights["embed_tokens.weight"][[anchor, *masks]]
        context = self.rms("hidden_norm", self.linear("fc", features))
        for layer in range(self.fields["num_hidden_layers"]):
            prefix = f"layers.{layer}"
            x = x + self.attention(f"{prefix}.self_attn", context, self.rms(f"{prefix}.input_layernorm", x))
            normed = self.rms(f"{prefix}.post_attention_layernorm", x)
            gate = torch.nn.functional.silu(self.linear(f"{prefix}.mlp.gate_proj", normed))
            x = x + self.linear(
                f"{prefix}.mlp.down_proj", gate * self.linear(f"{prefix}.mlp.up_proj", normed)
            )
        return self.rms("norm", x)

    def logits_and_confidences(
        self, hidden: Tensor, anchor: int, drafted: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Corrected logits [gamma, V] and confidence logits [gamma] (zeros without the head)."""
        rank = self.fields["markov_rank"]
        kind = self.fields.get("markov_head_type")
        base = self.linear("lm_head", hidden)
        state = torch.zeros(rank)
        rows, confidences = [], []
        for h, logits, previous in zip(hidden, base, [anchor, *drafted[:-1]], strict=True):
            e = self.weights["markov_head.markov_w1.weight"][previous] if rank else torch.zeros(0)
            bias = torch.zeros(0)
            if kind == "vanilla":
                bias = e
            elif kind == "gated":
                bias = torch.sigmoid(self.linear("markov_head.gate_proj", torch.cat((h, e)))) * e
            elif kind == "rnn":
                joint = self.linear("markov_head.joint_proj", torch.cat((state, e, h)))
                bias = torch.tanh(joint[2 * rank :])
                keep = torch.sigmoid(joint[:rank])
                state = keep * state + (1 - keep) * torch.tanh(joint[rank : 2 * rank])
            rows.append(logits + self.linear("markov_head.markov_w2", bias) if rank else logits)
            if self.fields["enable_confidence_head"]:
                seen = torch.cat((h, e)) if self.fields["confidence_head_with_markov"] else h
                confidences.append(self.linear("confidence_head.proj", seen)[0])
        return torch.stack(rows), torch.stack(confidences) if confidences else torch.zeros(len(rows))
