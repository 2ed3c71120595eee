"""Hold curves of measured kernels and the serving loop against published end-to-end measurements.

    scripts/validate_silicon --out runs/silicon [--every N] [--workers N]

Every usable row of aiconfigurator's ``silicon_sample.csv`` (model, GPU, engine, precision, parallelism,
lengths, concurrency, with measured TTFT and TPOT) is simulated: as many requests at once, chunked prefill, no
speculation. One number per engine, host time of a step, is fitted on half of the rows, chosen by a hash of
their id; the other half is reported. Rows that cannot be simulated are refused beforehand and counted by
reason.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import aiconfigurator_core
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.api.workbench import Workbench, deployment
from simulator.core.errors import BadInputError, SimulatorError
from simulator.core.files import write_csv
from simulator.deployment.profile import Profile
from simulator.hardware import gpus
from simulator.hardware.curves import kernel_profile
from simulator.hardware.memory import layout
from simulator.hardware.models import Precision, load_model
from simulator.parallel.cells import run_cells
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import EmpiricalLengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass

CHUNK_TOKENS = 8192
"""Rows of a step with prompts: the default of vLLM, SGLang and TensorRT-LLM on these GPUs."""

SHORTEST = 0.8
"""InferenceX draws each length from this share of the nominal one up to it (random range ratio)."""

WAVES = 6
"""Requests of a slot. A benchmark sends all at once and the next as one ends, so that with equal lengths its
requests run in waves: prompts come together, and a steady state is never reached."""

AT_ONCE_PER_S = 1e6
"""Arrival rate that stands for all at once."""

MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Llama-3.1-8B",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Llama-3.1-8B",
    "Qwen/Qwen3-235B-A22B-FP8": "Qwen/Qwen3-235B-A22B",
}
"""Packagings of one shape under other names."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement: what ran, and what came out, ms."""

    id: str
    model: str
    gpu: str
    engine: str
    precision: Precision
    tp: int
    prompt_tokens: int
    output_tokens: int
    concurrency: int
    ranged: bool
    ttft_ms: float
    tpot_ms: float

    @property
    def curve(self) -> tuple[str, str, str, str, int]:
        """What its step cost depends on."""
        return self.model, self.gpu, self.engine, self.precision, self.tp

    @property
    def reported(self) -> bool:
        """Whether it is reported; the other half is fitted on."""
        return sha256(self.id.encode()).digest()[0] % 2 == 0


def usable(row: Mapping[str, str]) -> Row | str:
    """Return a row as it is simulated, or why it is not."""
    if row["mode"] != "agg":
        return "prefill and decode on GPUs of their own"
    if row["attention_dp_size"] not in ("", "1") or row["pp_size"] not in ("", "1"):
        return "attention split over requests, or pipelined layers"
    if row["moe_ep_size"] not in ("", "1"):
        return "experts split over GPUs"
    known = {gpu.kernel_tables: name for name, gpu in gpus.catalogue().items() if gpu.kernel_tables}
    try:
        model = load_model(MODELS.get(row["model_path"], row["model_path"]))
    except BadInputError:
        return f"{row['model_path']}: a shape that is not described"
    precision = _precision(row, model.native)
    if precision is None:
        return f"weights in {row['gemm_quant_mode'] or row['precision']}"
    said = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    concurrency = int(said[1]) if said else int(row["batch_size"])
    if concurrency != int(row["batch_size"]):
        return "several replicas"
    return Row(
        row["id"], model.name, known[row["system"]], row["backend"], precision, int(row["tp_size"]),
        int(row["isl"]), int(row["osl"]), concurrency, "2026-0" in row["silicon_data_source"][:25],
        float(row["silicon_ttft_ms"]), float(row["silicon_tpot_ms"]),
    )  # fmt: skip


def _precision(row: Mapping[str, str], native: Precision) -> Precision | None:
    """Weights as the tables describe them; None for a scheme that they do not."""
    gemm = row["gemm_quant_mode"]
    if native == "fp4":
        return "fp4" if row["precision"] == "fp4" else None
    if gemm == "fp8" and row["moe_quant_mode"] in ("", "fp8"):
        return "fp8"
    if not gemm and row["precision"] in ("", "bf16"):
        return "fp8" if native == "fp8" else "bf16"
    return None


