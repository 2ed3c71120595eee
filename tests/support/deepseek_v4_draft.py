"""DeepSeek-V4's draft spelled out: one slot, one head and one expert at a time, in float64."""

from __future__ import annotations

import cmath
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"], "dspark_block_size": 5, "dspark_markov_rank": 256,
    "dspark_noise_token_id": 128799, "dspark_target_layer_ids": [40, 41, 42], "expert_dtype": "fp4",
    "hc_eps": 1e-6, "hc_mult": 4, "hc_sinkhorn_iters": 20, "head_dim": 512, "hidden_act": "silu",
    "hidden_size": 4096, "max_position_embeddings": 1_048_576, "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 64, "num_experts_per_tok": 6, "num_hash_layers": 3, "num_hidden_layers": 43,
    "num_key_value_heads": 1, "num_nextn_predict_layers": 1, "o_groups": 8, "o_lora_rank": 1024,
    "q_lora_rank": 1024, "qk_rope_head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000,
    "routed_scaling_factor": 1.5, "scoring_func": "sqrtsoftplus", "sliding_window": 128, "swiglu_limit": 10.0,
    "tie_word_embeddings": False, "topk_method": "noaux_tc", "vocab_size": 129280,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0, 0, 0], "compress_rope_theta": 160000,
    "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 65536,
                     "beta_fast": 32, "beta_slow": 1},
}  # fmt: skip
"""Fields of DeepSeek-V4-Flash-DSpark's published config.json that concern its draft."""

PRO: dict[str, Any] = FLASH | {
    "dspark_markov_rank": 512, "dspark_target_layer_ids": [58, 59, 60], "hidden_size": 7168,
    "moe_intermediate_size": 3072, "n_routed_experts": 384, "num_attention_heads": 128,
    "num_hidden_layers": 61, "o_groups": 16, "q_lora_rank": 1536, "routed_scaling_factor": 2.5,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0, 0, 0],
}  # fmt: skip
"""The same of DeepSeek-V4-Pro-DSpark."""

TINY: dict[str, Any] = FLASH | {
    "dspark_block_size": 4, "dspark_markov_rank": 6, "dspark_noise_token_id": 63,
    "dspark_target_layer_ids": [1, 2, 3], "hc_sinkhorn_iters": 3, "head_dim": 12, "hidden_size": 32,
    "max_position_embeddings": 256, "moe_intermediate_size": 24, "n_routed_experts": 8,
    "num_attention_heads": 4, "num_experts_per_tok": 3, "num_hidden_layers": 4, "o_groups": 2,
    "o_lora_rank": 10, "q_lora_rank": 14, "qk_rope_head_dim": 6, "sliding_window": 5, "swiglu_limit": 0.7,
    "vocab_size": 64, "compress_ratios": [0] * 7,
}  # fmt: skip


