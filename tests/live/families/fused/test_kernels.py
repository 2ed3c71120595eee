"""The kernels of norm, rotation and gate against float64: interpreted on a CPU, compiled on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from simulator.live.families.fused import operators
from tests.support.interpreted import kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

UNITS = {torch.float32: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}
"""Rounding of each type; twice a device's, as the interpreter cuts bfloat16 instead of rounding it."""


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    with kernels("simulator.live.families.fused.kernels") as module:
        yield module


def draw(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).to(DEVICE)


def close(ours: torch.Tensor, exact: torch.Tensor, roundings: int) -> None:
    """Within so many roundings of the largest number that is rounded."""
    unit = UNITS[ours.dtype] * roundings
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=unit * float(exact.abs().max()))


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("width", [16, 24])
def test_a_norm_is_x_over_its_root_mean_square(fused: ModuleType, dtype: torch.dtype, width: int) -> None:
    whole, weight = draw(2, 3, 2 * width, dtype=dtype), draw(width, dtype=dtype, seed=1)
    for x in (whole[..., :width], whole[..., :width].transpose(0, 1)):  # rows that do not lie side by side
        wide = x.double()
        exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        normed = fused.rms_norm(x, weight, 1e-6)
        assert (normed.shape, normed.dtype) == (x.shape, dtype)
        close(normed, exact, roundings=2)
        close(operators.rms_norm(x, weight, 1e-6), exact, roundings=2)


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("width", [16, 24])
def test_a_sum_and_its_norm(fused: ModuleType, dtype: torch.dtype, width: int) -> None:
    whole, weight = draw(2, 3, 2 * width, dtype=dtype), draw(width, dtype=dtype, seed=1)
    x, residual = whole[..., :width], whole.flip(0)[..., width:]  # rows that do not lie side by side
    normed, total = fused.sum_norm(x, residual, weight, 1e-6)
    close(total, x.double() + residual.double(), roundings=1)
    wide = total.double()  # the norm is of the sum as it was rounded
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert (normed.shape, normed.dtype, total.dtype) == (x.shape, dtype, dtype)
    close(normed, exact, roundings=2)
    for ours, theirs in zip(operators.sum_norm(x, residual, weight, 1e-6), (normed, total), strict=True):
        close(ours, theirs.double(), roundings=4)


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("head_dim", [16, 24])
def test_a_rotation_turns_pairs_of_halves(fused: ModuleType, dtype: torch.dtype, head_dim: int) -> None:
    x = draw(1, 5, 3, head_dim, dtype=dtype).transpose(1, 2)  # [1, heads, N, head_dim], as a view
    angles = torch.arange(5)[:, None] * torch.linspace(0.1, 0.9, head_dim // 2)
    both = torch.cat((angles, angles), dim=-1)[None].to(DEVICE)
    cos, sin = both.cos().to(dtype), both.sin().to(dtype)
    pairs = torch.complex(*x.double().chunk(2, dim=-1))
    turned = pairs * torch.complex(cos.double(), sin.double())[:, None, :, : head_dim // 2]
    exact = torch.cat((turned.real, turned.imag), dim=-1)
    ours = fused.rotate(x, cos, sin)
    assert (ours.shape, ours.dtype) == (x.shape, dtype)
    close(ours, exact, roundings=3)
    close(operators.rotate(x, cos, sin), exact, roundings=3)


@pytest.mark.parametrize("dtype", UNITS)
@pytest.mark.parametrize("shape", [(3, 7), (2, 1025)])
def test_a_gate_is_silu_times_the_other(
    fused: ModuleType, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    gate, up = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
    exact = gate.double() / (1 + torch.exp(-gate.double())) * up.double()
    product = fused.gated(gate, up)
    assert (product.shape, product.dtype) == (gate.shape, dtype)
    close(product, exact, roundings=2)
    close(operators.gated(gate, up), exact, roundings=2)
    # What does not lie side by side is taken in its own order.
    assert torch.equal(fused.gated(gate.t(), up.t()), product.t())
