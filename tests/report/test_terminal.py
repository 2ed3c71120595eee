"""Tables on the terminal: equal decimals in a column, ties said as ties."""

from __future__ import annotations

import pandas as pd
import pytest

from simulator.report.terminal import print_hardware, print_regret, print_thresholds


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
    assert [" ".join(each[8:]) for each in rows] == ["kernels", "kernels ±12%", "kernels"]
    assert said[-1] == "h20: does not fit"


def test_no_policy_of_hardware_is_cut_off_in_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = {"gpu": "h100", "replica_gpus": 4, "policy": "autoregressive", "recommended": True, "gpus": 156,
           "replicas": 15, "cost_per_million_output_tokens": 128.2, "rate_per_replica_per_s": 0.161,
           "curve": "kernels", "step_time_band": 0.08}  # fmt: skip
    print_hardware(pd.DataFrame([row]), {})
    *_, said = capsys.readouterr().out.splitlines()
    assert said.split() == ["4", "x", "h100", "autoregressive", "156", "15", "128", "0.161", "kernels", "±8%"]


def test_what_a_wrong_table_loses_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    row = {"belief": "scaled:1.25", "concurrency": 200, "throughput_tok_per_s": 14070.4,
           "true_throughput_tok_per_s": 15750.0, "regret_ci95": 0.007043, "significant": True}  # fmt: skip
    print_regret(pd.DataFrame([{**row, "regret": regret} for regret in (0.10664, -0.0003)]))
    *_, lost, gained = capsys.readouterr().out.splitlines()
    assert lost.split() == ["scaled:1.25", "200", "14,070", "15,750", "+10.66%", "0.70%", "yes"]
    assert gained.split()[4] == "-0.03%"


def test_a_threshold_says_what_it_lets_through(capsys: pytest.CaptureFixture[str]) -> None:
    lengths = {"verified_length_mean": [8.0, 3.338], "accepted_length_mean": [3.4966, 2.316]}
    print_thresholds(pd.DataFrame({"threshold": [0.0, 0.7], **lengths, "acceptance_rate": [0.43707, 0.7978]}))
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == ["0", "8.00", "3.50", "43.7%"]
    assert second.split() == ["0.7", "3.34", "2.32", "79.8%"]
