"""Published end-to-end runs: read as the tool writes them, misses first, summed up by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from simulator.core.files import write_csv
from simulator.ui.check import measured_runs
from simulator.ui.check.measured_runs import (
    EVERYWHERE,
    figure,
    file_of,
    groups,
    of,
    places,
    runs,
    said,
)
from simulator.ui.exports import one_file
from tests.support.dash_text import parts, words
from tools.validate_silicon import PASSES

QWEN, LLAMA = ("Qwen/Qwen3-32B", "h100", "vllm", "bf16"), ("meta-llama/Llama-3.1-8B", "b200", "trtllm", "fp8")

ROWS = (
    # model..., held out, measured and predicted TPOT, ms
    (*QWEN, True, 10.0, 12.0), (*QWEN, True, 10.0, 9.0), (*QWEN, True, 10.0, 10.0),
    (*LLAMA, True, 20.0, 10.0), (*LLAMA, False, 20.0, 40.0),
)  # fmt: skip


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As ``tools.validate_silicon`` writes its rows, and one more whose kernels fail the gates."""
    names = ["model", "gpu", "engine", "precision", "reported", "tpot_ms", "predicted_tpot_ms"]
    table = pd.DataFrame(ROWS, columns=names).assign(
        gate=PASSES, gpus=1, prompt_tokens=1024, output_tokens=128, concurrency=8, ttft_ms=100.0,
        predicted_ttft_ms=150.0, host="an engine",
    )  # fmt: skip
    failing = table.head(1).assign(gate="0.3 apart", predicted_tpot_ms=1e4)
    path = tmp_path / "validation" / "silicon" / "rows.csv"
    path.parent.mkdir(parents=True)
    rows = pd.concat([table, failing])
    errors = {
        f"{name}_error": rows[f"predicted_{name}_ms"] / rows[f"{name}_ms"] - 1 for name in ("tpot", "ttft")
    }
    write_csv(path, rows.assign(**errors))
    monkeypatch.setattr(measured_runs, "data_directory", lambda kind: tmp_path)
    runs.cache_clear()
    yield
    runs.cache_clear()


@pytest.mark.usefixtures("shipped")
def test_misses_come_first_and_failing_kernels_are_left_out() -> None:
    assert runs()["miss"].tolist() == pytest.approx([1.0, 0.5, 0.2, 0.1, 0.0])
    assert places() == [EVERYWHERE, "Qwen/Qwen3-32B on h100", "meta-llama/Llama-3.1-8B on b200"]
    assert of("Qwen/Qwen3-32B on h100")["miss"].tolist() == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.usefixtures("shipped")
def test_groups_sum_up_what_nothing_was_fitted_to() -> None:
    """Of Llama one run is held out, half as long as measured; of Qwen errors are +20%, -10% and 0."""
    table = groups(runs())
    assert table["gpu"].tolist() == ["b200", "h100"]
    assert table["rows"].tolist() == [1, 3]
    assert table["tpot_median"].tolist() == pytest.approx([0.5, 0.1])
    assert table["tpot_bias"].tolist() == pytest.approx([-0.5, 0.0])
    assert table["tpot_p90"].tolist() == pytest.approx([0.5, 0.18])  # 0.1 + 0.8 of the way to 0.2
    assert table["ttft_median"].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.usefixtures("shipped")
def test_what_is_said_names_the_miss_of_each_run() -> None:
    told = words(said("Qwen/Qwen3-32B on h100"))
    assert told[0].startswith("3 published runs that nothing was fitted to")
    assert "off by 10.0% in the median and within 18% in nine of ten" in told[0]
    assert [each for each in told if each in ("+20%", "-10%", "+0%")] == ["+20%", "-10%", "+0%"]
    drawn = figure(EVERYWHERE, "dark")["data"]
    assert [(each["name"], len(each["x"])) for each in drawn[:2]] == [("trtllm", 2), ("vllm", 3)]


@pytest.mark.usefixtures("shipped")
def test_the_file_holds_what_the_page_shows() -> None:
    page = file_of("Qwen/Qwen3-32B on h100")
    assert page.sentences == [words(said("Qwen/Qwen3-32B on h100"))[0]]
    assert [len(table) for table in page.tables.values()] == [1, 3]
    content = one_file(page)
    assert "Time per output token, predicted over measured: Qwen/Qwen3-32B on h100</h1>" in content
    assert "off by 10.0% in the median" in content


@pytest.mark.usefixtures("shipped")
def test_every_derived_column_says_what_it_means() -> None:
    heads = [each for each in parts(said(EVERYWHERE)) if getattr(each, "scope", "") == "col"]
    derived = [each for each in heads if each.children in ("off by", "TPOT off by", "bias", "half", "runs")]
    assert len(derived) == 7
    assert all(each.title for each in derived)


def test_without_the_file_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_runs, "data_directory", lambda kind: tmp_path)
    runs.cache_clear()
    assert runs().empty
    assert places() == [EVERYWHERE]
    runs.cache_clear()