@dataclass(frozen=True, slots=True)
class Simulated:
    """A row under simulation: its profile, and host time of a step, seconds."""

    row: Row
    profile: Profile
    host_s: float

    def __call__(self) -> dict[str, Any]:
        """Return mean TTFT and TPOT, ms."""
        row = self.row
        bench: Workbench = deployment(self.profile, {"none": "length:1@1"}, overhead_s=self.host_s)
        drawn = (_lengths(row.prompt_tokens, row.ranged), _lengths(row.output_tokens, row.ranged))
        pairs = EmpiricalLengths(drawn[0], drawn[1])
        traffic = SyntheticTraffic(PoissonArrivals(AT_ONCE_PER_S), (TrafficClass("default", pairs),))
        done = bench.simulate(
            "autoregressive", concurrency=row.concurrency, traffic=traffic, requests=WAVES * row.concurrency,
            prefill="chunked", chunk_tokens=CHUNK_TOKENS,
        ).requests  # fmt: skip
        first_s = done["first_token_s"] - done["admitted_s"]
        return {"ttft_ms": 1e3 * float(first_s.mean()), "tpot_ms": 1e3 * float(done["tpot_s"].mean())}


def _lengths(tokens: int, ranged: bool) -> NDArray[np.int64]:
    if not ranged:
        return np.array([tokens, tokens], dtype=np.int64)
    drawn = np.random.default_rng(tokens).integers(int(SHORTEST * tokens), tokens + 1, 512)
    return np.maximum(drawn, 1).astype(np.int64)


def simulated(cell: Simulated) -> dict[str, Any]:
    """Run a cell."""
    return cell()


def curves(rows: Sequence[Row]) -> tuple[dict[tuple[Any, ...], Profile], dict[tuple[Any, ...], str]]:
    """Profile of each distinct curve, and why others have none: the engine's own table or nothing."""
    found: dict[tuple[Any, ...], Profile] = {}
    refused: dict[tuple[Any, ...], str] = {}
    for row in {row.curve: row for row in rows}.values():
        try:
            laid_out = layout(load_model(row.model), gpus.load_gpu(row.gpu), row.tp, row.precision)
            profile = kernel_profile(laid_out, engine=row.engine)  # type: ignore[arg-type]
        except SimulatorError as error:
            refused[row.curve] = str(error)
            continue
        if f", {row.engine}" not in profile.title:
            gate = re.search(rf"{row.engine} [^;]*", str(profile.provenance.notes))
            refused[row.curve] = f"gate: {gate[0] if gate else row.engine}"
            continue
        unlimited = profile.model_copy(update={"kv_tokens": None})
        found[row.curve] = unlimited
    return found, refused


def compared(
    rows: Sequence[Row], found: Mapping[tuple[Any, ...], Profile], host_s: Mapping[str, float], workers: int,
    directory: Path,
) -> pd.DataFrame:  # fmt: skip
    """Simulate rows; columns of ``Row``, the two predictions and their relative errors."""
    cells = [Simulated(row, found[row.curve], host_s.get(row.engine, 0.0)) for row in rows]
    predicted = run_cells(simulated, cells, workers=workers, progress=True, label="Rows", directory=directory)
    table = pd.DataFrame([{name: getattr(row, name) for name in Row.__dataclass_fields__} for row in rows])
    for name in ("ttft", "tpot"):
        table[f"predicted_{name}_ms"] = [each[f"{name}_ms"] for each in predicted]
        table[f"{name}_error"] = table[f"predicted_{name}_ms"] / table[f"{name}_ms"] - 1
    return table


def host_times(fitted: pd.DataFrame) -> dict[str, float]:
    """Host time of a step by engine, seconds: the median of what the prediction lacks, not negative."""
    lacking = fitted["tpot_ms"] - fitted["predicted_tpot_ms"]
    return {
        str(name): max(float(each.median()), 0.0) / 1e3 for name, each in lacking.groupby(fitted["engine"])
    }


