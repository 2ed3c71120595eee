"""A row of the published end-to-end table as it is simulated: its times, and what they are made of.

In these closed loops no request is sent at a time of its own, so that the course of steps does not depend on
how long they take. What an engine adds to kernels therefore adds to both times exactly, in proportion to what
a request saw of it: steps, requests that ran in them, and tokens of prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.api.workbench import Workbench, deployment
from simulator.core.arrays import Floats
from simulator.deployment.profile import Profile
from simulator.deployment.profile_parts import AdditiveSpec
from simulator.engine.run import Run
from simulator.hardware.engines import prefills, row_s
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import EmpiricalLengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from tools.silicon_rows import PROMPTS_EACH, Row

SHORTEST = 0.8
"""InferenceX draws each length from this share of the nominal one up to it (random range ratio)."""

WAVES = (2, 6)
"""Fewest and most requests of a client of other runs; as many as make ``STEPS``. A benchmark sends all at
once and the next as one ends, so that with equal lengths its requests run in waves and a steady state is
never reached."""

STEPS = 4096

AT_ONCE_PER_S = 1e6
"""Arrival rate that stands for all at once."""

SAME_S = 1e-9
"""Ends of steps and times of requests that lie so near are the same."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a request saw while it waited for its first token, or by output token since; means.

    time_ms: of kernels. steps. requests: summed over its steps. prompts_ms: what rows of prompts in its
    steps take by kernels.
    """

    time_ms: float
    steps: float
    requests: float
    prompts_ms: float


def simulated(row: Row, profile: Profile) -> tuple[Seen, Seen]:
    """Return what requests of a row saw up to their first token, and by output token from then on."""
    bench: Workbench = deployment(profile, {"none": "length:1@1"})
    if not isinstance(profile.step, AdditiveSpec):
        raise TypeError(f"kernels compose additive costs, not {profile.step.type}")
    if row.elsewhere:
        return _decoding(bench, row)
    prompts, outputs = (lengths(each, row.ranged) for each in (row.prompt_tokens, row.output_tokens))
    drawn = TrafficClass("default", EmpiricalLengths(prompts, outputs))
    traffic = SyntheticTraffic(PoissonArrivals(AT_ONCE_PER_S), (drawn,))
    waves = PROMPTS_EACH if row.ranged else int(np.clip(STEPS // row.output_tokens, *WAVES))
    groups = 1 if row.engine == "sglang" else row.setting.attention_over  # each takes prompts of its own
    run = bench.simulate(
        "autoregressive", concurrency=row.concurrency, traffic=traffic, requests=waves * row.concurrency,
        prefill=prefills(row.engine), chunk_tokens=groups * row.step_tokens,
    )  # fmt: skip
    return _seen(run, row.concurrency, row_s(profile.step))


def _decoding(bench: Workbench, row: Row) -> tuple[Seen, Seen]:
    """Return what requests saw that are prefilled elsewhere in time, in a closed loop; no first token."""
    share = (1 + SHORTEST) / 2 if row.ranged else 1.0
    prompt, output = (max(round(share * each), 2) for each in (row.prompt_tokens, row.output_tokens))
    run = bench.simulate(
        "autoregressive", concurrency=row.concurrency, lengths=f"fixed:{prompt}/fixed:{output}",
        prefill="elsewhere",
    )  # fmt: skip
    decoding = run.steps["requests"][run.steps["requests"] > 0]
    unknown = Seen(math.nan, 0.0, 0.0, 0.0)
    return unknown, Seen(1e3 * float(run.requests["tpot_s"].mean()), 1.0, float(decoding.mean()), 0.0)


def _seen(run: Run, clients: int, each_s: float) -> tuple[Seen, Seen]:
    """Take apart what requests saw. each_s: of a token of prompts."""
    steps, requests = run.steps, run.requests
    ends_s, finished_s = steps["end_s"].to_numpy(), requests["finished_s"].to_numpy()
    first_s = requests["first_token_s"].to_numpy()
    sent_s = sent_by(requests["admitted_s"].to_numpy(), finished_s, clients)
    sent, first, last = (np.searchsorted(ends_s, at + SAME_S) for at in (sent_s, first_s, finished_s))
    per_step = (np.ones(len(ends_s)), steps["requests"], 1e3 * each_s * steps["prefill_tokens"])
    totals = [np.concatenate([[0.0], np.cumsum(np.asarray(each, dtype=np.float64))]) for each in per_step]
    tokens = requests["decode_tokens"].to_numpy()
    decoded = tokens > 0
    before = [float((total[first] - total[sent]).mean()) for total in totals]
    after = [float(((total[last] - total[first])[decoded] / tokens[decoded]).mean()) for total in totals]
    return (
        Seen(1e3 * float((first_s - sent_s).mean()), *before),
        Seen(1e3 * float(requests["tpot_s"].mean()), *after),
    )


def sent_by(admitted_s: Floats, finished_s: Floats, clients: int) -> Floats:
    """When each request was sent: the first of each client at once, the next as one ends; in any order."""
    order = np.argsort(admitted_s, kind="stable")
    sent_s = np.empty(len(order))
    sent_s[order] = np.concatenate([np.zeros(clients), np.sort(finished_s)])[: len(order)]
    return np.minimum(sent_s, admitted_s)


def lengths(tokens: int, ranged: bool) -> NDArray[np.int64]:
    """Return lengths to draw from: as InferenceX draws them, or all the same."""
    if not ranged:
        return np.array([tokens, tokens], dtype=np.int64)
    drawn = np.random.default_rng(tokens).integers(int(SHORTEST * tokens), tokens + 1, 512)
    return np.maximum(drawn, 1).astype(np.int64)
