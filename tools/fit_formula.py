"""Fit the formula of step times on one model and GPU, and show its error on others.

    python -m tools.fit_formula [--out docs-table.md]

Truth is the median of the engines whose kernel tables pass the gates (``simulator.hardware.kernels``): passes
of 1 to 2,048 rows over 1 to 256 requests of 1k to 16k tokens. Of what is reported only Qwen3-8B on H200 was
fitted to.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from simulator.core.arrays import Floats
from simulator.core.errors import SimulatorError
from simulator.core.files import write_text
from simulator.hardware.formula import Coefficients, FormulaTimes
from simulator.hardware.gpus import load_gpu
from simulator.hardware.kernels import KernelTables
from simulator.hardware.memory import WIDTHS, Layout, layout
from simulator.hardware.models import Precision, load_model

ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)

REQUESTS = (1, 4, 16, 64, 256)

CONTEXTS = (1024, 4096, 16384)

FITTED_ON = ("Qwen/Qwen3-8B", "h200")

MODELS = (
    "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "mistralai/Mixtral-8x7B-v0.1", "openai/gpt-oss-120b",
)  # fmt: skip

GPUS = ("a100", "h100", "h200", "b200")

START = (0.85, 0.75, 0.6, 0.8, 0.5, 40.0, 5.0)

LOW = (0.3, 0.2, 0.2, 0.2, 0.05, 0.0, 0.0)

HIGH = (1.2, 1.2, 1.2, 1.5, 1.2, 300.0, 100.0)


def measured(laid_out: Layout) -> Floats | None:
    """Seconds of every pass, [passes]; None where no engine's table passes the gates."""
    tables = KernelTables(laid_out.model, laid_out.gpu, laid_out.gpus, laid_out.precision)
    passing = [gate.engine for gate in tables.gates() if gate.refused is None]
    if not passing:
        return None
    of_engine = []
    for engine in passing:
        rows = {size: tables.operations_s(engine, size) for size in ROWS}
        attention = {
            (count, context): tables.attention_s(engine, count, context)
            for count in REQUESTS for context in CONTEXTS
        }  # fmt: skip
        of_engine.append([rows[size] + attention[count, context] for size, count, context in passes()])
    return np.asarray(np.median(of_engine, axis=0), dtype=np.float64)


def passes() -> Iterator[tuple[int, int, int]]:
    """Yield rows, requests and context of every pass."""
    for size in ROWS:
        for count in REQUESTS:
            for context in CONTEXTS:
                if size >= count:
                    yield size, count, context


def predicted(laid_out: Layout, fitted: Coefficients) -> Floats:
    """Seconds of every pass by the formula, [passes]."""
    times = FormulaTimes(laid_out, fitted)
    return np.array([times.operations_s(size) + times.attention_s(count, at) for size, count, at in passes()])


def coefficients(point: Floats) -> Coefficients:
    """Return a point of the search, times in microseconds, as coefficients."""
    shares, times = [float(x) for x in point[:5]], [float(x) * 1e-6 for x in point[5:]]
    return Coefficients(*shares, *times)


def fit() -> Coefficients:
    """Least squares of the relative error on the model and GPU that it is fitted on."""
    model, gpu = load_model(FITTED_ON[0]), load_gpu(FITTED_ON[1])
    known: list[tuple[Layout, Floats]] = []
    for gpus in WIDTHS[:4]:
        for precision in ("bf16", "fp8"):
            laid_out = layout(model, gpu, gpus, precision)
            truth = measured(laid_out)
            if truth is not None:
                known.append((laid_out, truth))

    def residual(point: Floats) -> Floats:
        fitted = coefficients(point)
        return np.concatenate([np.log(predicted(each, fitted) / truth) for each, truth in known])

    return coefficients(least_squares(residual, START, bounds=(LOW, HIGH), loss="soft_l1", f_scale=0.1).x)


def errors(fitted: Coefficients) -> pd.DataFrame:
    """Error of the formula on each model, GPU and precision, over widths that fit: median, p90, bias."""
    rows = []
    for name in MODELS:
        for gpu in GPUS:
            for precision in load_gpu(gpu).flop_per_s:
                found = _errors_of(name, gpu, precision, fitted)
                if found.size:
                    rows.append(
                        {
                            "model": name, "gpu": gpu, "precision": precision,
                            "median": float(np.median(np.abs(found))),
                            "p90": float(np.quantile(np.abs(found), 0.9)), "bias": float(np.median(found)),
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def _errors_of(name: str, gpu: str, precision: Precision, fitted: Coefficients) -> Floats:
    found: list[Floats] = []
    for gpus in WIDTHS[:4]:
        try:
            laid_out = layout(load_model(name), load_gpu(gpu), gpus, precision)
            truth = measured(laid_out) if laid_out.fits else None
        except SimulatorError:
            continue  # no tables, or heads that do not divide
        if truth is not None:
            found.append(predicted(laid_out, fitted) / truth - 1)
    return np.concatenate(found) if found else np.empty(0)


def main() -> None:
    """Fit, print the coefficients and the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="Markdown table to write.")
    out = parser.parse_args().out
    fitted = fit()
    print(fitted)
    table = errors(fitted)
    shown = table.copy()
    for column in ("median", "p90", "bias"):
        shown[column] = [f"{value:+.1%}" if column == "bias" else f"{value:.1%}" for value in table[column]]
    print(shown.to_string(index=False))
    dense = table[~table["model"].str.contains("A3B|A22B|8x|gpt-oss")]
    for title, rows in (
        ("all", table),
        ("dense", dense),
        ("dense bf16", dense[dense["precision"] == "bf16"]),
    ):
        print(f"{title}: median {rows['median'].median():.1%}, worst {rows['median'].max():.1%}")
    if out is not None:
        head = "| model | GPU | precision | median | p90 | bias |\n| --- | --- | --- | --- | --- | --- |\n"
        write_text(out, head + "".join(f"| {' | '.join(row)} |\n" for row in shown.itertuples(index=False)))


if __name__ == "__main__":
    main()