def summary(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows, and median, 90% and bias of both errors, by groups and over all."""
    groups = [(tuple(map(str, key)), each) for key, each in table.groupby(list(by))]
    groups.append((("all", *[""] * (len(by) - 1)), table))
    rows = []
    for key, each in groups:
        row: dict[str, Any] = dict(zip(by, key, strict=True)) | {"rows": len(each)}
        for name in ("tpot", "ttft"):
            error = each[f"{name}_error"].dropna()
            size = error.abs()
            row |= {f"{name}_median": float(size.median()), f"{name}_p90": float(size.quantile(0.9))}
            row |= {f"{name}_bias": float(error.median())}
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a summary as a table of a page."""
    shares = [name for name in table.columns if name.endswith(("median", "p90", "bias"))]
    lines = [f"| {' | '.join(table.columns)} |", f"| {' | '.join('---' for _ in table.columns)} |"]
    for row in table.to_dict("records"):
        shown = [f"{row[name]:+.1%}" if "bias" in name else f"{row[name]:.1%}" if name in shares
                 else str(row[name]) for name in table.columns]  # fmt: skip
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines)


def plot(table: pd.DataFrame, path: Path) -> None:
    """Predicted TPOT over measured, a colour per engine."""
    from matplotlib.figure import Figure

    from simulator.report.style import PALETTE, save

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    for colour, (engine, rows) in zip(PALETTE, table.groupby("engine"), strict=False):
        axes.plot(
            rows["tpot_ms"], rows["predicted_tpot_ms"], "o", color=colour, markersize=3, label=str(engine)
        )
    low, high = table["tpot_ms"].min() * 0.8, table["tpot_ms"].max() * 1.2
    for factor, style in ((1.0, "-"), (1.2, ":"), (1 / 1.2, ":")):
        axes.plot([low, high], [factor * low, factor * high], style, color="0.5", linewidth=1)
    axes.set(
        xscale="log", yscale="log", xlim=(low, high), ylim=(low, high), xlabel="measured TPOT, ms",
        ylabel="predicted TPOT, ms", title=f"{len(table)} published runs; dotted: 20% off",
    )  # fmt: skip
    axes.legend(frameon=False)
    save(figure, path)


def main() -> None:
    """Simulate, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--every", type=int, default=1, help="take every Nth usable row, by the hash of its id"
    )
    parser.add_argument("--workers", type=int, default=-1)
    asked = parser.parse_args()
    source = Path(str(aiconfigurator_core.__file__)).parent / "systems" / "silicon_sample.csv"
    with source.open(newline="") as file:
        judged = [usable(row) for row in csv.DictReader(file)]
    rows = [each for each in judged if isinstance(each, Row)]
    found, refused = curves(rows)
    why = Counter(each for each in judged if isinstance(each, str))
    why.update(
        f"{' '.join(map(str, row.curve))}: {refused[row.curve]}" for row in rows if row.curve in refused
    )
    rows = [row for row in rows if row.curve in found]
    rows = [row for row in rows if int(sha256(row.id.encode()).hexdigest()[2:8], 16) % asked.every == 0]
    cells = asked.out / "cells"
    plain = compared(rows, found, {}, asked.workers, cells / "plain")
    is_reported = np.array([row.reported for row in rows])
    hosts = host_times(plain[~is_reported])
    with_host = [replace(row) for row, kept in zip(rows, is_reported, strict=True) if kept]
    table = compared(with_host, found, hosts, asked.workers, cells / "host")
    asked.out.mkdir(parents=True, exist_ok=True)
    write_csv(asked.out / "rows.csv", table, "%.6g")
    by = ["model", "gpu", "engine", "precision"]
    found_summary = summary(table, by)
    write_csv(asked.out / "summary.csv", found_summary, "%.4g")
    write_csv(asked.out / "refused.csv", pd.DataFrame(why.most_common(), columns=["why", "rows"]))
    plot(table, asked.out / "tpot.png")
    said = f"{len(rows)} simulated, {len(table)} of them reported; {sum(why.values())} refused"
    print(f"{len(judged)} rows; {said}")
    print("host time of a step, ms: " + ", ".join(f"{name} {1e3 * each:.2f}" for name, each in hosts.items()))
    print(
        "nothing fitted, the same rows: " + markdown(summary(plain[is_reported], ["engine"])).splitlines()[-1]
    )
    print(markdown(found_summary))


if __name__ == "__main__":
    main()
