"""Fit the shipped acceptance models to the paper's figures and write traces/fitted.json.

Takes a few minutes and is deterministic. Afterwards, or with --check instead, it prints how the models
compare with everything published: what was fitted and what was not.
"""

from __future__ import annotations

import argparse
import sys

from simulator.core.files import data_directory, write_json
from simulator.paper.acceptance_check import published_comparison
from simulator.paper.figures import published
from simulator.paper.fit import fit_confidence, fit_parameters


def main() -> None:
    """Fit and write the parameters."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--check", action="store_true", help="only compare the shipped models")
    if not options.parse_args().check:
        print("fitting the confidence head to figure 6 ...", file=sys.stderr, flush=True)
        confidence = fit_confidence(published())
        print(confidence, file=sys.stderr, flush=True)
        parameters = fit_parameters(published(), confidence, command="scripts/fit_acceptance", progress=_tell)
        content = parameters.model_dump(mode="json", by_alias=True, exclude_none=True)
        write_json(data_directory("traces") / "fitted.json", content)
    _print_comparison()


def _print_comparison() -> None:
    table = published_comparison()
    worst = table.assign(error=table["error"].abs(), quantity=table["quantity"].str.rstrip(" 0123456789"))
    summary = worst.groupby(["source", "quantity", "fitted"])["error"].agg(["count", "mean", "max"])
    print("Absolute error by figure\n", summary.round(4).to_string(), "\n", sep="")
    print(
        "Not fitted\n", table[~table["fitted"]].drop(columns="fitted").round(4).to_string(index=False), sep=""
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
