"""Traffic: which requests arrive, when, and how long they are."""

from simulator.workload import PrefixBlocks, Workload, merge

__all__ = ["PrefixBlocks", "Workload", "merge"]
