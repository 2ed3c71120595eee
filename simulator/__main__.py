"""``python -m simulator``."""

from __future__ import annotations

from simulator.cli.app import main

main()
