"""How fast the live path is, as ratios that a machine's drift cannot fake.

Whatever is compared runs in turn, A B A B, in one process. Of each side the fastest run counts, the one that
the rest of the machine disturbed least, and the spread says how much slower the slowest was; shares of a
step are means over all runs, with the lowest and the highest beside them.

- ``bandwidth_floor``: a step of one request against the time that reading its weights and its keys takes.
- ``against_generate``: autoregressive decoding against transformers' ``generate`` over a static cache.
- ``ragged_against_padded``: verifying ragged rows against padding every request to its whole block.
- ``visible_scheduling``: the share of a step in which the device waits for the scheduler.
"""

from __future__ import annotations

import pandas as pd

from simulator.acceptance.trace import AcceptanceModel
from simulator.live.checks.speed.floor import bandwidth_floor
from simulator.live.checks.speed.generate import against_generate
from simulator.live.checks.speed.padding import ragged_against_padded
from simulator.live.checks.speed.scale import SpeedScale
from simulator.live.checks.speed.scheduling import visible_scheduling
from simulator.live.device import Tell
from simulator.live.models.draft import Draft
from simulator.live.models.targets import Target


def measure_speed(
    target: Target, draft: Draft, acceptance: AcceptanceModel, scale: SpeedScale, tell: Tell
) -> dict[str, pd.DataFrame]:
    """All four measurements, by name.

    acceptance: what the draft's blocks are worth, replayed, so that a pair with random weights does as well;
    of the draft's block size, with confidences. ``tell`` gets a line for each row as it is measured, and for
    each that was left out because memory did not suffice.
    """
    return {
        "bandwidth_floor": bandwidth_floor(target, draft, scale, tell),
        "against_generate": against_generate(target, scale, tell),
        "ragged_against_padded": ragged_against_padded(target, draft, acceptance, scale, tell),
        "visible_scheduling": visible_scheduling(target, draft, acceptance, scale, tell),
    }
