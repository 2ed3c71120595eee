"""Demand over a day, and the fleet that covers it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from simulator.traffic.arrivals import DiurnalArrivals
from simulator.traffic.lengths import EmpiricalLengths
from simulator.traffic.sources import ReplayTraffic, SyntheticTraffic, Traffic, TrafficClass

DAY_S = 86400.0


def demand_profile(traffic: Traffic) -> pd.DataFrame:
    """Demanded rate over a day, or over a recording: start_s, end_s, rate_per_s."""
    if isinstance(traffic, ReplayTraffic):
        workload = traffic.workload(0)
        assert workload.arrival_s is not None
        count, edges = np.histogram(workload.arrival_s, bins=12)
        rates = count / np.diff(edges)
    elif isinstance(traffic, SyntheticTraffic) and isinstance(traffic.arrivals, DiurnalArrivals):
        edges = np.linspace(0, traffic.arrivals.period_s, 49)
        rates = traffic.arrivals.rate_at((edges[1:] + edges[:-1]) / 2)
    else:
        edges, rates = np.array([0.0, DAY_S]), np.array([traffic.rate_per_s])
    return pd.DataFrame({"start_s": edges[:-1], "end_s": edges[1:], "rate_per_s": rates})


def mix_of(traffic: Traffic, seed: int) -> tuple[TrafficClass, ...]:
    """Return the classes of a traffic with their lengths and shares; of a recording, those observed in it."""
    if isinstance(traffic, SyntheticTraffic):
        return traffic.classes
    sample = traffic.workload(seed)
    parts = [sample.class_index == index for index in range(len(sample.classes))]
    return tuple(
        TrafficClass(
            name,
            EmpiricalLengths(sample.prompt_tokens[mine], sample.output_tokens[mine]),
            float(mine.mean()),
        )
        for name, mine in zip(sample.classes, parts, strict=True)
        if mine.any()
    )
