"""Hold curves of measured kernels and the serving loop against published end-to-end measurements.

    scripts/validate_silicon --out runs/silicon [--every N] [--workers N]

Every usable row of aiconfigurator's ``silicon_sample.csv`` (model, GPU, engine, precision, parallelism,
lengths, concurrency, with measured TTFT and TPOT) is simulated: as many clients, each of which sends its
next request when the last one ends, prompts taken as the engine takes them, no speculation, room for keys
and values as it is. What engines add to kernels (``tools.silicon_costs``) is fitted on half of the rows,
chosen by a hash of their id; the other half is reported. Replicas that only decode, beside others that
prefill, are fitted to nothing and reported apart. Rows that cannot be simulated are counted by reason. Rows
whose engine's table fails the gates are simulated all the same and shown apart.
"""

from __future__ import annotations

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiconfigurator_core
import pandas as pd

from simulator.core.errors import SimulatorError
from simulator.core.files import write_csv
from simulator.hardware import gpus
from simulator.hardware.curves import composed
from simulator.hardware.engines import kind_of
from simulator.hardware.memory import layout
from simulator.hardware.models import load_model
from simulator.hardware.steps.kernel_modes import rows_stand_in
from simulator.hardware.steps.kernels import KernelTables
from simulator.parallel.cells import run_cells
from tools.silicon_costs import fitted, from_other_models, outside_ms, with_added
from tools.silicon_rows import Row, judge
from tools.silicon_runs import Seen, simulated

PASSES = "passes"
"""What stands in the column ``gate`` of a row whose engine's table passes."""


STANDS_IN = "its own table of block-scaled products stands apart: products scaled by rows stand in"
"""What stands there for vLLM's block-scaled weights; see ``kernel_modes.rows_stand_in``."""


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that share a curve."""

    rows: tuple[Row, ...]

    def __call__(self) -> dict[str, Any]:
        """Return what the gate says and what requests of each row saw; or why there is no curve."""
        first = self.rows[0]
        try:
            laid_out = layout(
                load_model(first.model), gpus.load_gpu(first.gpu), first.gpus, first.precision,
                dp=first.setting.attention_over, ep=first.setting.experts_over,
            )  # fmt: skip
            if not laid_out.fits:
                return {"refused": "its weights leave no room for keys and values"}
            tables = KernelTables(
                laid_out.model, laid_out.gpu, first.gpus, first.precision, first.setting
            )  # fmt: skip
            if first.engine not in tables.handles:
                return {"refused": f"no table of {first.engine}: {tables.missing[first.engine]}"}
            gates = tables.gates()
            profile = composed(laid_out, tables, gates, first.engine)
            seen = [simulated(row, profile) for row in self.rows]
        except SimulatorError as error:
            return {"refused": str(error)}
        gate = next(each for each in gates if each.engine == first.engine)
        own = not rows_stand_in(laid_out.model, first.engine, first.precision, first.setting.scales)
        return {
            "gate": gate.refused or (PASSES if own else STANDS_IN),
            "kind": kind_of(laid_out.model, first.precision), "seen": [_named(*each) for each in seen],
        }  # fmt: skip


def _named(before: Seen, after: Seen) -> dict[str, float]:
    """Columns of what requests saw: of TTFT and TPOT by kernels, and what they are made of."""
    both = {"ttft": before, "tpot": after}
    times = {f"kernels_{name}_ms": seen.time_ms for name, seen in both.items()}
    return times | {
        f"{name}_{field}": value
        for name, seen in both.items()
        for field, value in asdict(seen).items()
        if field != "time_ms"
    }


def simulated_group(group: Group) -> dict[str, Any]:
    """Run a group."""
    return group()


def compared(
    rows: Sequence[Row], workers: int, directory: Path
) -> tuple[pd.DataFrame, Counter[str]]:  # fmt: skip
    """Simulate rows; columns of ``Row``, the gate, the kind, and what requests saw; why others have none."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.curve, []).append(row)
    cells = [Group(tuple(each)) for each in groups.values()]
    found = run_cells(
        simulated_group, cells, workers=workers, progress=True, label="Curves", directory=directory
    )
    records, why = [], Counter[str]()
    for cell, result in zip(cells, found, strict=True):
        if "refused" in result:
            why[f"{' '.join(map(str, cell.rows[0].curve[:5]))}: {result['refused']}"] += len(cell.rows)
            continue
        for row, seen in zip(cell.rows, result["seen"], strict=True):
            fields = {name: getattr(row, name) for name in Row.__dataclass_fields__}
            shared = {"gate": result["gate"], "kind": result["kind"], "reported": row.reported}
            records.append(fields | shared | seen)
    return pd.DataFrame(records), why


