"""SGLang's cost tables and confidence calibration.

Two cost tables exist. The diagonal one knows steps per second by batch tokens and is looked up by floor;
the additive one is ``T(bs, M) = bias + alpha(bs) + theta(M)`` seconds with M batch tokens, both parts
interpolated linearly and clamped. SGLang decides which it has by whether the text ``"bias_seconds"``
occurs anywhere in the file, and so does ``load_table``.

Saved are the points of a cost model. How the engine looks them up is the engine's: a curve that was
linear here is a staircase there, which ``load_table`` of the saved file shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simulator.acceptance.calibration import TemperatureFit
from simulator.core.arrays import Floats
from simulator.core.errors import BadInputError
from simulator.core.files import write_json
from simulator.cost.believed import BelievedTable
from simulator.cost.curve import axis, values
from simulator.cost.models import AdditiveCost, ThroughputCurve
from simulator.interop.records import (
    Record,
    blaming,
    read_record,
    read_text,
    refuse_extra_terms,
    refuse_flat,
    signed_values,
    whole_points,
)

_ADDITIVE_MARK = '"bias_seconds"'


def load_table(path: Path | str, *, allow_flat: bool = False) -> ThroughputCurve | AdditiveCost:
    """Read a cost table of either kind, looked up as SGLang does.

    Raises ``BadInputError`` for what SGLang rejects (missing keys, ``8.0`` for an integer, NaN, probes
    that do not strictly increase, ``max_batch_tokens`` below the last probe), for a single probe, which
    SGLang takes for a table not yet measured, and for points where more work takes less time. A table whose
    step times vary by less than 2% over batch tokens is refused unless ``allow_flat``: a scheduler that
    reads it can never trim.
    """
    record, is_additive = _table_record(Path(path))
    with blaming(record.source):
        if is_additive:
            cost = AdditiveCost(*_additive_parts(record), beyond="clamp")
            return cost if allow_flat else refuse_flat(cost, "theta_seconds")
        curve = ThroughputCurve(*_diagonal_parts(record), lookup="floor")
        return curve if allow_flat else refuse_flat(curve, "sample_steps_per_sec")


def load_believed(path: Path | str) -> BelievedTable:
    """Return a table of either kind as SGLang's scheduler looks it up, also where more work takes less time.

    It is for a scheduler to consult and not for a clock. Raises ``BadInputError`` for what SGLang rejects.
    """
    record, is_additive = _table_record(Path(path))
    with blaming(record.source):
        if is_additive:
            return BelievedTable(*_additive_parts(record))
        return BelievedTable.of_curve(*_diagonal_parts(record), lookup="floor")


def _table_record(path: Path) -> tuple[Record, bool]:
    """Return the table's fields, and whether SGLang takes it for an additive one."""
    return read_record(path), _ADDITIVE_MARK in read_text(path)


def save_table(
    path: Path | str, cost: ThroughputCurve | AdditiveCost, *, max_batch_tokens: int | None = None
) -> None:
    """Write the table that fits the cost model: diagonal for a throughput curve, additive otherwise.

    ``max_batch_tokens`` belongs to the diagonal table and defaults to the last probe.
    """
    if isinstance(cost, AdditiveCost) and max_batch_tokens is not None:
        raise BadInputError("belongs to a diagonal table only", field="max_batch_tokens")
    write_json(Path(path), table_fields(cost, max_batch_tokens))


def table_fields(
    cost: ThroughputCurve | AdditiveCost, max_batch_tokens: int | None = None
) -> dict[str, object]:
    """Return what ``save_table`` writes."""
    if isinstance(cost, AdditiveCost):
        return _additive_fields(cost)
    return _diagonal_fields(cost, max_batch_tokens)


def _diagonal_parts(record: Record) -> tuple[Floats, Floats]:
    """Batch tokens and steps per second."""
    tokens = axis(record.wholes("sample_batch_tokens"), "sample_batch_tokens")
    rates = values(record.numbers("sample_steps_per_sec"), "sample_steps_per_sec", like=tokens)
    largest = record.whole("max_batch_tokens")
    if largest < tokens[-1]:
        raise record.error("max_batch_tokens", f"must be at least the last probe, {tokens[-1]:g}", largest)
    _refuse_single_probe(len(tokens))
    return tokens, rates


