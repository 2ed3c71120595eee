"""What all tests share: which run first, and what a slow machine is allowed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

LONG = ("tests/tools/test_campaign.py", "tests/notebooks/", "tests/cli/test_reliability.py")
"""Files with a test or a fixture of ten seconds and more: at the end they would keep one worker busy."""

# A busy machine takes long over any example: neither that nor slow drawing is a fault of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first; the others keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
