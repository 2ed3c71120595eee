"""DeepSpec's drafts for Gemma 4, and Eagle3, written down naively: no caches, no batches, no modules.

The draft for Gemma 4 is ``Oracle`` with that model's layer. Eagle3 is one layer that runs once a token.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from tests.support.oracle import Oracle


class GemmaOracle(Oracle):
    """A draft for Gemma 4 in a folder: DSpark, DFlash, or the layer of Eagle3."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.fields = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")

    def rotate(self, x: Tensor, position: int) -> Tensor:
        """Pairs (i, i + half) turn by position * theta^(-2i/d), the first share of them; the rest stay."""
        rope, half = self.fields["rope_parameters"]["full_attention"], len(x) // 2
        share = int(rope.get("partial_rotary_factor", 1.0) * half)
        angles = torch.zeros(half)
        for i in range(share):
            angles[i] = position * rope["rope_theta"] ** (-2 * i / len(x))
        first, second = x[:half], x[half:]
        return torch.cat(
            (first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin())
        )

    def normed(self, x: Tensor) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.fields["rms_norm_eps"]).rsqrt()

    def attention(self, name: str, context: Tensor, block: Tensor) -> Tensor:
        """Every row of the block over the whole context and the whole block; logits are not scaled."""
        start, size = len(context), self.fields["global_head_dim"]
        self.fields["head_dim"] = size
        both = torch.cat((context, block))
        queries = self.heads(f"{name}.q_proj", f"{name}.q_norm", block, start)
        keys = self.heads(f"{name}.k_proj", f"{name}.k_norm", both, 0)
        of_values = "k_proj" if self.fields["attention_k_eq_v"] else "v_proj"
        values = self.normed(self.linear(f"{name}.{of_values}", both).view(len(both), -1, size)).transpose(
            0, 1
        )
        group = len(queries) // len(keys)
        mixed = [
            torch.softmax(query @ keys[h // group].T, dim=-1) @ values[h // group]
            for h, query in enumerate(queries)
        ]
        return self.linear(f"{name}.o_proj", torch.cat(mixed, dim=-1))

    def layer(self, prefix: str, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.rms(f"{prefix}.post_attention_layernorm", attended)
        inner = self.rms(f"{prefix}.pre_feedforward_layernorm", x)
        gate = gelu(self.linear(f"{prefix}.mlp.gate_proj", inner), approximate="tanh")
        fed = self.linear(f"{prefix}.mlp.down_proj", gate * self.linear(f"{prefix}.mlp.up_proj", inner))
        return (x + self.rms(f"{prefix}.post_feedforward_layernorm", fed)) * self.weights[
            f"{prefix}.layer_scalar"
        ]

    def embedded(self, tokens: list[int]) -> Tensor:
        return self.weights["embed_tokens.weight"][tokens] * self.fields["hidden_size"] ** 0.5

    def hidden(self, features: Tensor, anchor: int) -> Tensor:
        masks = [self.fields["mask_token_id"]] * (self.fields["block_size"] - 1)
        x = self.embedded([anchor, *masks])
        context = self.rms("hidden_norm", self.linear("fc", features))
        for index in range(self.fields["num_hidden_layers"]):
            prefix = f"layers.{index}"
            attended = self.attention(
                f"{prefix}.self_attn", context, self.rms(f"{prefix}.input_layernorm", x)
            )
            x = self.layer(prefix, x, attended)
        return self.rms("norm", x)

    def linear(self, name: str, x: Tensor) -> Tensor:
        logits = super().linear(name, x)
        cap = self.fields["final_logit_softcapping"]
        return cap * torch.tanh(logits / cap) if name == "lm_head" and cap else logits


def eagle3_logits(oracle: Oracle, features: Tensor, following: list[int], drafted: list[int]) -> Tensor:
    """Logits [gamma, V] of the drafts behind ``following``'s last token, recomputed from the first entry on.

    features: [n, width] of positions 0..n-1; following: the n tokens at 1..n. Entry i reads the projected
    state of i and the token at i + 1; behind them the layer's own outputs with the tokens that it drafted.
    """
    states = list(oracle.linear("fc", features))
    tokens, rows = list(following), []
    name, is_gemma = "layers.0", isinstance(oracle, GemmaOracle)
    for k in range(len(drafted)):
        hidden = torch.stack(states)
        embedded = oracle.embedded(tokens) if isinstance(oracle, GemmaOracle) else (
            oracle.weights["embed_tokens.weight"][tokens]
        )  # fmt: skip
        read = torch.cat(
            (oracle.rms(f"{name}.input_layernorm", embedded), oracle.rms(f"{name}.hidden_norm", hidden)),
            dim=1,
        )
        # Only the last entry is asked, and it sees all before it and itself.
        attended = oracle.attention(f"{name}.self_attn", read[:-1], read[-1:])
        x = hidden[-1:]
        if is_gemma:
            x = oracle.layer(name, x, attended)  # type: ignore[attr-defined]
        else:
            x = x + attended
            inner = oracle.rms(f"{name}.post_attention_layernorm", x)
            gate = silu(oracle.linear(f"{name}.mlp.gate_proj", inner))
            x = x + oracle.linear(f"{name}.mlp.down_proj", gate * oracle.linear(f"{name}.mlp.up_proj", inner))
        rows.append(oracle.linear("lm_head", oracle.rms("norm", x))[0])
        states.append(x[0])
        tokens.append(drafted[k])
    return torch.stack(rows)
