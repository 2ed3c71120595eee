"""Scheduler agreement: many random batches, and a decision that differs is found and can be repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simulator.core.errors import BadInputError, InfeasibleError
from simulator.live.checks import agreement
from simulator.live.checks.agreement import MOST_DRAFTS, MOST_REQUESTS, Agreement, compare, draw
from simulator.schedulers.policies import DSpark


def test_numpy_and_torch_agree(tmp_path: Path) -> None:
    said: list[str] = []
    found = compare(seed=1, batches=3000, devices=["cpu"], workers=1, directory=tmp_path, tell=said.append)
    found.check()
    assert found == Agreement(1, 3000, ("cpu",), {"cpu": []})
    assert said == ["3,000 of 3,000 compared, 0 differ"]
    assert "every decision is the same" in found.line


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_agrees(tmp_path: Path) -> None:
    compare(seed=2, batches=5000, devices=["cpu", "cuda"], workers=1, directory=tmp_path, tell=print).check()


def test_batches_are_varied_and_follow_from_seed_and_index() -> None:
    batches = [draw(0, index) for index in range(600)]
    assert {type(batch.scheduler).__name__ for batch in batches} == {
        "DSpark", "DSparkAsync", "Threshold", "Tiered", "Fixed", "Oracle",
    }  # fmt: skip
    shapes = np.array([batch.survival.shape for batch in batches])
    assert shapes.min() == 1
    assert shapes[:, 0].max() > 0.9 * MOST_REQUESTS
    assert shapes[:, 1].max() == MOST_DRAFTS
    lagging = [batch for batch in batches if batch.scheduler.lag]
    assert 0 < sum(batch.lagged is None for batch in lagging) < len(lagging) / 4
    tied = [len(np.unique(batch.survival)) < 0.7 * batch.survival.size for batch in batches]
    assert 0.2 < np.mean(tied) < 0.9
    assert all((np.diff(batch.survival, axis=1) <= 0).all() for batch in batches)
    lengths = [batch.decide(batch.survival, batch.lagged) for batch in batches]
    searched = [(b, n) for b, n in zip(batches, lengths, strict=True) if isinstance(b.scheduler, DSpark)]
    partial = [0 < n.sum() < b.survival.size for b, n in searched]
    assert np.mean(partial) > 0.4  # otherwise there would be little to decide
    again = draw(0, 17)
    np.testing.assert_array_equal(again.survival, batches[17].survival)
    assert again.scheduler == batches[17].scheduler
    assert not np.array_equal(draw(1, 17).survival, again.survival)


def test_a_decision_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = agreement._decided_on

    def wrong(device: str, batches: list[agreement.RandomBatch]) -> np.ndarray:
        lengths = right(device, batches)
        lengths[sum(len(batch.survival) for batch in batches[:5])] += 1  # the first request of batch 5
        return lengths

    monkeypatch.setattr(agreement, "_decided_on", wrong)
    found = compare(seed=0, batches=20, devices=["cpu"], workers=1, directory=tmp_path, tell=lambda _: None)
    assert found.differing == {"cpu": [5]}
    with pytest.raises(InfeasibleError, match=r"1 differ on cpu, the first is draw\(0, 5\)"):
        found.check()


def test_finished_chunks_are_not_decided_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = {"seed": 0, "batches": 2100, "devices": ["cpu"], "workers": 1, "tell": lambda _: None}
    first = compare(directory=tmp_path, **arguments)
    monkeypatch.setattr(agreement, "draw", None)
    assert compare(directory=tmp_path, **arguments) == first


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="at least one batch"):
        compare(seed=0, batches=0, devices=["cpu"], workers=1, directory=tmp_path, tell=print)
