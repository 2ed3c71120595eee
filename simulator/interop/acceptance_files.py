"""Acceptance out of whatever an engine wrote: logs, counters, benchmark results, records of steps.

Files are recognised by their content. Where positions are recorded, their rates are read; where only a mean
accepted length is, the block size must be given too and every position gets one rate. What was skipped,
censored or assumed stands in the provenance of the result. docs/howto/engine_files.md lists every form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from simulator.acceptance.rates import Rates, conditional_rates, marginal_rates, mean_length
from simulator.acceptance.trace import AcceptanceModel
from simulator.acceptance.trace_file import load_trace
from simulator.core.errors import BadInputError, refuse_repeats
from simulator.core.provenance import Provenance
from simulator.interop import forms, vllm
from simulator.interop.forms import Form, known_form, refuse_unreal
from simulator.interop.records import Record, read_text
from simulator.interop.sglang_dump import load_step_dump

_PARQUET = b"PAR1"

_FLOAT = r"\d+(?:\.\d+)?"


def load_acceptance(path: Path | str, gamma: int | None = None) -> AcceptanceModel:
    """Read acceptance from a trace or from a file that an engine wrote.

    gamma: the block size. Blocks of a file that records positions are cut to it; a file that knows a mean
    accepted length alone needs it. Raises ``BadInputError`` naming the file, what it is and what to do.
    """
    path = Path(path)
    if path.suffix == ".parquet" or _starts_with(path, _PARQUET):
        trace = load_trace(path)
        return trace if gamma is None else trace.truncated(gamma)
    text = read_text(path)
    content, lines = _parsed(text, str(path))
    refuse_unreal(text if content is None else content, str(path))
    form = known_form(text if content is None else content)
    reader = None if form is None else _READERS.get(form)
    if form is None or reader is None:
        raise BadInputError(
            "holds no acceptance in a known form" if form is None else f"is {form.title}, not acceptance",
            source=str(path), field="acceptance",
            remedy=form.remedy if form else "give a trace FILE.parquet, an engine's log, or rates by hand, "
            "such as marginal:0.8,0.6 or length:2.4@3",
        )  # fmt: skip
    if lines > 1:
        raise BadInputError(
            f"holds {lines} results", source=str(path), field="line 2", remedy="keep one line"
        )
    record = None if content is None else Record(str(path), content)
    return reader(_File(path, text, record, form, gamma))


@dataclass(frozen=True, slots=True)
class _File:
    """A file under reading: its text, its JSON object where it is one, its form, the block size given."""

    path: Path
    text: str
    record: Record | None
    form: Form
    gamma: int | None

    @property
    def source(self) -> str:
        """The file, as errors name it."""
        return str(self.path)

    @property
    def json(self) -> Record:
        """The JSON object."""
        assert self.record is not None  # its form was told from the object's keys
        return self.record

    def error(
        self, problem: str, field: str, value: object = None, remedy: str | None = None
    ) -> BadInputError:
        """Return a complaint about one field of this file."""
        return BadInputError(problem, source=self.source, field=field, value=value, remedy=remedy)

    def measured(self, rates: Rates, *notes: str, date: str = "undated") -> Rates:
        """Return the rates with their origin, cut to the block size given."""
        source = "; ".join([f"{self.source}, {self.form.title}", *(note for note in notes if note)])
        if self.gamma is not None and not 1 <= self.gamma <= rates.gamma:
            raise self.error(f"records blocks of {rates.gamma} drafts", "block size", self.gamma,
                             f"write @{rates.gamma} or less")  # fmt: skip
        cut = rates if self.gamma is None else rates.truncated(self.gamma)
        return replace(cut, provenance=Provenance(kind="measured", source=source, date=date))

    def from_marginals(self, marginal: Sequence[float], field: str) -> Rates:
        """Rates from P(drafts 1..k all accepted), which must fall."""
        within = all(0 <= rate <= 1 for rate in marginal)
        if not marginal or not within or any(b > a for a, b in pairwise(marginal)):
            raise self.error("must be one or more rates within 0..1 that never rise", field, list(marginal),
                             "export the file again")  # fmt: skip
        return marginal_rates(marginal)

    def from_length(self, length: float, field: str, *notes: str, date: str = "undated") -> Rates:
        """One rate at every position, from a mean accepted length and the block size that the user gives."""
        if not 1 <= length < math.inf:
            raise self.error("must be at least 1, the bonus included", field, length, "export the file again")
        if self.gamma is None or length > self.gamma + 1:
            size = max(2, math.ceil(length))
            raise self.error(
                f"is {self.form.title}, which knows a mean accepted length alone: the block size is missing"
                if self.gamma is None else f"does not fit blocks of {self.gamma} drafts",
                field, round(length, 4),
                f"write {self.path.name}@K or length:{length:.4g}@K, K being the drafts per step "
                f"(as in length:{length:.4g}@{size})",
            )  # fmt: skip
        assumed = "positions are not recorded: one rate at every position"
        return self.measured(mean_length(length, self.gamma), *notes, assumed, date=date)


def _vllm_log(file: _File) -> Rates:
    log = vllm.read_log(file.path)
    return file.measured(vllm.pooled_rates(log.intervals, source=file.source), log.summary())


_V0 = re.compile(
    r"Number of speculative tokens: (\d+), .*Number of draft tokens: (\d+), "
    r"Number of emitted tokens: (\d+)(?=\D)"
)


def _vllm_v0_log(file: _File) -> Rates:
    """Read counters since the start.

    Emitted tokens over drafts is the accepted length, bonus included. The accepted tokens printed beside
    them are counted one by one, also behind a rejected one.
    """
    counted = _V0.findall(file.text)
    if not counted:
        raise file.error("has no counts of draft and emitted tokens", "Speculative metrics",
                         remedy="remove a cut-off line")  # fmt: skip
    block, drafted, emitted = map(int, counted[-1])
    if not block or not drafted:
        raise file.error("counts no draft", "Number of draft tokens", drafted, "log for longer")
    sized = replace(file, gamma=block if file.gamma is None else file.gamma)
    if sized.gamma != block:
        raise file.error(
            "is the block size of this log", "Number of speculative tokens", block, f"write @{block}"
        )
    length = emitted * block / drafted
    return sized.from_length(
        length, "Number of emitted tokens", _cut_off(file.text, "Speculative metrics:", _V0)
    )


def _cut_off(text: str, mark: str, whole: re.Pattern[str]) -> str:
    """Return a note where a file ends in the middle of a line of its form, '' elsewhere.

    whole: matches such a line only if the characters behind the last number are there as well: a number at
    the end of a file may lack digits.
    """
    last = text.rpartition("\n")[2]
    return forms.CUT_OFF if mark in last and not whole.search(last) else ""


_LLAMA = re.compile(
    rf"draft acceptance\s*(?:rate)?\s*=\s*({_FLOAT}) \(\s*(\d+) accepted /\s*(\d+) generated\)"
    rf"(?:, mean acceptance length =\s*({_FLOAT}), acceptance rate per position = \(([^)]*)\))?"
)


def _llama_cpp_log(file: _File) -> Rates:
    """One line a request: counts, then the share of its drafts that each position survived."""
    lines, cut = _LLAMA.findall(file.text), _cut_off(file.text, "draft acceptance", _LLAMA)
    last = _LLAMA.search(file.text.rpartition("\n")[2])
    if last and not last[5] and any(line[4] for line in lines):
        lines, cut = lines[:-1], forms.CUT_OFF
    if not lines:
        raise file.error("has no counts of accepted and generated drafts", "draft acceptance",
                         remedy="remove a cut-off line")  # fmt: skip
    accepted, generated = (sum(int(line[i]) for line in lines) for i in (1, 2))
    if not generated:
        raise file.error("counts no draft", "generated", generated, "log for longer")
    if not all(line[4] for line in lines):
        return _from_mean_rate(file, accepted / generated, "draft acceptance", cut)
    name = "acceptance rate per position"
    positions: list[list[float]] = [
        [_float(part, file, name) for part in line[4].split(",")] for line in lines
    ]
    if len({len(rates) for rates in positions}) > 1:
        raise file.error("differs between lines", name, remedy="keep lines of one draft length")
    drafts = [
        int(line[1]) / sum(rates) if int(line[1]) > 0 and max(rates) > 0 else int(line[2]) / len(rates)
        for line, rates in zip(lines, positions, strict=True)
    ]
    vllm.refuse_shortened(generated, sum(drafts), len(positions[0]), file.source)
    pooled = np.array(drafts) @ np.array(positions) / sum(drafts)
    return file.measured(file.from_marginals(pooled.tolist(), name), f"{len(lines)} requests", cut)


def _from_mean_rate(file: _File, rate: float, field: str, *notes: str) -> Rates:
    """Return a share of drafted tokens that was accepted, where nothing else is printed."""
    if file.gamma is None:
        raise file.error(
            f"is {file.form.title} with a mean rate alone: the block size is missing", field, round(rate, 4),
            f"write {file.path.name}@K or rate:{rate:.4g}@K, K being the drafts per step",
        )  # fmt: skip
    return file.from_length(1 + file.gamma * rate, field, *notes)


_COUNTER = re.compile(r"^vllm:spec_decode_(\w+?)(?:_total)?\{([^}]*)\}\s+(\S+)", re.MULTILINE)


def _vllm_metrics(file: _File) -> Rates:
    """Counters since the start, summed over engines."""
    counts: dict[str, float] = {}
    models = set()
    for name, labels, value in _COUNTER.findall(file.text):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        models.add(label.get("model_name", ""))
        key = f"{name} {label['position']}" if "position" in label else name
        counts[key] = counts.get(key, 0.0) + _float(value, file, name)
    if len(models) > 1:
        raise file.error("are of several models", "model_name", sorted(models), "keep the lines of one model")
    drafts = counts.get("num_drafts", 0.0)
    per_position = [counts[f"num_accepted_tokens_per_pos {k}"] for k in range(len(counts))
                    if f"num_accepted_tokens_per_pos {k}" in counts]  # fmt: skip
    if not drafts or not per_position:
        raise file.error("counts no draft" if not drafts else "is missing",
                         "num_drafts" if not drafts else "num_accepted_tokens_per_pos",
                         remedy="scrape /metrics after some requests")  # fmt: skip
    if "num_draft_tokens" in counts:
        vllm.refuse_shortened(counts["num_draft_tokens"], drafts, len(per_position), file.source)
    rates = file.from_marginals([count / drafts for count in per_position], "num_accepted_tokens_per_pos")
    return file.measured(rates, f"{drafts:g} drafts")


def _vllm_bench(file: _File) -> Rates:
    record, positions = file.json, "spec_decode_per_position_acceptance_rates"
    date = record.text("date") if record.has("date") else "undated"
    date = f"{date[:4]}-{date[4:6]}-{date[6:8]}" if re.match(r"\d{8}\b|\d{8}-", date) else date
    if not record.has(positions):
        length = record.number("spec_decode_acceptance_length")
        return file.from_length(length, "spec_decode_acceptance_length", date=date)
    rates = file.from_marginals(record.numbers(positions), positions)
    if record.has("spec_decode_acceptance_length"):
        length = record.number("spec_decode_acceptance_length")
        if abs(length - rates.accepted_length) > 0.02:
            raise file.error(f"differs from one plus the sum of the rates, {rates.accepted_length:.3f}",
                             "spec_decode_acceptance_length", length, "export the result again")  # fmt: skip
    if record.has("spec_decode_draft_tokens") and record.has("spec_decode_num_drafts"):
        drafted, drafts = record.number("spec_decode_draft_tokens"), record.number("spec_decode_num_drafts")
        vllm.refuse_shortened(drafted, drafts, rates.gamma, file.source)
    return file.measured(rates, date=date)


_DECODE = re.compile(rf"#running-req: (\d+),.*?accept len: ({_FLOAT})(?=[^\d.])")


def _sglang_log(file: _File) -> Rates:
    """One line every few dozen steps; each counts by its running requests."""
    lines = [(int(requests), float(length)) for requests, length in _DECODE.findall(file.text)]
    requests = sum(running for running, _ in lines)
    if not requests:
        raise file.error("has no line with running requests and an accepted length", "accept len",
                         remedy="log for longer, with speculation switched on")  # fmt: skip
    length = sum(running * each for running, each in lines) / requests
    return file.from_length(
        length, "accept len", f"{len(lines)} lines", _cut_off(file.text, "#running-req", _DECODE)
    )


def _sglang_bench(file: _File) -> Rates:
    return file.from_length(file.json.number("accept_length"), "accept_length")


def _sglang_dump(file: _File) -> Rates:
    acceptance = load_step_dump(file.path).acceptance()
    censored = f"{acceptance.rounds} rounds, {acceptance.censored_rounds} of them censored"
    estimate = " (Kaplan-Meier: optimistic where cuts follow confidence)" if acceptance.is_censored else ""
    return file.measured(acceptance.rates(), censored + estimate, *acceptance.notes)


def _speculation_profile(file: _File) -> Rates:
    rates = file.json.numbers("conditional_accept_rates")
    if not rates or not all(0 <= rate <= 1 for rate in rates):
        raise file.error("must be one or more rates within 0..1", "conditional_accept_rates", rates,
                         "export the file again")  # fmt: skip
    origin = file.json.text("read_from") if file.json.has("read_from") else ""
    return file.measured(conditional_rates(rates), origin)


def _deepspec_metrics(file: _File) -> Rates:
    spec = file.json.record("spec")
    name = "accept_rates_by_position"
    rates, drafts = spec.numbers(name), spec.number("draft_tokens_per_proposal")
    return _deepspec(file, rates, drafts, name, spec.text("dataset"))


_DEEPSPEC_ROW = re.compile(rf"\|\s*(\S+)\s*\|.*\|\s*({_FLOAT})\+1\s*\|\s*{_FLOAT}\s*\|\s*{_FLOAT}\s*\|(.*)\|")


def _deepspec_table(file: _File) -> Rates:
    """Read the table that eval.py prints; a dataset's row comes twice, the second time among all."""
    rows = filter(None, map(_DEEPSPEC_ROW.fullmatch, map(str.strip, file.text.splitlines())))
    found = {row[1]: row for row in rows}
    if len(found) != 1:
        problem = f"has rows of {len(found)} datasets" if found else "has no row"
        raise file.error(problem, "dataset", list(found), "keep the header and the row of one dataset")
    row = next(iter(found.values()))
    name = "accept_rate@"
    rates = [_float(cell, file, name) for cell in map(str.strip, row[3].split("|")) if cell not in ("", "-")]
    return _deepspec(file, rates, float(row[2]), name, row[1])


