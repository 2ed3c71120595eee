"""What an engine has recorded, by column: put together when asked for, so that metrics hold one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.core.arrays import Floats
from simulator.core.statistics import divide_each
from simulator.engine.batch import WAITS, Described, Step, StepLog
from simulator.engine.limits import EngineLimits
from simulator.engine.strides.serving import ServingEngine
from simulator.traffic.workload import Workload

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, slots=True)
class Recorded:
    """What an engine has recorded of its steps and finished requests: a hundred bytes for each, or less."""

    workload: Workload
    limits: EngineLimits
    log: StepLog
    finished: Described

    @classmethod
    def of(cls, engine: ServingEngine) -> Recorded:
        """Return what an engine that runs no more has recorded."""
        return cls(engine.workload, engine.limits, engine.steps, engine.finished())

    @property
    def steps(self) -> StepColumns:
        """A row for each engine step."""
        return StepColumns(self.log)

    @property
    def requests(self) -> RequestColumns:
        """A row for each finished request, in order of completion."""
        return RequestColumns(self)


@dataclass(frozen=True, slots=True, eq=False)
class StepColumns(Mapping[str, NDArray[Any]]):
    """The columns of ``engine.batch.Step``, copied out of the log when asked for."""

    log: StepLog

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.log.column(name, np.float64 if name.endswith("_s") else np.int64)

    def parts(self, *names: str) -> Iterator[list[Floats]]:
        """Go through some columns, part by part; counts are float64 as well."""
        for part in self.log.parts():
            yield [part.column(name) for name in names]

    def __iter__(self) -> Iterator[str]:
        return iter(Step._fields)

    def __len__(self) -> int:
        return len(Step._fields)


@dataclass(frozen=True, slots=True, eq=False)
class RequestColumns(Mapping[str, NDArray[Any]]):
    """What is known of finished requests: their times, tokens, waits and derived speeds, made when asked for.

    first_gap_s: from its first token to its next delivery, NaN where there was none. waited_*_s: see
    ``engine.batch.WAITS``. ttft_s: NaN in a closed loop whose prompts are prefilled elsewhere, which nobody
    timed.
    """

    recorded: Recorded

    def __getitem__(self, name: str) -> NDArray[Any]:
        made = _OF_REQUESTS[name]
        return self.recorded.finished[name] if made is None else made(self.recorded)

    def __iter__(self) -> Iterator[str]:
        return iter(_OF_REQUESTS)

    def __len__(self) -> int:
        return len(_OF_REQUESTS)


def _request(recorded: Recorded) -> NDArray[np.int64]:
    return recorded.finished["request"].astype(np.int64)


def _traffic_class(recorded: Recorded) -> NDArray[Any]:
    load = recorded.workload
    return np.asarray(load.classes, dtype=object)[load.class_index[_request(recorded)]]


def _decode_tokens(recorded: Recorded) -> NDArray[np.int64]:
    return recorded.finished["decode_tokens"].astype(np.int64)


def _first_step(recorded: Recorded) -> NDArray[np.int64]:
    return recorded.finished["first_step"].astype(np.int64)


def _decode_steps(recorded: Recorded) -> NDArray[np.int64]:
    return recorded.finished["last_step"].astype(np.int64) - _first_step(recorded)


def _decode_s(recorded: Recorded) -> Floats:
    decode_s = recorded.finished["finished_s"]
    decode_s -= recorded.finished["first_token_s"]
    return decode_s


def _ttft_s(recorded: Recorded) -> Floats:
    first_token_s = recorded.finished["first_token_s"]
    if recorded.workload.is_closed_loop and recorded.limits.prefill == "elsewhere":
        return np.full(first_token_s.size, np.nan)  # its next request is there, prefilled, when a slot frees
    first_token_s -= recorded.finished["queued_s"]
    return first_token_s


def _first_gap_s(recorded: Recorded) -> Floats:
    decoded, first_token_s = _decode_steps(recorded) > 0, recorded.finished["first_token_s"]
    gap_s = np.full(decoded.size, np.nan)
    gap_s[decoded] = recorded.log.delivery_s()[_first_step(recorded)[decoded]] - first_token_s[decoded]
    return gap_s


def _tps(recorded: Recorded) -> Floats:
    decode_s = _decode_s(recorded)  # first, as it takes more memory while it is made
    return divide_each(_decode_tokens(recorded), decode_s)


_OF_REQUESTS: Mapping[str, Callable[[Recorded], NDArray[Any]] | None] = {
    "request": _request,
    "traffic_class": _traffic_class,
    "prompt_tokens": lambda recorded: recorded.workload.prompt_tokens[_request(recorded)],
    "output_tokens": lambda recorded: recorded.workload.output_tokens[_request(recorded)],
    **dict.fromkeys(("queued_s", "admitted_s", "first_token_s", "finished_s")),
    "decode_tokens": _decode_tokens,
    "first_step": _first_step,
    "decode_steps": _decode_steps,
    "ttft_s": _ttft_s,
    "first_gap_s": _first_gap_s,
    "tpot_s": lambda recorded: divide_each(_decode_s(recorded), _decode_tokens(recorded)),
    "tps": _tps,
    "accepted_length": lambda recorded: divide_each(_decode_tokens(recorded), _decode_steps(recorded)),
    **dict.fromkeys(WAITS),
}
"""How a column of finished requests is made; None: the engine recorded it as it is."""


def steps_frame(engine: ServingEngine) -> pd.DataFrame:
    """One row per engine step, columns as in ``engine.batch.Step``."""
    return frame(Recorded.of(engine).steps)


def requests_frame(engine: ServingEngine) -> pd.DataFrame:
    """One row per finished request in order of completion, columns as in ``RequestColumns``."""
    return frame(Recorded.of(engine).requests)


def frame(columns: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """Put columns together."""
    import pandas as pd  # metrics need no frame, and pandas takes 64 MB

    return pd.DataFrame(dict(columns.items()), copy=False)
