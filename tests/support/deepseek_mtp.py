"""DeepSeek-V3's MTP module spelled out from the checkpoint's tensors: head by head, expert by expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def module_tensors(fields: Mapping[str, Any], *, shared: bool, experts: bool) -> dict[str, Tensor]:
    """Random tensors of the module under the names that DeepSeek's checkpoint gives them."""
    draw = torch.Generator().manual_seed(11)
    d, heads, inner = fields["hidden_size"], fields["num_attention_heads"], fields["moe_intermediate_size"]
    nope, turning, value = fields["qk_nope_head_dim"], fields["qk_rope_head_dim"], fields["v_head_dim"]
    rank, asked = fields["kv_lora_rank"], heads * (nope + turning)
    shapes: dict[str, tuple[int, ...]] = {
        "enorm": (d,), "hnorm": (d,), "eh_proj": (d, 2 * d), "shared_head.norm": (d,),
        "input_layernorm": (d,), "post_attention_layernorm": (d,),
        "self_attn.kv_a_proj_with_mqa": (rank + turning, d), "self_attn.kv_a_layernorm": (rank,),
        "self_attn.kv_b_proj": (heads * (nope + value), rank), "self_attn.o_proj": (d, heads * value),
    }  # fmt: skip
    if fields["q_lora_rank"] is None:
        shapes["self_attn.q_proj"] = (asked, d)
    else:
        low = fields["q_lora_rank"]
        shapes |= {"self_attn.q_a_proj": (low, d), "self_attn.q_a_layernorm": (low,),
                   "self_attn.q_b_proj": (asked, low)}  # fmt: skip
    if shared:
        shapes |= {"embed_tokens": (fields["vocab_size"], d), "shared_head.head": (fields["vocab_size"], d)}
    places = {"mlp": fields["intermediate_size"]}
    if experts:
        places = {f"mlp.experts.{each}": inner for each in range(fields["n_routed_experts"])}
        places["mlp.shared_experts"] = inner * fields["n_shared_experts"]
        shapes["mlp.gate"] = (fields["n_routed_experts"], d)
    for place, width in places.items():
        shapes |= {f"{place}.gate_proj": (width, d), f"{place}.up_proj": (width, d),
                   f"{place}.down_proj": (d, width)}  # fmt: skip
    tensors = {f"{name}.weight": 0.25 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    for name in tensors:
        if "norm" in name:
            tensors[name] += 1
    if experts:
        bias = 0.3 * torch.randn(fields["n_routed_experts"], generator=draw)
        tensors["mlp.gate.e_score_correction_bias"] = bias
    prefix = f"model.layers.{fields['num_hidden_layers']}."
    return {prefix + name: tensor for name, tensor in tensors.items()}


class MTPOracle:
    """Runs the module over one sequence. frequencies, magnitude: of the target's rotary embedding."""

    def __init__(
        self, tensors: Mapping[str, Tensor], fields: Mapping[str, Any], frequencies: Tensor, scale: float
    ) -> None:
        prefix = f"model.layers.{fields['num_hidden_layers']}."
        mine = {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}
        self.w = {name.removesuffix(".weight"): tensor.double() for name, tensor in mine.items()}
        self.w.setdefault("embed_tokens", tensors["model.embed_tokens.weight"].double())
        self.w.setdefault("shared_head.head", tensors["lm_head.weight"].double())
        self.fields, self.frequencies, self.scale = fields, frequencies.double(), scale

    def run(self, states: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """States [n, d] and the tokens behind them [n] -> normed outputs [n, d] and logits [n, V]."""
        w = self.w
        pair = (self._norm(w["embed_tokens"][tokens], "enorm"), self._norm(states.double(), "hnorm"))
        x = torch.cat(pair, dim=-1) @ w["eh_proj"].T
        x = x + self._attention(self._norm(x, "input_layernorm"))
        inner = self._norm(x, "post_attention_layernorm")
        x = x + torch.stack([self._feed_forward(row) for row in inner])
        normed = self._norm(x, "shared_head.norm")
        return normed, normed @ w["shared_head.head"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * self.w[name]

    def _turn(self, x: Tensor) -> Tensor:
        """Rotate rows [n, rope] by their positions, as complex numbers."""
        first, second = (
            (x[:, 0::2], x[:, 1::2]) if self.fields.get("rope_interleave", True) else x.chunk(2, dim=-1)
        )
        angles = torch.arange(len(x), dtype=torch.float64)[:, None] * self.frequencies
        turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat((turned.real, turned.imag), dim=-1)

    def _attention(self, x: Tensor) -> Tensor:
        w, fields, of = self.w, self.fields, "self_attn."
        nope, rank = fields["qk_nope_head_dim"], fields["kv_lora_rank"]
        if fields["q_lora_rank"] is None:
            queries = x @ w[of + "q_proj"].T
        else:
            queries = self._norm(x @ w[of + "q_a_proj"].T, of + "q_a_layernorm") @ w[of + "q_b_proj"].T
        joint = x @ w[of + "kv_a_proj_with_mqa"].T
        latent, turned = self._norm(joint[:, :rank], of + "kv_a_layernorm"), self._turn(joint[:, rank:])
        width = nope + fields["v_head_dim"]
        hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        heads = []
        for head, asked in enumerate(queries.chunk(fields["num_attention_heads"], dim=-1)):
            both = latent @ w[of + "kv_b_proj"][head * width : (head + 1) * width].T
            logits = asked[:, :nope] @ both[:, :nope].T + self._turn(asked[:, nope:]) @ turned.T
            weights = (logits * self.scale).masked_fill(hidden, float("-inf")).softmax(-1)
            heads.append(weights @ both[:, nope:])
        return torch.cat(heads, dim=-1) @ w[of + "o_proj"].T

    def _gated(self, x: Tensor, place: str) -> Tensor:
        gate = x @ self.w[f"{place}.gate_proj"].T
        return (gate * gate.sigmoid() * (x @ self.w[f"{place}.up_proj"].T)) @ self.w[f"{place}.down_proj"].T

    def _feed_forward(self, x: Tensor) -> Tensor:
        if "mlp.gate" not in self.w:
            return self._gated(x, "mlp")
        fields = self.fields
        scores = (self.w["mlp.gate"] @ x).sigmoid()
        asked = (scores + self.w["mlp.gate.e_score_correction_bias"]).tolist()
        size = len(asked) // fields["n_group"]
        groups = [list(range(at, at + size)) for at in range(0, len(asked), size)]
        groups.sort(key=lambda group: -sum(sorted(asked[each] for each in group)[-2:]))
        open_to = [each for group in groups[: fields["topk_group"]] for each in group]
        chosen = sorted(open_to, key=lambda each: -asked[each])[: fields["num_experts_per_tok"]]
        total = sum(float(scores[each]) for each in chosen)
        routed = [scores[each] / total * self._gated(x, f"mlp.experts.{each}") for each in chosen]
        return sum(routed) * fields["routed_scaling_factor"] + self._gated(x, "mlp.shared_experts")
