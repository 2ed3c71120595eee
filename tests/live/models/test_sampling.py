"""Drawing and verifying, against a loop that takes one request and one token at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.live.models import sampling

VOCAB = 5


@st.composite
def batches(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """A ragged batch: logits on a coarse grid, so that ties and near misses happen, and uniforms."""
    gamma = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.integers(0, gamma), min_size=1, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    rows = len(lengths)

    def logits(*shape: int) -> torch.Tensor:
        return torch.randint(-3, 4, (*shape, VOCAB), generator=generator).float()

    return {
        "target_logits": logits(sum(lengths) + rows),
        "draft_logits": logits(rows, gamma),
        "draft_tokens": torch.randint(VOCAB, (rows, gamma), generator=generator),
        "lengths": torch.tensor(lengths),
        "accept_uniforms": torch.rand(rows, gamma, generator=generator),
        "next_uniforms": torch.rand(rows, generator=generator),
        "stops": torch.tensor(draw(st.lists(st.integers(0, VOCAB - 1), max_size=2)), dtype=torch.int64),
    }


def draw_slowly(weights: torch.Tensor, uniform: float) -> int:
    total, cumulative = float(weights.double().sum()), 0.0
    for index, weight in enumerate(weights.double().tolist()):
        cumulative += weight
        if cumulative > uniform * total:
            return index
    raise AssertionError("a uniform below 1 always finds an index")


def verify_slowly(batch: dict[str, torch.Tensor], temperature: float) -> list[tuple[int, int, bool]]:
    verdicts, row = [], 0
    stops = set(batch["stops"].tolist())
    for r, length in enumerate(batch["lengths"].tolist()):
        accepted, stopped, rejected = 0, False, False
        for k in range(length):
            p_target, q_draft = one_hot_or_softmax(batch, row + k, r, k, temperature)
            token = int(batch["draft_tokens"][r, k])
            q_of_token = 1.0 if temperature == 0 else max(float(q_draft[token]), 1e-8)
            if not float(batch["accept_uniforms"][r, k]) < min(1.0, float(p_target[token]) / q_of_token):
                rejected = True
                break
            accepted += 1
            if token in stops:
                stopped = True
                break
        p_target, q_draft = one_hot_or_softmax(batch, row + accepted, r, min(accepted, 3), temperature)
        surplus = (p_target - q_draft).clamp(min=0)
        cut = (rejected or (stopped and accepted < length)) and temperature > 0
        weights = surplus if cut and float(surplus.sum()) > 1e-8 else p_target
        following = draw_slowly(weights, float(batch["next_uniforms"][r]) if temperature else 0.0)
        verdicts.append((accepted, following, stopped))
        row += length + 1
    return verdicts


def one_hot_or_softmax(
    batch: dict[str, torch.Tensor], row: int, request: int, k: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = batch["target_logits"][row]
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), VOCAB).float(), torch.zeros(VOCAB)
    k = min(k, batch["draft_logits"].shape[1] - 1)
    return torch.softmax(logits / temperature, -1), torch.softmax(
        batch["draft_logits"][request, k] / temperature, -1
    )


@settings(max_examples=200)
@given(batch=batches(), temperature=st.sampled_from([0.0, 0.6, 1.0]))
def test_verifying_a_ragged_batch_is_verifying_each_request_alone(
    batch: dict[str, torch.Tensor], temperature: float
) -> None:
    verdict = sampling.verify(
        batch["target_logits"],
        batch["draft_tokens"],
        batch["lengths"],
        temperature=temperature,
        q_draft=sampling.distribution(batch["draft_logits"], temperature) if temperature else None,
        accept_uniforms=batch["accept_uniforms"],
        next_uniforms=batch["next_uniforms"],
        stop_token_ids=batch["stops"],
    )
    assert bool((verdict.accepted <= batch["lengths"]).all())
    found = zip(
        verdict.accepted.tolist(), verdict.next_tokens.tolist(), verdict.stopped.tolist(), strict=True
    )
    assert list(found) == verify_slowly(batch, temperature)


@given(
    weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=9).filter(any),
    uniform=st.floats(0, 1, exclude_max=True, allow_subnormal=False),
)
def test_a_draw_takes_the_first_index_whose_cumulative_weight_exceeds(
    weights: list[float], uniform: float
) -> None:
    tensor = torch.tensor(weights)
    index = int(sampling.draw(tensor, torch.tensor(uniform, dtype=torch.float64)))
    assert weights[index] > 0
    cumulative = tensor.double().cumsum(0)
    rounding = 1e-6 * float(cumulative[-1])
    assert cumulative[index] > uniform * cumulative[-1] - rounding
    assert index == 0 or cumulative[index - 1] <= uniform * cumulative[-1] + rounding


def test_draws_from_a_large_vocabulary_are_those_of_exact_sums() -> None:
    """152 000 weights over nine orders of magnitude, a third of them zero; uniforms up to the very last."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 151_936, generator=generator)
    weights = torch.softmax(logits, dim=-1) * (torch.rand(logits.shape, generator=generator) > 1 / 3)
    exact = weights.double().cumsum(dim=-1)
    ends = torch.tensor([[0.0], [1 - 2**-53]], dtype=torch.float64).expand(2, 3)
    for uniforms in (*torch.rand(50, 3, dtype=torch.float64, generator=generator), *ends):
        drawn = sampling.draw(weights, uniforms)[:, None]
        assert bool((weights.gather(-1, drawn) > 0).all())
        # Where in [0, 1) the drawn token lies, against the uniform that drew it.
        upper = (exact.gather(-1, drawn) / exact[:, -1:])[:, 0]
        lower = upper - (weights.gather(-1, drawn).double() / exact[:, -1:])[:, 0]
        assert bool((uniforms < upper + 1e-6).all())
        assert bool((uniforms > lower - 1e-6).all())


def test_draws_have_the_frequencies_of_their_weights() -> None:
    uniforms = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    weights = torch.tensor([3.0, 0.0, 1.0, 4.0]).expand(10_000, -1)
    assert sampling.draw(weights, uniforms).bincount(minlength=4).tolist() == [3750, 0, 1250, 5000]


def test_a_greedy_choice_needs_no_random_number_and_a_sampled_one_does() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0]])
    assert sampling.choose(logits, 0.0, None).tolist() == [1]
    assert sampling.choose(logits, 9e-6, None).tolist() == [1]
    with pytest.raises(ValueError, match="needs uniforms"):
        sampling.choose(logits, 1.0, None)
    with pytest.raises(ValueError, match="needs q_draft"):
        sampling.verify(logits, torch.tensor([[1]]), torch.tensor([0]), temperature=1.0)


def test_equal_distributions_leave_no_residual_and_fall_back_to_the_target() -> None:
    p_target = torch.tensor([[0.25, 0.75]])
    assert torch.equal(sampling.residual(p_target, p_target), p_target)
    assert torch.equal(sampling.residual(p_target, torch.tensor([[0.5, 0.5]])), torch.tensor([[0.0, 0.25]]))
