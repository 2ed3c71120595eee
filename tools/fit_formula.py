"""Fit the formula of step times on one model and GPU, and show its error on others.

    python -m tools.fit_formula [--out docs-table.md] [--models NAME ...]
    python -m tools.fit_formula --shipped [--out docs-table.md]      # needs no tables, seconds

Truth is the median of the engines whose kernel tables pass the gates
(``simulator.hardware.steps.kernels``): passes of 1 to 2,048 rows over 1 to 256 requests of 1k to 16k tokens.
Seven coefficients are fitted to Qwen3-8B on H200. A dense model says nothing of experts: the eighth, how fast
their products are, is fitted to Qwen3-30B-A3B on H200 with the seven held. Everything else that is reported
is predicted. ``--shipped`` holds the coefficients in the product against every curve under profiles/kernels
instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from simulator.core.arrays import Floats
from simulator.core.errors import SimulatorError
from simulator.core.files import write_text
from simulator.deployment.profile import load_profile, shipped_profiles
from simulator.hardware.gpus import Gpu, load_gpu
from simulator.hardware.memory import WIDTHS, Layout, layout
from simulator.hardware.models import ModelShape, Precision, load_model
from simulator.hardware.steps.formula import FITTED, Coefficients, FormulaTimes
from simulator.hardware.steps.kernels import KernelTables

ROWS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048)

REQUESTS = (1, 4, 16, 64, 256)

CONTEXTS = (1024, 4096, 16384)

FITTED_ON = ("Qwen/Qwen3-8B", "h200")

EXPERTS_FITTED_ON = ("Qwen/Qwen3-30B-A3B", "h200")

MODELS = (
    "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-70B",
    "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-235B-A22B", "mistralai/Mixtral-8x7B-v0.1", "openai/gpt-oss-120b",
)  # fmt: skip

GPUS = ("a100", "h100", "h200", "b200")

Bounds = tuple[Sequence[float], Sequence[float]]

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


def predicted(laid_out: Layout, fitted: Coefficients, cache_bytes: float = 2.0) -> Floats:
    """Seconds of every pass by the formula, [passes]. cache_bytes: of an element of keys and values."""
    times = FormulaTimes(laid_out, fitted, cache_bytes)
    return np.array([times.operations_s(size) + times.attention_s(count, at) for size, count, at in passes()])


def coefficients(point: Floats) -> Coefficients:
    """Return a point of the search, times in microseconds, as coefficients."""
    bandwidth, matrices, matrices_fp8, cache, links, layer_us, attention_us = map(float, point)
    return Coefficients(
        bandwidth, matrices, matrices_fp8, cache, links, 1e-6 * layer_us, 1e-6 * attention_us, grouped=1.0
    )


def fit() -> Coefficients:
    """Least squares of the relative error: seven coefficients on a dense model, then the one of experts."""
    dense, sparse = known(*FITTED_ON), known(*EXPERTS_FITTED_ON)

    def residual(fitted: Coefficients, passes: list[tuple[Layout, Floats]]) -> Floats:
        return np.concatenate([np.log(predicted(each, fitted) / truth) for each, truth in passes])

    def least(of: Callable[[Floats], Floats], start: Sequence[float], bounds: Bounds) -> Floats:
        found = least_squares(of, start, bounds=bounds, loss="soft_l1", f_scale=0.1)
        return np.asarray(found.x, dtype=np.float64)

    found = coefficients(least(lambda at: residual(coefficients(at), dense), START, (LOW, HIGH)))
    last = least(lambda at: residual(replace(found, grouped=float(at[0])), sparse), (0.4,), ((0.05,), (1.2,)))
    return replace(found, grouped=float(last[0]))


def known(name: str, gpu_name: str) -> list[tuple[Layout, Floats]]:
    """Layouts of a model on a GPU, and the seconds of their passes."""
    model, gpu = load_model(name), load_gpu(gpu_name)
    found: list[tuple[Layout, Floats]] = []
    for gpus in WIDTHS[:4]:
        for precision in ("bf16", "fp8"):
            laid_out = layout(model, gpu, gpus, precision)
            truth = None
            with suppress(SimulatorError):  # no tables
                truth = measured(laid_out)
            if truth is not None:
                found.append((laid_out, truth))
    return found


def errors(fitted: Coefficients, models: Sequence[str] = MODELS) -> pd.DataFrame:
    """Error of the formula on each model, GPU and precision, over widths that fit: median, p90, bias."""
    rows = []
    for name in models:
        for gpu in GPUS:
            for precision in precisions(load_model(name), load_gpu(gpu)):
                found = _errors_of(name, gpu, precision, fitted)
                if found.size:
                    rows.append(_row(load_model(name), gpu, precision, found))
    return pd.DataFrame(rows)


def _row(model: ModelShape, gpu: str, precision: Precision, found: Floats) -> dict[str, object]:
    size = np.abs(found)
    return {
        "model": model.name, "gpu": gpu, "precision": precision, "median": float(np.median(size)),
        "p90": float(np.quantile(size, 0.9)), "bias": float(np.median(found)),
        "experts": model.experts is not None,
    }  # fmt: skip


def precisions(model: ModelShape, gpu: Gpu) -> list[Precision]:
    """Precisions that the GPU multiplies in, and the model's own."""
    return list(dict.fromkeys([*gpu.flop_per_s, model.native]))


