"""The search against brute force: every length vector, every order, every tie."""

from __future__ import annotations

from itertools import product
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from numpy.typing import NDArray

from simulator.schedulers import search
from simulator.schedulers.search import (
    GRID,
    LARGE,
    SAMPLED,
    TIE,
    admit,
    best_budget,
    descending,
    first_descent,
    global_maximum,
    on_grid,
    throughput_of_budget,
)
from tests.support.strategies import survivals

Floats = NDArray[np.float64]


@st.composite
def small_batches(draw: st.DrawFn) -> tuple[NDArray[np.float32], Floats]:
    """Survival of up to three requests by three tokens, often tied, and any positive step times."""
    requests, gamma = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    survival = draw(survivals(requests, gamma))
    if draw(st.booleans()):
        survival = np.round(survival * 4) / 4  # quarters: ties within and across requests
    size = requests * gamma + 1
    times = draw(st.lists(st.integers(1, 40), min_size=size, max_size=size))
    return survival.astype(np.float32), np.array(times) / 1024


def candidates_in_order(survival: NDArray[np.float32]) -> list[tuple[int, int]]:
    """(request, position) by survival, ties to the smaller position, then to the smaller request."""
    requests, gamma = survival.shape
    everyone = product(range(requests), range(gamma))
    return sorted(everyone, key=lambda rk: (-survival[rk], rk[1], rk[0]))


def tau(grid: NDArray[np.int32], lengths: tuple[int, ...]) -> int:
    """Expected tokens of a step in grid units, by the definition: every bonus and every admitted prefix."""
    return sum(GRID + sum(int(a) for a in row[:length]) for row, length in zip(grid, lengths, strict=True))


def every_vector(survival: NDArray[np.float32]) -> list[tuple[int, ...]]:
    requests, gamma = survival.shape
    return list(product(range(gamma + 1), repeat=requests))


@given(small_batches())
def test_admitted_is_the_best_set_of_prefixes_for_every_budget(
    batch: tuple[NDArray[np.float32], Floats],
) -> None:
    grid = on_grid(batch[0])
    for budget in range(grid.size + 1):
        lengths = tuple(admit(grid, budget).tolist())
        assert sum(lengths) == budget
        best = max(tau(grid, vector) for vector in every_vector(grid) if sum(vector) == budget)
        assert tau(grid, lengths) == best


@given(small_batches())
def test_ties_go_to_the_smaller_position_then_to_the_smaller_request(
    batch: tuple[NDArray[np.float32], Floats],
) -> None:
    survival = on_grid(batch[0])
    order = candidates_in_order(survival)
    for budget in range(survival.size + 1):
        expected = np.zeros(len(survival), dtype=np.int64)
        for request, _ in order[:budget]:
            expected[request] += 1
        assert_array_equal(admit(survival, budget), expected)


@given(small_batches())
def test_theta_is_the_best_throughput_of_every_budget(batch: tuple[NDArray[np.float32], Floats]) -> None:
    survival, times = batch
    grid = on_grid(survival)
    theta = throughput_of_budget(grid, len(survival), times)
    for budget, throughput in enumerate(theta):
        best = max(tau(grid, vector) for vector in every_vector(survival) if sum(vector) == budget)
        assert throughput == best / times[budget]


@given(small_batches())
def test_global_maximum_is_that_of_every_length_vector(batch: tuple[NDArray[np.float32], Floats]) -> None:
    survival, times = batch
    grid = on_grid(survival)
    budget = global_maximum(throughput_of_budget(grid, len(survival), times))
    throughput = {vector: tau(grid, vector) / times[sum(vector)] for vector in every_vector(survival)}
    best = max(throughput.values())
    assert throughput[tuple(admit(grid, budget).tolist())] == best
    assert budget == min(sum(vector) for vector, value in throughput.items() if value == best)


@given(small_batches())
def test_first_descent_is_the_loop_of_algorithm_1(batch: tuple[NDArray[np.float32], Floats]) -> None:
    survival, times = batch
    times = np.maximum.accumulate(times)  # as in any cost model: more tokens never take less time
    grid = on_grid(survival)
    lengths = np.zeros(len(survival), dtype=np.int64)
    total = len(survival) * GRID
    best = total / times[0]
    for admitted, (request, position) in enumerate(candidates_in_order(grid), start=1):
        total += int(grid[request, position])
        if grid[request, position] == 0 or total / times[admitted] <= best:
            break  # the paper sorts those with a > 0 and stops at the first that does not improve
        best = total / times[admitted]
        lengths[request] += 1
    budget = first_descent(throughput_of_budget(grid, len(survival), times))
    assert budget == lengths.sum()
    assert_array_equal(admit(grid, budget), lengths)


