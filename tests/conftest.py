"""What all tests share: which run first, what a slow machine is allowed, and what they need not wait for."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

LONG = ("tests/tools/test_campaign.py", "tests/notebooks/", "tests/cli/test_reliability.py")
"""Files with a test or a fixture of ten seconds and more: at the end they would keep one worker busy."""

# A busy machine takes long over any example: neither that nor slow drawing is a fault of the code. The gate
# tries the same few examples each time; ``pytest --hypothesis-profile thorough`` draws many new ones.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("gate", PATIENT, max_examples=50, derandomize=True)
settings.register_profile("thorough", PATIENT, max_examples=2000)
settings.load_profile("gate")

# Tests share the cores already: where none asks for workers, a sweep starts no process of its own.
os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")

gc.disable()  # until all modules are imported: they stay, so that looking through them frees nothing


def pytest_collection_finish() -> None:
    """Collect garbage from here on, and only what tests make."""
    gc.freeze()
    gc.enable()
    atexit.register(gc.unfreeze)  # some modules count what is left of them at the end


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first; the others keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Thousands of small files are written; that they outlive the machine's power is nothing a test sees."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_counting_of_what_stays() -> Iterator[None]:
    """Each live run asks whether objects are set aside: to count a million of them takes 0.2 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "get_freeze_count", lambda: 1)
        yield
