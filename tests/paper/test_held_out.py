"""Measured gains of drafters beside predictions: every row of the source, and one prediction by hand."""

from __future__ import annotations

import pytest

from simulator.deployment.deployment import deploy
from simulator.hardware.engines import HOSTS
from simulator.paper import held_out
from simulator.paper.held_out import _composed, _gain, held_out_gains

LLAMA = {"model": "meta-llama/Llama-3.1-8B", "gpu": "h100", "tp": 1, "engine": "vllm", "precision": "bf16"}


def test_every_published_gain_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "_gain", lambda *given: 1.5)
    table = held_out_gains()
    assert len(table) == 14
    assert table["where"].nunique() == 2
    first = table.iloc[0]
    assert (first["drafter"], first["drafts"], first["accepted_length"]) == ("EAGLE-1", 2, 2.10)
    assert first["measured"] == 1.618
    assert first["error"] == pytest.approx(1.5 / 1.618 - 1)


def test_a_pass_of_sglangs_drafter_waits_as_its_step_does() -> None:
    """Measured 0.718 at one request (SpecForge issue 339), 11% below; 1.28 where passes wait for nothing."""
    qwen = {"model": "Qwen/Qwen3-30B-A3B", "gpu": "h100", "tp": 2, "engine": "sglang", "precision": "bf16"}
    assert all(each.pass_s == each.step_s for each in HOSTS["sglang"].values())
    assert _gain(qwen, 1, 3, 1.86, 1) == pytest.approx(1.11 * 0.718, rel=0.03)


def test_a_gain_is_the_accepted_length_over_how_much_longer_a_step_takes() -> None:
    """One request whose blocks are all accepted: 3 tokens a step of 3 rows and two draft passes."""
    deployment = deploy(_composed(tuple(LLAMA.items()), 2), ["eagle3=length:3@2"])
    plain, drafted = (
        deployment.plan(policy).cost.step_time_s(1, rows, 500.0)
        for policy, rows in (("autoregressive", 1), ("fixed:2@eagle3", 3))
    )
    assert _gain(LLAMA, 1, 2, 3.0, 1) == pytest.approx(3 * plain / drafted, rel=0.02)