@pytest.mark.parametrize(
    ("theta", "first", "anywhere"),
    [
        ([1.0], 0, 0),
        ([1.0, 2.0, 3.0], 2, 2),
        ([1.0, 0.9, 3.0], 0, 2),
        ([1.0, 2.0, 1.5, 3.0], 1, 3),
        ([1.0, 1.0, 2.0], 0, 2),  # equal is not an improvement
        ([2.0, 3.0, 3.0, 1.0], 1, 1),  # the smaller budget on ties
        ([3.0, 1.0, 3.0], 0, 0),
    ],
)
def test_budgets_by_hand(theta: list[float], first: int, anywhere: int) -> None:
    assert first_descent(np.array(theta)) == first
    assert global_maximum(np.array(theta)) == anywhere


def test_appendix_a_in_numbers() -> None:
    """One request, SPS 1, 0.5, 0.45: the early stop verifies nothing, a global search follows c_2."""
    times = 1 / np.array([1.0, 0.5, 0.45])
    theta = {
        c2: throughput_of_budget(on_grid(np.array([[0.8, 0.8 * c2]])), 1, times) / GRID for c2 in (0.9, 0.0)
    }
    np.testing.assert_allclose(theta[0.9], [1.0, 0.9, 1.134], rtol=1e-8)
    np.testing.assert_allclose(theta[0.0], [1.0, 0.9, 0.81], rtol=1e-8)
    assert [global_maximum(theta[c2]) for c2 in (0.9, 0.0)] == [2, 0]
    assert [first_descent(theta[c2]) for c2 in (0.9, 0.0)] == [0, 0]


