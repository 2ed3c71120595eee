"""Measure a GPU: ceilings, profiles, models, live runs and their validation, agreement, speed, a report.

    scripts/gpu_campaign                       every part that is not done, results under runs/campaign
    scripts/gpu_campaign ceilings profile-8b   these parts
    scripts/gpu_campaign --minutes 9           stop in time; the same command continues
    scripts/gpu_campaign --tiny --device cpu   the same machinery on very small models

Every part runs and fails by itself, and one that was interrupted continues where it was. Results are yours
to look at and to copy into profiles/ and docs/; nothing is published by itself.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from joblib import cpu_count

from simulator.core.errors import SimulatorError
from tools.campaign.campaign import Campaign, run
from tools.campaign.parts import PARTS


def main() -> int:
    """Run the parts asked for; 1 if any of them is not done."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    options.add_argument("--out", type=Path, default=Path("runs/campaign"))
    options.add_argument("--device", default="cuda", help="of torch: cuda, cuda:1, cpu")
    options.add_argument("--tiny", action="store_true", help="very small models in place of the real ones")
    options.add_argument("--minutes", type=float, help="stop the part under way once they are over")
    options.add_argument(
        "--workers", type=int, default=cpu_count(), help="processes for work on the host; all cores"
    )
    asked = options.parse_args()
    try:
        campaign = Campaign(asked.out, asked.device, asked.tiny, asked.workers)
        done = run(campaign, PARTS, asked.parts, minutes=asked.minutes, say=partial(print, flush=True))
    except SimulatorError as error:
        options.error(str(error))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
