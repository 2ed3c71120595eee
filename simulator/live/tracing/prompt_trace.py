"""One prompt of a traced pair: the rounds that speculation took, and every position judged.

The output is written speculatively with every block verified whole, which changes nothing about its
distribution and costs a fraction of writing it token by token. Its rounds are what DeepSpec's evaluation
counts. The same output is then judged at every position as anchor, which is what a replay walks along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from simulator.core.files import atomic_path
from simulator.live.models import sampling
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target
from simulator.live.tracing.generate import Round, generate
from simulator.live.tracing.record import Judged, Kind, judge

SAMPLED: tuple[Kind, ...] = ("expected", "coupled")
"""Both records of sampled acceptance cost one recording."""


@dataclass(frozen=True, slots=True, eq=False)
class PromptTrace:
    """What one prompt left: n anchor positions of its output, and the rounds of speculative decoding.

    tokens: int64 [n]. effective_length: uint8 [n], drafts judged before the output stops.
    outcomes: by kind, uint8 [n] (greedy) or float32 [n, gamma]. confidence_logits: float32 [n, gamma].
    proposed, accepted, committed: int64 [rounds], draft tokens that count, draft tokens accepted, and
    tokens committed with the target's own.
    """

    tokens: NDArray[np.int64]
    effective_length: NDArray[np.uint8]
    outcomes: dict[Kind, NDArray[np.generic]]
    confidence_logits: NDArray[np.float32] | None
    proposed: NDArray[np.int64]
    accepted: NDArray[np.int64]
    committed: NDArray[np.int64]

    def save(self, path: Path) -> None:
        """Write it as a .npz file, whole or not at all."""
        arrays = {name: getattr(self, name) for name in ("tokens", "effective_length", *_ROUNDS)}
        arrays |= {f"outcome.{kind}": values for kind, values in self.outcomes.items()}
        if self.confidence_logits is not None:
            arrays["confidence_logits"] = self.confidence_logits
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> PromptTrace:
        """Read what ``save`` has written."""
        with np.load(path, allow_pickle=False) as arrays:
            outcomes = {name.removeprefix("outcome."): arrays[name] for name in arrays if "outcome." in name}
            return cls(
                tokens=arrays["tokens"], effective_length=arrays["effective_length"], outcomes=outcomes,
                confidence_logits=arrays.get("confidence_logits"),
                **{name: arrays[name] for name in _ROUNDS},
            )  # fmt: skip


_ROUNDS = ("proposed", "accepted", "committed")


def trace_prompt(
    target: Target,
    draft: Draft,
    prompt_ids: Sequence[int],
    *,
    output_tokens: int,
    temperature: float,
    stop_token_ids: Sequence[int] = (),
    seed: int = 0,
) -> PromptTrace:
    """Continue a prompt by up to ``output_tokens`` tokens and judge each of them as an anchor.

    The output goes on by one block behind the last anchor, so that its block is judged whole. Rounds are
    those that begin before the limit, the one that reaches beyond it included, as DeepSpec counts.
    """
    limit = len(prompt_ids) + output_tokens
    run = generate(
        target, draft, prompt_ids, max_new_tokens=output_tokens + draft.gamma, temperature=temperature,
        stop_token_ids=stop_token_ids, seed=seed,
    )  # fmt: skip
    rounds = [each for each in run.rounds if each.start < limit]
    stopped = bool(run.output_ids) and run.output_ids[-1] in set(stop_token_ids)
    tokens = [*prompt_ids, *run.output_ids]
    end = len(tokens) - 1  # position of the last token: drafts up to it count, behind it nothing is known
    anchors = range(len(prompt_ids), min(limit, end) if stopped else limit)
    return _judged(target, draft, tokens, anchors, end, temperature, rounds)


def _judged(
    target: Target,
    draft: Draft,
    tokens: list[int],
    anchors: range,
    end: int,
    temperature: float,
    rounds: Sequence[Round],
) -> PromptTrace:
    greedy = sampling.is_greedy(temperature)
    kinds: tuple[Kind, ...] = ("greedy",) if greedy else SAMPLED
    padded = torch.tensor([[*tokens, *[0] * draft.gamma]], device=target.device)
    at = torch.arange(anchors.start, anchors.stop, device=target.device)
    effective = (end - at).clamp(0, draft.gamma).cpu()
    if anchors:
        judged = judge(target, draft, padded, at, kinds, temperature=temperature)
    else:  # the first token of the output is a stop token
        whole = torch.zeros(1, 0, draft.gamma)
        judged = Judged(dict.fromkeys(kinds, whole[..., 0] if greedy else whole),
                        whole if draft.has_confidence else None)  # fmt: skip
    outcomes = {kind: values[0].cpu() for kind, values in judged.outcomes.items()}
    if greedy:
        outcomes = {"greedy": torch.minimum(outcomes["greedy"].long(), effective).to(torch.uint8)}
    confidence = judged.confidence_logits
    return PromptTrace(
        tokens=padded[0, at].cpu().numpy(),
        effective_length=effective.to(torch.uint8).numpy(),
        outcomes={kind: values.numpy() for kind, values in outcomes.items()},
        confidence_logits=None if confidence is None else confidence[0].float().cpu().numpy(),
        proposed=np.array([each.proposal_length for each in rounds], dtype=np.int64),
        accepted=np.array([each.accepted for each in rounds], dtype=np.int64),
        committed=np.array([each.acceptance_length for each in rounds], dtype=np.int64),
    )
