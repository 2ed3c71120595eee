"""Derive the curves of measured kernels that ship under ``profiles/kernels``.

    python -m tools.derive_kernel_profiles [--out profiles/kernels] [MODEL ...]

For each model of the catalogue and GPU: the smallest layout, in the model's own precision and, where the GPU
has matrix units for it, in fp8. A pair without tables that pass the gates is left out and named. The same
versions give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from simulator.core.errors import SimulatorError
from simulator.hardware.choose import Hardware, kernel_name
from simulator.hardware.curves import kernel_profile
from simulator.hardware.gpus import load_gpu
from simulator.hardware.models import catalogue, load_model

GPUS = ("a100", "h100", "h200", "b200")


def pairs(models: list[str]) -> Iterator[Hardware]:
    """Yield what is derived."""
    for model in models:
        native = load_model(model).native
        for gpu in GPUS:
            rates = load_gpu(gpu).flop_per_s
            for precision in dict.fromkeys([native, "fp8" if native == "bf16" else native]):
                if precision in rates or precision == "fp4":
                    yield Hardware(model=model, gpu=gpu, precision=precision)


def main() -> None:
    """Write a profile of each pair that has one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("profiles/kernels"))
    parser.add_argument("models", nargs="*", default=list(catalogue()))
    asked = parser.parse_args()
    for pair in pairs(asked.models):
        where = f"{pair.model} {pair.precision} on {pair.gpu}"
        try:
            layout = pair.layout()
            profile = kernel_profile(layout, pair.parsed_drafters())
        except SimulatorError as error:
            print(f"left out: {where}: {error}", flush=True)
            continue
        if ", used" not in str(profile.provenance.notes):  # as ``kernels.Gate.line`` says it
            print(f"left out: {where}: every engine's table stands apart", flush=True)
            continue
        path = asked.out.parent / f"{kernel_name(layout)}.json"
        profile.save(path)
        print(f"{where}: tp {layout.gpus}, {path}", flush=True)


if __name__ == "__main__":
    main()
