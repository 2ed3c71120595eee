"""Hold curves of measured kernels and the serving loop against published end-to-end measurements.

    scripts/validate_silicon --out runs/silicon [--every N] [--workers N]

Every usable row of aiconfigurator's ``silicon_sample.csv`` (model, GPU, engine, precision, parallelism,
lengths, concurrency, with measured TTFT and TPOT) is simulated: as many clients, each of which sends its next
request when the last one ends, prompts taken as the engine takes them, no speculation, room for keys and
values as it is. One number per engine, host time of a step, is fitted on half of the rows, chosen by a hash
of their id (vLLM has another before 0.14); the other half is reported. Rows that cannot be simulated are
counted by reason. Rows whose engine's table fails the gates are simulated all the same and shown apart.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiconfigurator_core
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from simulator.api.workbench import Workbench, deployment
from simulator.core.arrays import Floats
from simulator.core.errors import SimulatorError
from simulator.core.files import write_csv
from simulator.deployment.profile import Profile
from simulator.hardware import gpus
from simulator.hardware.curves import composed
from simulator.hardware.engines import prefills
from simulator.hardware.memory import layout
from simulator.hardware.models import load_model
from simulator.hardware.steps.kernel_modes import rows_stand_in
from simulator.hardware.steps.kernels import KernelTables
from simulator.parallel.cells import run_cells
from simulator.traffic.arrivals import PoissonArrivals
from simulator.traffic.lengths import EmpiricalLengths
from simulator.traffic.sources import SyntheticTraffic, TrafficClass
from tools.silicon_rows import Row, judge

SHORTEST = 0.8
"""InferenceX draws each length from this share of the nominal one up to it (random range ratio)."""

WAVES = (2, 6)
"""Fewest and most requests of a client; as many as make ``STEPS``. A benchmark sends all at once and the next
as one ends, so that with equal lengths its requests run in waves and a steady state is never reached."""

STEPS = 4096

AT_ONCE_PER_S = 1e6
"""Arrival rate that stands for all at once."""

PASSES = "passes"
"""What stands in the column ``gate`` of a row whose engine's table passes."""


STANDS_IN = "its own table of block-scaled products stands apart: products scaled by rows stand in"
"""What stands there for vLLM's block-scaled weights; see ``kernel_modes.rows_stand_in``."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a curve."""

    rows: tuple[Row, ...]

    def __call__(self) -> dict[str, Any]:
        """Return what the gate says and mean TTFT and TPOT of each row, ms; or why there is no curve."""
        first = self.rows[0]
        try:
            laid_out = layout(load_model(first.model), gpus.load_gpu(first.gpu), first.gpus, first.precision)
            if not laid_out.fits:
                return {"refused": "its weights leave no room for keys and values"}
            tables = KernelTables(
                laid_out.model, laid_out.gpu, first.gpus, first.precision, first.setting
            )  # fmt: skip
            if first.engine not in tables.handles:
                return {"refused": f"no table of {first.engine}: {tables.missing[first.engine]}"}
            gates = tables.gates()
            profile = composed(laid_out, tables, gates, first.engine)
        except SimulatorError as error:
            return {"refused": str(error)}
        gate = next(each for each in gates if each.engine == first.engine)
        times = [_simulated_ms(row, profile) for row in self.rows]
        own = not rows_stand_in(laid_out.model, first.engine, first.precision, first.setting.scales)
        return {
            "gate": gate.refused or (PASSES if own else STANDS_IN), "ttft_ms": [each[0] for each in times],
            "tpot_ms": [each[1] for each in times],
        }  # fmt: skip


def simulated(group: Group) -> dict[str, Any]:
    """Run a group."""
    return group()


