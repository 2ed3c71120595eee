"""TensorRT-LLM's cost table: ``T(R, B) = fixed + step_time(B) + batch_overhead(R)``, in milliseconds.

Both axes are interpolated linearly and clamped. The file has no part of its own for what a step costs at
the smallest batch, so on reading ``bias_s`` is the fixed overhead and the first step time together, and
writing puts the whole bias into the step times; the sum, which is all a scheduler sees, is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from simulator.core.arrays import Floats
from simulator.core.files import write_json
from simulator.cost.believed import BelievedTable
from simulator.cost.curve import axis, values
from simulator.cost.models import AdditiveCost
from simulator.interop.records import (
    Record,
    blaming,
    read_record,
    refuse_extra_terms,
    refuse_flat,
    whole_points,
)
from simulator.interop.sglang_tables import Calibration
from simulator.interop.sglang_tables import load_calibration as load_sglang_calibration

ENCODING = "decomposed"

_MS = 1e-3


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A key whose value in the table differs from the live engine's; ``None`` where the engine lacks it."""

    key: str
    recorded: object
    live: object


@dataclass(frozen=True, slots=True, eq=False)
class EngineTable:
    """A cost model, and the engine configuration on which it was measured, where the file says."""

    cost: AdditiveCost
    engine: Mapping[str, object] = field(default_factory=dict)

    def mismatches(self, live: Mapping[str, object]) -> tuple[Mismatch, ...]:
        """List recorded keys that the live engine answers differently; others are not compared."""
        return tuple(
            Mismatch(key, recorded, live.get(key))
            for key, recorded in self.engine.items()
            if key not in live or live[key] != recorded
        )


def load_table(path: Path | str, *, allow_flat: bool = False) -> EngineTable:
    """Read a cost table. Keys other than the table's and ``_meta`` are ignored, as the engine does.

    Raises ``BadInputError`` for axes that do not strictly increase, step times that are not positive and
    finite, negative overheads, points where more work takes less time and, unless ``allow_flat``, step
    times that vary by less than 2%, with which a scheduler can never trim.
    """
    record = read_record(Path(path))
    with blaming(record.source):
        cost = AdditiveCost(*_parts(record), beyond="clamp")
        return EngineTable(cost if allow_flat else refuse_flat(cost, "step_time_ms"), _engine(record))


def load_believed(path: Path | str) -> BelievedTable:
    """Return a table as the engine's scheduler looks it up, also where more work takes less time."""
    record = read_record(Path(path))
    with blaming(record.source):
        _engine(record)
        return BelievedTable(*_parts(record))


def save_table(path: Path | str, cost: AdditiveCost, *, engine: Mapping[str, object] | None = None) -> None:
    """Write a cost table; ``engine`` describes the configuration that it was measured on."""
    write_json(Path(path), table_fields(cost, engine=engine))


def table_fields(cost: AdditiveCost, *, engine: Mapping[str, object] | None = None) -> dict[str, object]:
    """Return what ``save_table`` writes."""
    refuse_extra_terms(cost, "TensorRT-LLM's table")
    meta: dict[str, object] = {"encoding": ENCODING}
    if engine:
        meta["engine"] = dict(engine)
    return {
        "token_counts": whole_points(cost.theta.at, "token_probes"),
        "step_time_ms": ((cost.bias_s + cost.theta.value) / _MS).tolist(),
        "fixed_overhead_ms": 0.0,
        "batch_sizes": whole_points(cost.alpha.at, "request_probes"),
        "batch_overhead_ms": (cost.alpha.value / _MS).tolist(),
        "_meta": meta,
    }


def load_calibration(path: Path | str) -> Calibration:
    """Read a calibration file: SGLang's, or one that calls the temperatures ``sts_temperatures``."""
    is_own = read_record(Path(path)).has("sts_temperatures")
    return load_sglang_calibration(path, key="sts_temperatures" if is_own else "temperatures")


def _parts(record: Record) -> tuple[float, Floats, Floats, Floats, Floats]:
    """Bias, requests and their part, batch tokens and theirs, in seconds."""
    tokens = axis(record.numbers("token_counts"), "token_counts")
    step_ms = values(record.numbers("step_time_ms"), "step_time_ms", like=tokens)
    requests = axis(record.numbers("batch_sizes"), "batch_sizes")
    overhead_ms = values(record.numbers("batch_overhead_ms"), "batch_overhead_ms", like=requests)
    fixed_ms = record.number("fixed_overhead_ms")
    if step_ms.min() <= 0:
        raise record.error("step_time_ms", "must be positive", float(step_ms.min()))
    if fixed_ms < 0:
        raise record.error("fixed_overhead_ms", "must not be negative", fixed_ms)
    bias_s = float(fixed_ms + step_ms[0]) * _MS
    return bias_s, requests, overhead_ms * _MS, tokens, (step_ms - step_ms[0]) * _MS


def _engine(record: Record) -> Mapping[str, object]:
    if not record.has("_meta"):
        return {}
    meta = record.record("_meta")
    if meta.has("encoding") and meta.text("encoding") != ENCODING:
        raise meta.error("encoding", f"must be {ENCODING!r}", meta.text("encoding"))
    return meta.record("engine").values if meta.has("engine") else {}