def _diagonal_fields(curve: ThroughputCurve, max_batch_tokens: int | None) -> dict[str, object]:
    tokens = whole_points(curve.batch_tokens, "batch_tokens")
    _refuse_single_probe(len(tokens))
    largest = tokens[-1] if max_batch_tokens is None else max_batch_tokens
    if largest < tokens[-1]:
        raise BadInputError(f"must be at least {tokens[-1]}", field="max_batch_tokens", value=largest)
    return {
        "sample_batch_tokens": tokens,
        "sample_steps_per_sec": curve.steps_per_s.tolist(),
        "max_batch_tokens": largest,
    }


def _refuse_single_probe(probes: int) -> None:
    if probes < 2:
        raise BadInputError(
            "has a single probe, which SGLang takes for a table not yet measured: it would verify everything",
            field="sample_batch_tokens",
            remedy="measure at least two batch sizes",
        )


def _additive_parts(record: Record) -> tuple[float, Floats, Floats, Floats, Floats]:
    """Bias, requests and their part, batch tokens and theirs, in seconds."""
    requests = axis(record.wholes("bs_probes"), "bs_probes")
    tokens = axis(record.wholes("m_probes"), "m_probes")
    bias_s = record.number("bias_seconds")
    if bias_s <= 0:
        raise record.error("bias_seconds", "must be positive", bias_s)
    return (
        bias_s,
        requests,
        signed_values(record.numbers("alpha_seconds"), "alpha_seconds", requests),
        tokens,
        signed_values(record.numbers("theta_seconds"), "theta_seconds", tokens),
    )


def _additive_fields(cost: AdditiveCost) -> dict[str, object]:
    refuse_extra_terms(cost, "SGLang's additive table")
    return {
        "bias_seconds": cost.bias_s,
        "bs_probes": whole_points(cost.alpha.at, "request_probes"),
        "alpha_seconds": cost.alpha.value.tolist(),
        "m_probes": whole_points(cost.theta.at, "token_probes"),
        "theta_seconds": cost.theta.value.tolist(),
    }


@dataclass(frozen=True, slots=True)
class Calibration:
    """Temperatures of sequential scaling, one per position: ``c_k = sigmoid(raw_k / temperatures[k])``.

    The calibration errors are of the cumulative product up to each position, before and after.
    """

    temperatures: tuple[float, ...]
    dataset: str | None = None
    num_samples: int | None = None
    ece_before: tuple[float, ...] | None = None
    ece_after: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.temperatures:
            raise BadInputError("must be at least one, one per position", field="temperatures")
        for index, temperature in enumerate(self.temperatures):
            if not 0 < temperature < float("inf"):
                raise BadInputError(
                    "must be positive and finite", field=f"temperatures[{index}]", value=temperature
                )
        for name in ("ece_before", "ece_after"):
            errors = getattr(self, name)
            if errors is not None and len(errors) != len(self.temperatures):
                raise BadInputError("needs one value per temperature", field=name, value=len(errors))

    @classmethod
    def of_fit(cls, fit: TemperatureFit, *, dataset: str, num_samples: int) -> Calibration:
        """Return what was fitted, as SGLang would store it."""
        return cls(fit.temperatures, dataset, num_samples, fit.ece_before, fit.ece_after)


def load_calibration(path: Path | str, *, key: str = "temperatures") -> Calibration:
    """Read a calibration file; ``key`` is what the temperatures are called in it."""
    record = read_record(Path(path))

    def errors(name: str) -> tuple[float, ...] | None:
        return tuple(record.numbers(name)) if record.has(name) else None

    with blaming(record.source):
        return Calibration(
            tuple(record.numbers(key)),
            record.text("dataset") if record.has("dataset") else None,
            record.whole("num_samples") if record.has("num_samples") else None,
            errors("ece_before"),
            errors("ece_after"),
        )


def save_calibration(path: Path | str, calibration: Calibration) -> None:
    """Write a calibration file that SGLang and TensorRT-LLM read; what is unknown is left out."""
    write_json(Path(path), calibration_fields(calibration))


def calibration_fields(calibration: Calibration) -> dict[str, object]:
    """Return what ``save_calibration`` writes."""
    fields = {
        "temperatures": list(calibration.temperatures),
        "dataset": calibration.dataset,
        "num_samples": calibration.num_samples,
        "ece_before": calibration.ece_before,
        "ece_after": calibration.ece_after,
    }
    return {key: value for key, value in fields.items() if value is not None}
