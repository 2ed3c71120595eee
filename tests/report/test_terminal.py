"""Tables on the terminal: equal decimals in a column, ties said as ties."""

from __future__ import annotations

import pandas as pd
import pytest

from simulator.report.terminal import print_hardware


def test_costs_of_hardware_have_the_same_decimals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    row = {"policy": "mtp1", "recommended": False, "curve": "kernels"}
    costs, rates = (0.1, 0.0803, float("nan")), (44.5, 5.23, 0.9)
    table = pd.DataFrame(
        [
            {"gpu": f"gpu{place}", "replica_gpus": 2, **row, "replicas": 5 * place, "gpus": 10 * place,
             "cost_per_million_output_tokens": cost, "rate_per_replica_per_s": rate, "step_time_band": band}
            for place, (cost, rate, band) in enumerate(zip(costs, rates, (None, 0.12, None), strict=True))
        ]
    )  # fmt: skip
    print_hardware(table, {"h20": "does not fit"})
    said = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in said if line.startswith("2 x gpu")]
    assert [each[4:8] for each in rows] == [
        ["0", "0", "0.100", "44.50"], ["10", "5", "0.080", "5.23"], ["20", "10", "–", "0.90"],
    ]  # fmt: skip
    assert [" ".join(each[8:]) for each in rows] == ["kernels", "kernels ± 12%", "kernels"]
    assert said[-1] == "h20: does not fit"
