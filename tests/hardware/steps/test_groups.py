"""Passes of layouts whose groups have attention of their own, and of prompts with latent attention."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from simulator.deployment.profile_parts import AdditiveSpec
from simulator.hardware.curves import fit_cells, formula_profile, prefill_s_per_token, prompt_rows_s
from simulator.hardware.gpus import load_gpu
from simulator.hardware.memory import layout
from simulator.hardware.models import load_model
from simulator.hardware.steps.formula import FITTED, FormulaTimes

V3, H100 = load_model("deepseek-v3"), load_gpu("h100")


def times(gpus: int, dp: int, ep: int) -> FormulaTimes:
    return FormulaTimes(layout(V3, H100, gpus, "fp8", dp=dp, ep=ep))


def test_a_group_serves_its_own_requests_alone() -> None:
    """16 requests in 16 groups attend as one does; the 17th doubles what the fullest group reads."""
    wide, alone = times(16, 16, 16), times(1, 1, 1)
    fixed = V3.layers * FITTED.attention_s
    one = alone.attention_s(1, 4096) - fixed
    assert wide.attention_s(16, 4096) - fixed == pytest.approx(one)
    assert wide.attention_s(17, 4096) - fixed == pytest.approx(2 * one)


def test_states_cross_the_network_to_experts_and_back() -> None:
    """1,600 rows on 16 GPUs: 100 each, to 8 experts, 15 in 16 of them elsewhere, 7,168 x 2 bytes, twice."""
    assert H100.network_bytes_per_s is not None
    moved = 58 * 2 * 2 * 100 * 8 * 15 / 16 * 7168
    expected = moved / (FITTED.links * H100.network_bytes_per_s)
    assert times(16, 16, 16)._dispatch_s(1600) == pytest.approx(expected)
    assert times(16, 1, 16)._dispatch_s(1600) == 0


def test_one_all_reduce_a_layer_is_left_within_a_group() -> None:
    """Eight GPUs as one group reduce twice a layer, as two groups of four once, for half of the rows each."""
    link = FITTED.links * H100.link_bytes_per_s
    states = 61 * 2 * 640 * 7168
    assert times(8, 1, 1)._all_reduce_s(640) == pytest.approx(2 * states * 2 * 7 / 8 / link)
    assert times(8, 2, 8)._all_reduce_s(640) == pytest.approx(states / 2 * 2 * 3 / 4 / link)
    assert times(8, 8, 8)._all_reduce_s(640) == 0


def test_prompts_of_all_groups_are_prefilled_at_once() -> None:
    """A prompt takes a group's time over the number of groups: its rows, and attention that is not split."""
    eight = times(8, 8, 8)
    products = 2 * V3.layers * V3.heads * V3.head_width * 4096**2
    attended = products / (FITTED.matrices * H100.flop_per_s["bf16"])
    assert 8 * eight.prefill_s(4096) == pytest.approx(eight.operations_s(8 * 4096) + attended)


def test_a_curve_of_groups_costs_the_same_below_a_request_each() -> None:
    profile = formula_profile(layout(V3, H100, 16, "fp8", dp=16, ep=16))
    assert isinstance(profile.step, AdditiveSpec)
    assert (profile.replica_gpus, profile.name) == (16, "modelled/h100/deepseek-v3-tp1-dp16-ep16-fp8")
    assert profile.step.request_probes[0] == profile.step.token_probes[0] == 16
    cost, passes = profile.target_cost(), times(16, 16, 16)
    assert cost.step_time_s(1, 1, 1024) == pytest.approx(cost.step_time_s(16, 16, 1024))
    exact = passes.operations_s(512) + passes.attention_s(512, 4096)
    assert cost.step_time_s(512, 512, 512 * 4096) == pytest.approx(exact, rel=0.1)


@dataclass(frozen=True)
class Latent:
    """Rows cost 20 us to decode and 10 us in prompts, without any attention."""

    def operations_s(self, rows: int) -> float:
        return 1e-3 + 20e-6 * rows

    def attention_s(self, requests: int, context: int, each: int = 1) -> float:
        return 1e-9 * requests * context * each

    def table_s(self, rows: int) -> float:
        return 0.0

    def prefill_s(self, tokens: int) -> float:
        return 1e-3 + 10e-6 * tokens


def test_rows_of_prompts_cost_what_a_prompt_takes_where_decoding_is_dearer() -> None:
    assert prompt_rows_s(Latent(), 8192) == pytest.approx(1e-3 + 10e-6 * 8192)
    assert prompt_rows_s(Latent(), 8192, 4) == pytest.approx(4e-3 + 10e-6 * 8192)
    cost = fit_cells(Latent(), latent=True).cost
    assert cost.step_time_s(1, 8193, 1024, 8192) == pytest.approx(1e-3 + 10e-6 * 8192, rel=0.05)


def test_nothing_is_added_to_a_prompt_that_has_no_attention() -> None:
    """A prompt's rows do not multiply the context that a batch has cached: it has none."""

    class Even(Latent):
        def prefill_s(self, tokens: int) -> float:
            return 1e-3 + 20e-6 * tokens

    class Attending(Latent):
        def prefill_s(self, tokens: int) -> float:
            return 1e-3 + 25e-6 * tokens

    assert prefill_s_per_token(Even(), fit_cells(Even(), latent=True)) == pytest.approx(0, abs=0.2e-6)
    added = prefill_s_per_token(Attending(), fit_cells(Attending(), latent=True))
    assert added == pytest.approx(5e-6, abs=0.2e-6)