def errors_of_shipped(fitted: Coefficients) -> pd.DataFrame:
    """Error on every curve under ``profiles/kernels``, by model, GPU and precision; needs no tables."""
    rows = []
    for name in shipped_profiles():
        if not name.startswith("kernels/"):
            continue
        gpu, precision = name.split("/")[1], cast(Precision, name.rsplit("-", 1)[1])
        profile = load_profile(name)
        laid_out = layout(
            load_model(str(profile.provenance.model)), load_gpu(gpu), profile.replica_gpus or 1, precision
        )
        cost = profile.target_cost()
        truth = np.array([cost.step_time_s(count, size, count * at) for size, count, at in passes()])
        # An engine whose cache is in 8 bits keeps twice the tokens.
        small = (profile.kv_tokens or 0) > 1.5 * laid_out.kv_tokens
        found = predicted(laid_out, fitted, 1.0 if small else 2.0) / truth - 1
        rows.append(_row(laid_out.model, gpu, precision, found))
    return pd.DataFrame(rows)


def _summary(found: Floats) -> dict[str, float]:
    size = np.abs(found)
    return {
        "median": float(np.median(size)), "p90": float(np.quantile(size, 0.9)),
        "bias": float(np.median(found)),
    }  # fmt: skip


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
    parser.add_argument("--models", nargs="*", default=MODELS, help="Show the error on these alone.")
    parser.add_argument("--shipped", action="store_true", help="Hold it against the curves that ship.")
    asked = parser.parse_args()
    if asked.shipped:
        table = errors_of_shipped(FITTED)
    else:
        fitted = fit()
        print(fitted)
        table = errors(fitted, asked.models)
    for title, rows in (("dense", table[~table["experts"]]), ("experts", table[table["experts"]])):
        if len(rows):
            middle, worst = rows["median"].median(), rows["median"].max()
            print(f"{title}: {len(rows)} rows, median {middle:.1%}, worst {worst:.1%}")
    shown = table.drop(columns="experts")
    for column in ("median", "p90", "bias"):
        shown[column] = [f"{value:+.1%}" if column == "bias" else f"{value:.1%}" for value in table[column]]
    print(shown.to_string(index=False))
    if asked.out is not None:
        head = "| model | GPU | precision | median | p90 | bias |\n| --- | --- | --- | --- | --- | --- |\n"
        body = "".join(f"| {' | '.join(map(str, row))} |\n" for row in shown.itertuples(index=False))
        write_text(asked.out, head + body)


if __name__ == "__main__":
    main()