def summary(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows, and median, 90% and bias of both errors, by groups and over all."""
    groups = [(tuple(map(str, key)), each) for key, each in table.groupby(list(by))]
    groups.append((("all", *[""] * (len(by) - 1)), table))
    rows = []
    for key, each in groups:
        row: dict[str, Any] = dict(zip(by, key, strict=True)) | {"rows": len(each)}
        row["within_20_share"] = float((each["tpot_error"].abs() <= 0.2).mean())
        for name in ("tpot", "ttft"):
            error = each[f"{name}_error"].dropna()
            size = error.abs()
            row |= {f"{name}_median": float(size.median()), f"{name}_p90": float(size.quantile(0.9))}
            row |= {f"{name}_bias": float(error.median())}
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """Return a summary as a table of a page."""
    shares = [name for name in table.columns if name.endswith(("median", "p90", "bias", "share"))]
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
    passes = table["gate"] == PASSES
    agreed = ~table["reported"] & passes & ~table["elsewhere"]
    added = fitted(table[agreed])
    outside = outside_ms(table[agreed], added)
    done = with_added(table, added, outside)
    asked.out.mkdir(parents=True, exist_ok=True)
    _write(asked.out, done, why)
    print(f"{len(judged)} rows, {len(usable)} of them usable: 1 in {asked.every} is taken, {len(table)} have "
          f"tables and are simulated, {int(table['reported'].sum())} of them reported")  # fmt: skip
    for (host, kind), each in added.items():
        print(f"{host}, {kind}: {each.step_ms:.2f} ms a step, {1e3 * each.request_ms:.1f} us a request in "
              f"it, prompts {each.prompts:.0%} dearer")  # fmt: skip
    print("outside steps, ms a request: " + ", ".join(f"{name} {ms:.0f}" for name, ms in outside.items()))
    mixed = ~table["elsewhere"]
    for title, part in (("passing", passes & mixed), ("failing", ~passes & mixed)):
        if (part & table["reported"]).any():
            plain = summary(with_added(table[part & table["reported"]], {}), ["engine"])
            print(f"rows {title} the gates, nothing fitted:\n" + markdown(plain))
            print(markdown(summary(done[part & table["reported"]], BY)))
    print("the same, what engines add fitted to other models alone:\n"
          + markdown(summary(from_other_models(table[passes & mixed]), ["engine"])))  # fmt: skip
    if (passes & ~mixed).any():
        print("prompts elsewhere, nothing fitted to either half:\n"
              + markdown(summary(done[passes & ~mixed], BY)))  # fmt: skip


def _write(out: Path, table: pd.DataFrame, why: Counter[str]) -> None:
    seen = [name for name in table if str(name).endswith(("_steps", "_requests", "_prompts_ms"))]
    shown = table.drop(columns=["setting", *seen])
    write_csv(out / "rows.csv", shown[~shown["elsewhere"]], "%.6g")
    write_csv(out / "elsewhere.csv", shown[shown["elsewhere"]], "%.6g")
    write_csv(out / "seen.csv", table.drop(columns="setting"), "%.6g")
    write_csv(out / "refused.csv", pd.DataFrame(why.most_common(), columns=["why", "rows"]))
    passing = table[table["reported"] & (table["gate"] == PASSES) & ~table["elsewhere"]]
    plot(passing, out / "tpot.png")


BY = ("model", "gpu", "engine", "precision")
"""What rows are grouped by in the table of the page."""


if __name__ == "__main__":
    main()
