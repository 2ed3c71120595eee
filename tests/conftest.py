"""Which tests run first."""

from __future__ import annotations

import pytest

LONG = ("tests/tools/test_campaign.py", "tests/notebooks/", "tests/cli/test_reliability.py")
"""Files with a test or a fixture of ten seconds and more: at the end they would keep one worker busy."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long tests first; the others keep their order."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
