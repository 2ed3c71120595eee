"""The page that a campaign leaves: what was measured on a device, and what follows from it by simulation.

Every section says which command measured its numbers and when. One whose input is missing names the part
to run and shows no number.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from simulator.core.errors import BadInputError
from simulator.core.files import write_text
from simulator.core.reading import read_json
from tools.campaign.campaign import SIZES, SMALL, Campaign
from tools.campaign.measured import (
    acceptance,
    agreement,
    ceilings,
    curves,
    speed,
    stairs,
    tests,
    training,
    validation,
)
from tools.campaign.page import Page, for_sizes, markdown, section, today
from tools.campaign.simulated import frontier, regret


def write_report(campaign: Campaign) -> Path:
    """Write ``OUT/DEVICE.md`` and its figures in ``OUT/DEVICE/``; returns the page's path.

    Raises ``BadInputError`` where nothing was measured at all.
    """
    begun = campaign.out / "campaign.json"
    if not begun.is_file():
        raise BadInputError("no part has been run", source=str(campaign.out), remedy="run ceilings first")
    found: Any = read_json(begun)
    page = Page(campaign, found["device"])
    text = [f"# {page.device}", _preface(page)]
    for title, body in _SECTIONS:
        text += [f"## {title}", body(page)]
    path = campaign.out / f"{page.slug}.md"
    write_text(path, "\n\n".join(text) + "\n")
    return path


def _preface(page: Page) -> str:
    rows = []
    left = (page.campaign.out / "parts").glob("*.json")
    for path in sorted(left, key=lambda path: path.stat().st_mtime):
        found: Any = read_json(path)
        rows.append(
            {
                "part": found["part"],
                "result": f"{found['status']} {found['reason']}".strip(),
                "minutes": f"{found['seconds'] / 60:.1f}",
                "date": found["date"],
                "command": f"`{found['command']}`",
                "torch": found["software"]["torch"],
                "transformers": found["software"]["transformers"],
            }
        )
    scale = " **A tiny campaign: its models are stand-ins and say nothing of real ones.**"
    return (
        f"Written by `{page.campaign.command('report')}` on {today()} from what the commands below measured."
        f"{scale if page.campaign.tiny else ''} Simulated numbers say so; all others are measured."
        f"\n\n{markdown(pd.DataFrame(rows))}"
    )


_SECTIONS: tuple[tuple[str, Callable[[Page], str]], ...] = (
    ("Ceilings", section(ceilings)),
    ("Throughput curves", for_sizes(curves, (SMALL, *SIZES))),
    ("Staircases", for_sizes(stairs, SIZES)),
    ("Which policy wins", for_sizes(frontier, (SMALL, *SIZES))),
    ("What a wrong cost table loses", for_sizes(regret, SIZES)),
    ("Live against simulated", for_sizes(validation, (SMALL, *SIZES))),
    ("Training the small pair", section(training)),
    ("Acceptance of the small pair", section(acceptance)),
    ("Speed", section(speed)),
    ("Scheduler agreement", section(agreement)),
    ("Tests on the device", section(tests)),
)
