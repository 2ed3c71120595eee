"""How fast the live path is against what it should be near. Run with ``scripts/bench -k live``.

On a GPU the pair has the shape of Qwen3-4B and random weights; without one it is the shipped tiny pair, for
which a step is mostly the launching of operations.
"""

from __future__ import annotations

import pandas as pd
import pytest

pytestmark = pytest.mark.benchmark


def test_live_speed() -> None:
    """All four comparisons, printed; what must hold on any device is asserted."""
    import torch

    from simulator.deployment.acceptance_text import parse_acceptance
    from simulator.live.checks.speed.measure import measure_speed
    from simulator.live.checks.speed.scale import SpeedScale
    from simulator.live.device import device_name
    from simulator.live.models.pairs import load_draft, new_dspark
    from simulator.live.models.targets import load_target

    if torch.cuda.is_available():
        target = load_target("qwen3-4b", device="cuda")
        draft = new_dspark(target, mask_token_id=0)
        acceptance, scale = parse_acceptance("qwen3-4b/dspark/mt-bench"), SpeedScale()
    else:
        target = load_target("traces/models/tiny/target", dtype=torch.float32)
        draft = load_draft("traces/models/tiny/dspark", dtype=torch.float32)
        acceptance = parse_acceptance("traces/acceptance/tiny-dspark-code-greedy.parquet")
        scale = SpeedScale.for_cpu()
    frames = measure_speed(target, draft, acceptance, scale, print)
    print(f"\n{target.name}, {target.dtype}, on {device_name(target.device)}")
    for name, frame in frames.items():
        print(f"\n{name}\n{_table(frame)}")
    assert (frames["ragged_against_padded"]["differing"] == 0).all()
    if target.dtype == torch.float32:
        assert (frames["against_generate"]["agreement"] == 1).all()


def _table(frame: pd.DataFrame) -> str:
    return frame.T.to_string(header=False, float_format=lambda value: f"{value:.4g}")