class V4Oracle:
    """Drafts one block of one request from the weights by name and the fields of config.json."""

    def __init__(self, weights: Mapping[str, Tensor], fields: Mapping[str, Any]) -> None:
        self.w = {name: each.double() for name, each in weights.items()}
        self.f = fields

    def logits(self, features: Tensor, anchor: int, drafted: list[int]) -> tuple[list[Tensor], list[float]]:
        """Logits and confidence logits of each slot; features: of all positions before the anchor."""
        block, start = self.f["dspark_block_size"], len(features)
        context = self._norm(features.double() @ self.w["fc.weight"].T, "hidden_norm.weight")
        first = max(start - self.f["sliding_window"], 0)
        ids = [anchor] + [self.f["dspark_noise_token_id"]] * (block - 1)
        streams = [[self.w["embed_tokens.weight"][each]] * self.f["hc_mult"] for each in ids]
        for layer in range(len(self.f["dspark_target_layer_ids"])):
            streams = self._layer(f"layers.{layer}.", streams, context, first, start)
        rows, confidences = [], []
        for k, (slot, previous) in enumerate(zip(streams, [anchor, *drafted], strict=False)):
            state = self._collapsed(slot, self._logits_of(slot, "last_hc."), "last_hc.")
            embedding = self.w["markov_head.markov_w1.weight"][previous]
            bias = self.w["markov_head.markov_w2.weight"] @ embedding
            rows.append(self.w["lm_head.weight"] @ self._norm(state, "norm.weight") + bias)
            joined = torch.cat((state, embedding))
            confidences.append(float(self.w["confidence_head.proj.weight"][0] @ joined))
            assert k < block
        return rows, confidences

    def _layer(
        self, at: str, streams: list[list[Tensor]], context: Tensor, first: int, start: int
    ) -> list[list[Tensor]]:
        entered = [self._enter(slot, at + "attn_hc.") for slot in streams]
        inputs = [self._norm(each[0], at + "input_layernorm.weight") for each in entered]
        keys = [self._key(context[position], position, at) for position in range(first, start)]
        keys += [self._key(each, start + k, at) for k, each in enumerate(inputs)]
        attended = [self._attend(each, start + k, keys, at) for k, each in enumerate(inputs)]
        streams = [self._leave(*each) for each in zip(streams, attended, entered, strict=True)]
        entered = [self._enter(slot, at + "ffn_hc.") for slot in streams]
        fed = [
            self._experts(self._norm(each[0], at + "post_attention_layernorm.weight"), at) for each in entered
        ]
        return [self._leave(*each) for each in zip(streams, fed, entered, strict=True)]

    def _norm(self, x: Tensor, name: str | None = None) -> Tensor:
        normed = x / torch.sqrt((x**2).mean(-1, keepdim=True) + self.f["rms_norm_eps"])
        return normed if name is None else normed * self.w[name]

    def _turned(self, x: Tensor, position: int, sign: int = 1) -> Tensor:
        width = self.f["qk_rope_head_dim"]
        still, numbers = x[: len(x) - width], x[len(x) - width :].tolist()
        for pair in range(width // 2):
            angle = sign * position * float(self.f["rope_theta"]) ** (-2 * pair / width)
            turned = complex(numbers[2 * pair], numbers[2 * pair + 1]) * cmath.exp(1j * angle)
            numbers[2 * pair : 2 * pair + 2] = turned.real, turned.imag
        return torch.cat((still, torch.tensor(numbers, dtype=torch.float64)))

    def _key(self, x: Tensor, position: int, at: str) -> Tensor:
        projected = self._norm(self.w[at + "self_attn.kv_proj.weight"] @ x, at + "self_attn.kv_norm.weight")
        return self._turned(projected, position)

    def _attend(self, x: Tensor, position: int, keys: list[Tensor], at: str) -> Tensor:
        name, width = at + "self_attn.", self.f["head_dim"]
        low = self._norm(self.w[name + "q_a_proj.weight"] @ x, name + "q_a_norm.weight")
        asked, mixed = self.w[name + "q_b_proj.weight"] @ low, []
        for head in range(self.f["num_attention_heads"]):
            query = self._turned(self._norm(asked[head * width : (head + 1) * width]), position)
            powers = [math.exp(float(query @ key) / math.sqrt(width)) for key in keys]
            total = sum(powers) + math.exp(float(self.w[name + "sinks"][head]))
            mixture = sum(
                (p / total * key for p, key in zip(powers, keys, strict=True)), torch.zeros_like(query)
            )
            mixed.append(self._turned(mixture, position, sign=-1))
        groups, rank = self.f["o_groups"], self.f["o_lora_rank"]
        each = len(mixed) // groups
        narrow = [
            self.w[name + "o_a_proj.weight"][group * rank : (group + 1) * rank]
            @ torch.cat(mixed[group * each : (group + 1) * each])
            for group in range(groups)
        ]
        return self.w[name + "o_b_proj.weight"] @ torch.cat(narrow)

    def _experts(self, x: Tensor, at: str) -> Tensor:
        name = at + "mlp."
        scores = torch.sqrt(torch.log1p(torch.exp(self.w[name + "gate.weight"] @ x)))
        ranked = scores + self.w[name + "gate.e_score_correction_bias"]
        chosen = sorted(range(len(scores)), key=lambda each: -float(ranked[each]))[
            : self.f["num_experts_per_tok"]
        ]
        total = sum(float(scores[each]) for each in chosen)
        gate, up, down = (
            self.w[f"{name}shared_experts.{part}_proj.weight"] for part in ("gate", "up", "down")
        )
        output = self._fed(x, torch.cat((gate, up)), down)
        for each in chosen:
            share = self.f["routed_scaling_factor"] * float(scores[each]) / total
            packed, last = self.w[name + "experts.gate_up_proj"], self.w[name + "experts.down_proj"]
            output = output + share * self._fed(x, packed[each], last[each])
        return output

    def _fed(self, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        limit = self.f["swiglu_limit"]
        gate, up = (gate_up @ x).chunk(2)
        gate, up = torch.minimum(gate, torch.tensor(limit)), torch.clamp(up, -limit, limit)
        return down @ (gate / (1 + torch.exp(-gate)) * up)

    def _logits_of(self, slot: list[Tensor], at: str) -> Tensor:
        return self.w[at + "fn"] @ self._norm(torch.cat(slot))

    def _collapsed(self, slot: list[Tensor], logits: Tensor, at: str, scale: int = 0) -> Tensor:
        weighed = []
        for i, stream in enumerate(slot):
            logit = logits[i] * self.w[at + "scale"][scale] + self.w[at + "base"][i]
            weighed.append((1 / (1 + torch.exp(-logit)) + self.f["hc_eps"]) * stream)
        return torch.stack(weighed).sum(0)

    def _enter(self, slot: list[Tensor], at: str) -> tuple[Tensor, list[float], list[list[float]]]:
        n, eps, logits = len(slot), self.f["hc_eps"], self._logits_of(slot, at)
        scale, base = self.w[at + "scale"].tolist(), self.w[at + "base"].tolist()
        leaving = [2 / (1 + math.exp(-(float(logits[n + i]) * scale[1] + base[n + i]))) for i in range(n)]
        shares = []
        for i in range(n):
            places = range(2 * n + i * n, 2 * n + (i + 1) * n)
            powers = [math.exp(float(logits[each]) * scale[2] + base[each]) for each in places]
            shares.append([power / sum(powers) + eps for power in powers])
        for turn in range(2 * self.f["hc_sinkhorn_iters"] - 1):
            if turn % 2 == 0:
                sums = [sum(row[j] for row in shares) + eps for j in range(n)]
                shares = [[row[j] / sums[j] for j in range(n)] for row in shares]
            else:
                shares = [[each / (sum(row) + eps) for each in row] for row in shares]
        return self._collapsed(slot, logits, at), leaving, shares

    def _leave(
        self, slot: list[Tensor], output: Tensor, entered: tuple[Tensor, list[float], list[list[float]]]
    ) -> list[Tensor]:
        _, leaving, shares = entered
        kept = [
            torch.stack([shares[i][j] * slot[i] for i in range(len(slot))]).sum(0) for j in range(len(slot))
        ]
        return [leaving[j] * output + kept[j] for j in range(len(slot))]