def test_the_grid_keeps_order_ends_and_float32() -> None:
    assert_array_equal(on_grid(np.array([0.0, 0.5, 1.0])), [0, GRID // 2, GRID])
    rising = np.sort(np.random.default_rng(0).random(1000, dtype=np.float32))
    assert np.all(np.diff(on_grid(rising)) >= 0)
    assert_array_equal(on_grid(rising), on_grid(rising.astype(np.float64)))


def test_sums_over_a_full_batch_do_not_overflow() -> None:
    """4096 certain requests by 8 tokens: the total is far beyond int32 and exact."""
    grid = on_grid(np.ones((4096, 8), dtype=np.float32))
    theta = throughput_of_budget(grid, 4096, np.ones(4096 * 8 + 1))
    assert theta[-1] == 4096 * 9 * GRID


@st.composite
def large_batches(draw: st.DrawFn) -> tuple[NDArray[np.int32], int, Floats]:
    """Grid of some thousand candidates with ties, plateaus and certainties; step times that may fall."""
    noise = np.random.default_rng(draw(st.integers(0, 2**32)))
    gamma = draw(st.integers(1, 15))
    requests = draw(st.integers(-(-LARGE // gamma), -(-2 * LARGE // gamma)))
    confidence = noise.random((requests, gamma)) ** draw(st.sampled_from([0.02, 0.3, 1.0, 3.0]))
    levels = draw(st.sampled_from([0, 1, 4, 50]))  # 1: each token is certain or impossible
    confidence = np.round(confidence * levels) / levels if levels else confidence
    confidence[noise.random(requests) < draw(st.sampled_from([0.0, 0.5, 1.0]))] = 1.0
    size = requests * gamma + 1
    rises = noise.random(size) * (noise.random(size) < draw(st.sampled_from([0.0, 0.001, 0.1, 1.0])))
    times = 1 + draw(st.sampled_from([0.0, 1e-13, 1e-4, 0.1])) * np.cumsum(rises)
    if draw(st.booleans()):
        times *= 1 + 0.1 * noise.random(size)  # no cost model of ours: it falls, too
    return on_grid(np.cumprod(confidence, axis=1).astype(np.float32)), requests, times


def budget_by_full_sort(grid: NDArray[np.int32], requests: int, times: Floats) -> int:
    """The rule itself: sort everything, the smallest budget within ``TIE`` of the best."""
    gained = np.concatenate(([0], np.cumsum(np.sort(grid, axis=None)[::-1], dtype=np.int64)))
    theta = (requests * GRID + gained) / times
    return int(np.argmax(theta >= theta.max() * (1 - TIE)))


def admitted_by_full_sort(grid: NDArray[np.int32], budget: int) -> NDArray[np.int64]:
    """The rule itself: by survival, then position, then request."""
    requests, gamma = grid.shape
    request, position = np.divmod(np.arange(grid.size), gamma)
    order = np.lexsort((request, position, -grid.reshape(-1)))
    return np.bincount(request[order[:budget]], minlength=requests)


@settings(max_examples=60)
@given(large_batches(), st.floats(0, 1))
def test_large_batches_are_decided_as_by_a_full_sort(
    batch: tuple[NDArray[np.int32], int, Floats], share: float
) -> None:
    grid, requests, times = batch
    budget = best_budget(*batch)
    assert budget == budget_by_full_sort(*batch)
    assert budget == global_maximum(throughput_of_budget(grid, requests, times, descending(grid)))
    for admitted in (budget, int(share * grid.size)):
        expected = admitted_by_full_sort(grid, admitted)
        assert_array_equal(admit(grid, admitted), expected)
        assert_array_equal(admit(grid, admitted, descending(grid)), expected)


@pytest.fixture
def torch() -> ModuleType:
    """Torch, where it is installed."""
    return pytest.importorskip("torch", reason="the [live] extra is not installed")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_returns_what_numpy_returns(torch: ModuleType, dtype: str) -> None:
    """Bit for bit, over batches of every size with ties, staircases and plateaus, for every budget."""
    draw = np.random.default_rng(7)
    for _ in range(150):
        requests, gamma = int(draw.integers(1, 40)), int(draw.integers(1, 8))
        confidence = draw.random((requests, gamma))
        if draw.random() < 0.6:
            confidence = np.round(confidence * 3) / 3
        survival = np.cumprod(confidence, axis=1).astype(dtype)
        steps = draw.integers(0, 2, requests * gamma + 1) * draw.random(requests * gamma + 1)
        times = 0.01 + 0.001 * np.cumsum(steps)
        ours, theirs = on_grid(survival), on_grid(torch.from_numpy(survival))
        assert_array_equal(ours, theirs.numpy())
        thetas = [throughput_of_budget(grid, requests, times) for grid in (ours, theirs)]
        assert_array_equal(thetas[0], thetas[1].numpy())
        budgets = [(first_descent(theta), global_maximum(theta)) for theta in thetas]
        assert budgets[0] == budgets[1]
        for budget in (*budgets[0], int(draw.integers(0, requests * gamma + 1))):
            assert_array_equal(admit(ours, budget), admit(theirs, budget).numpy())


def test_what_cannot_hold_the_maximum_is_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four drafts for each of many: the first is nearly sure, the others are nearly never accepted."""
    requests = LARGE // 2
    grid = np.tile(on_grid(np.array([[0.9, 0.01, 0.001, 0.0005]], dtype=np.float32)), (requests, 1))
    drafts = np.arange(4 * requests + 1)
    times = np.where(drafts <= requests, 1.0, 20.0) + 1e-5 * drafts
    everything = int(np.argmax(throughput_of_budget(grid, requests, times)))
    sizes: list[int] = []

    def counted(candidates: NDArray[np.int32], base: int, step_time_s: Floats) -> Floats:
        sizes.append(candidates.size)
        return throughput_of_budget(candidates, base, step_time_s)

    monkeypatch.setattr(search, "throughput_of_budget", counted)
    assert best_budget(grid, requests, times) == everything == requests
    assert sizes == [requests]  # the first draft of each, a quarter of all


def test_a_maximum_behind_what_the_sample_shows_is_found() -> None:
    """The sample meets sure drafts alone; as many nearly as likely ones, between them, still pay.

    Twice the sampled candidates fit into the shortest step, so that budget has the maximum.
    """
    sampled = -(-LARGE // SAMPLED)
    survival = np.full((LARGE, 1), 0.7, dtype=np.float32)
    survival[::SAMPLED] = 1.0
    times = np.where(np.arange(LARGE + 1) <= 2 * sampled, 1.0, 5.0)
    assert best_budget(on_grid(survival), LARGE, times) == 2 * sampled


@given(st.integers(0, 40), st.integers(0, 10**6), st.integers(0, GRID), st.data())
def test_no_budget_beyond_the_head_has_more_than_its_bound(
    head: int, held: int, survival: int, data: st.DataObject
) -> None:
    """By brute force over every further budget, of steps that rise; exact where all take the same time."""
    rises = data.draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 3.0]), min_size=head + 2, max_size=head + 90))
    times = 1.0 + np.cumsum(rises)
    further = range(1, len(times) - head)
    most = max((held + count * survival) / times[head + count] for count in further)
    assert search._most_beyond(head, held, survival, times) >= most
    alike = np.ones(len(times))
    assert search._most_beyond(head, held, survival, alike) == held + further[-1] * survival


def test_a_short_stretch_is_bounded_by_the_tokens_of_its_last_in_the_time_of_its_first() -> None:
    times = np.array([1.0, 2.0, 5.0, 500.0, 5000.0])
    assert search._most_beyond(1, 100, 10, times) == (100 + 3 * 10) / 5.0