def _simulated_ms(row: Row, profile: Profile) -> tuple[float, float]:
    """Return mean TTFT and TPOT, ms, without any host time."""
    bench: Workbench = deployment(profile, {"none": "length:1@1"})
    drawn = (_lengths(row.prompt_tokens, row.ranged), _lengths(row.output_tokens, row.ranged))
    pairs = EmpiricalLengths(drawn[0], drawn[1])
    traffic = SyntheticTraffic(PoissonArrivals(AT_ONCE_PER_S), (TrafficClass("default", pairs),))
    waves = int(np.clip(STEPS // row.output_tokens, *WAVES))
    done = bench.simulate(
        "autoregressive", concurrency=row.concurrency, traffic=traffic, requests=waves * row.concurrency,
        prefill=prefills(row.engine), chunk_tokens=row.step_tokens,
    ).requests  # fmt: skip
    first_s = done["first_token_s"].to_numpy()
    sent_s = _sent_s(done["admitted_s"].to_numpy(), done["finished_s"].to_numpy(), row.concurrency)
    return 1e3 * float((first_s - sent_s).mean()), 1e3 * float(done["tpot_s"].mean())


def _sent_s(admitted_s: Floats, finished_s: Floats, clients: int) -> Floats:
    """When each request was sent: the first of each client at once, the next as one ends; in any order."""
    order = np.argsort(admitted_s, kind="stable")
    sent_s = np.empty(len(order))
    sent_s[order] = np.concatenate([np.zeros(clients), np.sort(finished_s)])[: len(order)]
    return np.minimum(sent_s, admitted_s)


def _lengths(tokens: int, ranged: bool) -> NDArray[np.int64]:
    if not ranged:
        return np.array([tokens, tokens], dtype=np.int64)
    drawn = np.random.default_rng(tokens).integers(int(SHORTEST * tokens), tokens + 1, 512)
    return np.maximum(drawn, 1).astype(np.int64)


def compared(
    rows: Sequence[Row], workers: int, directory: Path
) -> tuple[pd.DataFrame, Counter[str]]:  # fmt: skip
    """Simulate rows; columns of ``Row``, what the gate says and predictions, ms; and why others have none."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.curve, []).append(row)
    cells = [Group(tuple(each)) for each in groups.values()]
    found = run_cells(simulated, cells, workers=workers, progress=True, label="Curves", directory=directory)
    records, why = [], Counter[str]()
    for cell, result in zip(cells, found, strict=True):
        if "refused" in result:
            why[f"{' '.join(map(str, cell.rows[0].curve[:5]))}: {result['refused']}"] += len(cell.rows)
            continue
        for row, ttft_ms, tpot_ms in zip(cell.rows, result["ttft_ms"], result["tpot_ms"], strict=True):
            fields = {name: getattr(row, name) for name in Row.__dataclass_fields__}
            records.append(fields | {
                "gate": result["gate"], "reported": row.reported, "predicted_ttft_ms": ttft_ms,
                "predicted_tpot_ms": tpot_ms,
            })  # fmt: skip
    return pd.DataFrame(records), why


def host_times_ms(fitted: pd.DataFrame) -> dict[str, float]:
    """Host time of a step by ``Row.host``, not negative: that with the least sum of relative errors of TPOT.

    Of what predictions lack it is the median, each weighed by one over its TPOT.
    """
    return {str(name): _host_ms(each) for name, each in fitted.groupby("host")}


def _host_ms(rows: pd.DataFrame) -> float:
    ordered = rows.assign(lacking=rows["tpot_ms"] - rows["predicted_tpot_ms"]).sort_values("lacking")
    weight = (1 / ordered["tpot_ms"]).cumsum().to_numpy()
    return max(float(ordered["lacking"].iloc[int(np.searchsorted(weight, weight[-1] / 2))]), 0.0)


def with_hosts(table: pd.DataFrame, hosts_ms: Mapping[str, float]) -> pd.DataFrame:
    """Add host time to each prediction, and the relative errors.

    No request is sent at a time of its own, so that a step that takes longer changes no later step: TPOT
    rises by the host time of one step exactly, TTFT by at least that.
    """
    host_ms = table["host"].map(dict(hosts_ms)).fillna(0.0)
    done = table.assign(**{f"predicted_{name}_ms": table[f"predicted_{name}_ms"] + host_ms
                           for name in ("ttft", "tpot")})  # fmt: skip
    return done.assign(**{
        f"{name}_error": done[f"predicted_{name}_ms"] / done[f"{name}_ms"] - 1 for name in ("ttft", "tpot")
    })  # fmt: skip


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

    from simulator.report.drawing.style import PALETTE, save

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
        judged = judge(csv.DictReader(file))
    usable = [each for each in judged if isinstance(each, Row)]
    rows = [row for row in usable if row.bucket % asked.every == 0]
    table, without = compared(rows, asked.workers, asked.out / "cells")
    why = Counter(each for each in judged if isinstance(each, str)) + without
    hosts = host_times_ms(table[~table["reported"] & (table["gate"] == PASSES)])
    reported = table[table["reported"]]
    asked.out.mkdir(parents=True, exist_ok=True)
    _write(asked.out, with_hosts(table, hosts), why)
    print(f"{len(judged)} rows, {len(usable)} of them usable: 1 in {asked.every} is taken, {len(table)} have "
          f"tables and are simulated, {len(reported)} of them reported")  # fmt: skip
    print("host time of a step, ms: " + ", ".join(f"{name} {each:.2f}" for name, each in hosts.items()))
    for title, part in (("passing", reported["gate"] == PASSES), ("failing", reported["gate"] != PASSES)):
        if part.any():
            plain = summary(with_hosts(reported[part], {}), ["engine"])
            print(f"rows {title} the gates, nothing fitted:\n" + markdown(plain))
            print(markdown(summary(with_hosts(reported[part], hosts), BY)))


def _write(out: Path, table: pd.DataFrame, why: Counter[str]) -> None:
    write_csv(out / "rows.csv", table.drop(columns="setting"), "%.6g")
    write_csv(out / "refused.csv", pd.DataFrame(why.most_common(), columns=["why", "rows"]))
    passing = table[table["reported"] & (table["gate"] == PASSES)]
    plot(passing, out / "tpot.png")


BY = ("model", "gpu", "engine", "precision")
"""What rows are grouped by in the table of the page."""


if __name__ == "__main__":
    main()
