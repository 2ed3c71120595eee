"""Plans for tests that look at what a plan consists of and not at how narrow its intervals are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def rough_plans() -> Iterator[pytest.MonkeyPatch]:
    """Inside, a plan repeats each trial twice, the fewest that give an interval."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.planning.plan.REPLICATIONS", 2)
        patch.setattr("simulator.planning.plan.GRID_REPLICATIONS", 2)
        yield patch
