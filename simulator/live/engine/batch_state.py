"""What a batch row carries from step to step, in buffers on the device that passes write in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from simulator.core.arrays import Rows


@dataclass(frozen=True, slots=True, eq=False)
class BatchState:
    """The buffers of M rows; w = max(gamma, 1).

    anchors, cached, pending_count, lengths, forced, accepted, following: int64 [M]. drafts: int64 [M, w].
    survival: float32 [M, gamma]. pending_tokens: int64 [M, gamma + 1]; pending_features: [M, gamma + 1,
    width]: the context that the draft has not seen. uniforms: float64 [M, 2w + 1]. q_draft: [M, w, V].
    """

    anchors: Tensor
    cached: Tensor
    pending_count: Tensor
    pending_tokens: Tensor
    pending_features: Tensor
    drafts: Tensor
    survival: Tensor
    lengths: Tensor
    forced: Tensor
    accepted: Tensor
    following: Tensor
    uniforms: Tensor
    q_draft: Tensor | None
    survival_host: Tensor
    accepted_host: Tensor

    @classmethod
    def empty(
        cls,
        rows: int,
        *,
        gamma: int,
        feature_width: int,
        vocab_size: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> BatchState:
        """State of ``rows`` idle rows. vocab_size: of sampled runs, which keep the draft's distribution."""
        w = max(gamma, 1)

        def whole(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=device)

        pinned = device.type == "cuda"
        return cls(
            anchors=whole(rows),
            cached=whole(rows),
            pending_count=whole(rows),
            pending_tokens=whole(rows, gamma + 1),
            pending_features=torch.zeros((rows, gamma + 1, feature_width), dtype=dtype, device=device),
            drafts=whole(rows, w),
            survival=torch.zeros((rows, gamma), device=device),
            lengths=whole(rows),
            forced=whole(rows),
            accepted=whole(rows),
            following=whole(rows),
            uniforms=torch.zeros((rows, 2 * w + 1), dtype=torch.float64, device=device),
            q_draft=torch.zeros((rows, w, vocab_size), device=device) if vocab_size else None,
            survival_host=torch.zeros((rows, gamma), pin_memory=pinned),
            accepted_host=torch.zeros(rows, dtype=torch.int64, pin_memory=pinned),
        )

    def move(self, source: Rows, target: Rows) -> None:
        """Copy what is carried between steps."""
        before = torch.from_numpy(source).to(self.anchors.device)
        after = torch.from_numpy(target).to(self.anchors.device)
        for carried in (
            self.anchors, self.cached, self.pending_count, self.pending_tokens, self.pending_features,
        ):  # fmt: skip
            carried[after] = carried[before]

    def draft_uniforms(self, requests: int) -> Tensor | None:
        """Uniforms that drafts are drawn with, [requests, gamma]; None when greedy."""
        return None if self.q_draft is None else self.uniforms[:requests, : self.drafts.shape[1]]

    def judging(self, requests: int) -> dict[str, Tensor]:
        """Return the arguments of ``sampling.verify`` that sampling needs beyond greedy decoding."""
        if self.q_draft is None:
            return {}
        w, mine = self.drafts.shape[1], self.uniforms[:requests]
        return {
            "q_draft": self.q_draft[:requests],
            "accept_uniforms": mine[:, w : 2 * w],
            "next_uniforms": mine[:, 2 * w],
        }