def _deepspec(file: _File, rates: list[float], drafts: float, field: str, dataset: str) -> Rates:
    """Rate k is of rounds that proposed more than k drafts: it may rise where stop tokens cut blocks."""
    vllm.refuse_shortened(drafts, 1.0, len(rates), file.source)
    outside = [rate for rate in rates if not 0 <= rate <= 1]
    if outside:  # behind a smaller one it would not be seen
        raise file.error("must be rates from 0 to 1", field, outside[0], "take the file as it was written")
    falling = np.minimum.accumulate(rates).tolist() if rates else rates
    return file.measured(file.from_marginals(falling, field), f"dataset {dataset}")


_READERS: dict[Form, Callable[[_File], Rates]] = {
    forms.VLLM_LOG: _vllm_log,
    forms.VLLM_V0_LOG: _vllm_v0_log,
    forms.VLLM_METRICS: _vllm_metrics,
    forms.VLLM_BENCH: _vllm_bench,
    forms.SGLANG_LOG: _sglang_log,
    forms.SGLANG_BENCH: _sglang_bench,
    forms.SGLANG_DUMP: _sglang_dump,
    forms.LLAMA_CPP_LOG: _llama_cpp_log,
    forms.SPECULATION_PROFILE: _speculation_profile,
    forms.DEEPSPEC_METRICS: _deepspec_metrics,
    forms.DEEPSPEC_TABLE: _deepspec_table,
}


def _parsed(text: str, source: str) -> tuple[dict[str, object] | None, int]:
    """Return the JSON object that a text begins with (``None`` for other text) and how many lines it has.

    Container logs are JSON lines whose objects hold a line of a log each; they are read as text.
    """
    first, _, rest = text.strip().partition("\n")
    lines = 1
    value = _json(text, source)
    if value is None:
        value, lines = _json(first, source), 1 + sum(bool(line.strip()) for line in rest.split("\n"))
    return (value, lines) if value is not None and "log" not in value else (None, 1)


def _json(text: str, source: str) -> dict[str, object] | None:
    """Return the object of a JSON text, where it is one; engines write NaN for what they did not measure."""

    def without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
        value = dict(pairs)
        refuse_repeats((name for name, _ in pairs), "keys", source=source)
        return value

    try:
        value = json.loads(text, object_pairs_hook=without_repeats) if text[:1] == "{" else None
    except BadInputError:
        raise
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _starts_with(path: Path, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(mark)) == mark
    except OSError:
        return False


def _float(text: str, file: _File, field: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise file.error("must be a number of 0 or more", field, text, "export the file again")
    return value
