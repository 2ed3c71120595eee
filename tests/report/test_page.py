"""The report in a real browser: drawn without errors, numbers that follow the SLA, nothing injected."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.planning.notes import answer_line, ranged
from simulator.planning.plan import CapacityPlan, plan
from simulator.planning.scenario import Scenario
from simulator.report.page import write_report
from simulator.report.plan_figures import plan_figures, write_figures
from simulator.report.terminal import print_plan
from simulator.sweeps.leads import Recommendation

EVIL = 'Plan </script><script>document.title="owned"</script><img src=x onerror="document.title=1">'
FIGURES = ("frontier", "throughput", "budget", "attainment", "cost", "day")


@pytest.fixture(scope="module")
def result() -> CapacityPlan:
    return plan(
        Scenario.model_validate(
            {
                "name": EVIL,
                "profile": "deepseek-v4-flash",
                "policies": ["mtp1", "dspark-async"],
                "traffic": {
                    "arrivals": "diurnal:60/s,peak=1.5",
                    "classes": {"<b>chat</b>": {"lengths": "fixed:100/100"}},
                },
                "sla": ["tps_p10>=90"],
                "replica": {"concurrency": 40, "prefill_tokens_per_s": 10_000},
                "price": {"gpu_hour": 2.0, "currency": "<i>$</i>"},
                "search": {"precision": "20%", "requests": 200, "concurrency": [1, 10, 40]},
            }
        )
    )


@pytest.fixture(scope="module")
def page(result: CapacityPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(result, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("no chromium with its driver is installed (apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1200,1000", f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


@pytest.fixture(scope="module")
def shown(browser: Any, page: Path) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(page.as_uri())
    WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.body.dataset.drawn"))
    return browser


def test_figures_are_drawn_without_errors(shown: Any) -> None:
    script = "return document.querySelectorAll('#%s .trace, #%s .scatterlayer .trace path').length"
    for name in FIGURES:
        assert shown.execute_script(script % (name, name)) >= 2, name
    assert shown.get_log("browser") == []


def test_nothing_is_loaded_from_a_network(shown: Any) -> None:
    assert shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_selecting_an_sla_changes_the_numbers(shown: Any, result: CapacityPlan) -> None:
    select = (
        "const s = document.getElementById('sla'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'));"
        "return [document.getElementById('at-sla').innerText,"
        " document.getElementById('frontier').layout.shapes[0].x0]"
    )
    before, _ = shown.execute_script(select, 90)
    after, line = shown.execute_script(select, 120)
    assert before != after
    assert float(line) == 120
    from simulator.sweeps.comparison import parse_speed
    from simulator.sweeps.lines import lines

    head = after.splitlines()[0].split("\t")
    assert head[-1] == "<i>$</i> per M output tokens"
    for policy, each in lines(result.frontier).items():
        throughput = each.at_sla(parse_speed(120)).throughput
        row = next(row for row in after.splitlines() if row.startswith(policy)).split("\t")
        if throughput == throughput:  # not NaN: the policy reaches it
            assert float(row[1].replace(",", "")) == pytest.approx(throughput, rel=1e-3)
            # 60/s on average and 90 at the peak, 100 tokens each of which 99 are decoded; 20% headroom.
            replicas = math.ceil(result.day["rate_per_s"].max() * 1.2 / (throughput / 99))
            gpus = replicas + result.plans["prefill_gpus"].iloc[0]
            assert float(row[4]) == pytest.approx(gpus * 2.0 / (60 * 100 * 3600 / 1e6), rel=5e-3)
        else:
            assert "cannot" in row


def test_text_from_scenarios_stays_text(shown: Any, page: Path) -> None:
    assert shown.title == EVIL
    assert shown.find_element("id", "title").text == EVIL
    assert "<b>chat</b>" in shown.find_element("id", "assumptions").text
    assert shown.execute_script("return document.images.length") == 0
    source = page.read_text(encoding="utf-8")
    assert "</script><script>document" not in source


def test_labels_of_figures_are_text_too(shown: Any) -> None:
    """Plotly reads tags in labels: the currency would be set in italics, and its tags would be lost."""
    title = shown.execute_script("return document.querySelector('#cost .ytitle').textContent")
    assert title == "<i>$</i> per million output tokens"


def test_only_the_pages_own_scripts_run(shown: Any) -> None:
    """A script that found its way in is blocked, and so is every connection."""
    inject = """
      const script = document.createElement('script'); script.textContent = 'window.owned = 1';
      document.body.append(script);
      const image = document.createElement('img'); image.setAttribute('onerror', 'window.owned = 1');
      image.src = 'data:,'; document.body.append(image);
      setTimeout(() => { const seen = window.owned ?? 'blocked'; image.remove(); script.remove();
        arguments[0](seen); }, 300)"""
    assert shown.execute_async_script(inject) == "blocked"
    fetched = "fetch('data:,x').then(() => arguments[0]('loaded'), () => arguments[0]('blocked'))"
    assert shown.execute_async_script(fetched) == "blocked"
    shown.get_log("browser")  # what was blocked is said there


@pytest.mark.parametrize("width", [390, 768, 1200])
def test_the_page_is_no_wider_than_the_screen(shown: Any, width: int) -> None:
    """Tables scroll in their own box; the names of their rows are not broken, and text keeps its width."""
    from selenium.webdriver.support.ui import WebDriverWait

    metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    shown.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        overflow = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        WebDriverWait(shown, 10).until(lambda b: b.execute_script(overflow) <= 0)  # figures follow the window
        beyond = """const most = document.documentElement.clientWidth;
          return [...document.querySelectorAll('body *')].filter(e => !e.closest('.table') &&
            e.getBoundingClientRect().right > most + 0.5).map(e => e.tagName)"""
        assert shown.execute_script(beyond) == []
        for box in shown.find_elements("class name", "table"):
            assert box.value_of_css_property("overflow-x") == "auto"
        narrow = "return Math.min(...[...document.querySelectorAll('dd, td.text')].map(e => e.clientWidth))"
        assert shown.execute_script(narrow) >= 100
        lines = """return Math.max(...[...document.querySelectorAll('td:first-child')].map(e => {
          const text = document.createRange(); text.selectNodeContents(e);
          return text.getClientRects().length; }))"""
        assert shown.execute_script(lines) == 1
        if width == 390:  # the plan has ten columns: they do not fit, and can be reached
            wide = "const b = document.querySelector('.table'); return b.scrollWidth > b.clientWidth"
            assert shown.execute_script(wide)
    finally:
        shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_light_and_dark_are_both_legible(shown: Any) -> None:
    """WCAG's contrast of text against its background: at least 4.5 in either scheme."""
    contrast = """
      const luminance = c => { const v = c.match(/[0-9.]+/g).slice(0, 3).map(x => x / 255)
        .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
        return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
      const paper = luminance(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll('h1, p, td, th, dt, dd, figcaption span')].map(e => {
        const ink = luminance(getComputedStyle(e).color);
        return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05); })"""
    backgrounds = set()
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        assert min(shown.execute_script(contrast)) >= 4.5
        backgrounds.add(shown.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(backgrounds) == 2


def test_the_decision_comes_first_then_warnings_then_tables(result: CapacityPlan, shown: Any) -> None:
    text = shown.find_element("tag name", "body").text
    assert result.warnings
    assert text.index(result.answer) < text.index(result.warnings[0]) < text.index("Plan\n")


def test_steps_beyond_the_table_are_said_once_for_all_policies(result: CapacityPlan) -> None:
    outside = result.plans[result.plans["steps_outside_fraction"] > 0]
    assert len(outside) == 2
    (said,) = [each for each in result.warnings if "beyond the measured cost table" in each]
    for policy, share in outside[["policy", "steps_outside_fraction"]].itertuples(index=False):
        assert f"{policy} {share:.1%}" in said


def test_page_and_terminal_say_the_same_answer(
    shown: Any, result: CapacityPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    """One recommendation, with the intervals of replicas and money, and prefill GPUs; tags are text."""
    row = result.plans.set_index("policy").loc[result.recommended]
    for part in (f"{row['prefill_gpus']:.0f} prefill GPUs", " <i>$</i> per million output tokens"):
        assert part in result.answer
    assert shown.find_element("id", "answer").text == result.answer + "."
    print_plan(result)
    said = capsys.readouterr().out
    assert f"recommended: {result.answer}" in said
    table = shown.find_element("id", "fared").text
    for each in result.terms.to_dict("records"):
        assert each["shown"] in said
        assert each["shown"] in table
    assert "will be run" in said
    assert "its limit" in said
    assert f"p10 {row['tps_p10_at_peak']:.4g}" in said


def test_values_come_with_their_intervals() -> None:
    row = {"replicas": 9, "replicas_low": 9, "replicas_high": 10, "gpus": 5, "gpus_low": 5, "gpus_high": 5}
    assert ranged(row, "replicas") == "9 (9 to 10)"
    assert ranged(row, "gpus") == "5"
    assert ranged({"cost": 0.0456}, "cost") == "0.0456"
    assert ranged({"cost": math.nan}, "cost") == "-"
    tie = answer_line(
        Recommendation("a", ("b", "c")),
        row | {"decode_gpus": 9, "prefill_gpus": math.nan}, "EUR",
    )  # fmt: skip
    assert tie == (
        "a (a tie with b and c); the lead is within what chance explains: 9 (9 to 10) replicas on 9 decode "
        "GPUs; prefill GPUs are not known, so no cost is stated"
    )


def test_a_tie_of_the_day_is_in_the_legend(result: CapacityPlan, page: Path) -> None:
    assert set(result.day["run"]) <= {
        Recommendation(policy, (tied,) if tied else ()).label
        for policy, tied in result.switches[["policy", "tied"]].itertuples(index=False)
    }
    assert "r.run" in page.read_text(encoding="utf-8")


def test_the_page_carries_the_plan_as_json(page: Path, result: CapacityPlan) -> None:
    source = page.read_text(encoding="utf-8")
    data = json.loads(source.split('id="data">')[1].split("</script>")[0])
    assert data["recommended"] == result.recommended
    assert len(data["plans"]) == 2
    assert page.stat().st_size < 4_000_000


def test_figures_as_png(result: CapacityPlan, tmp_path: Path) -> None:
    write_figures(result, tmp_path)
    for name in ("frontier", "budget", "attainment", "cost"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_figures_say_of_which_plan_and_sla_they_are_in_which_units(result: CapacityPlan) -> None:
    from simulator.report.style import policy_colour

    figures = plan_figures(result)
    for name, figure in figures.items():
        (axes,) = figure.axes
        title = figure.get_suptitle()
        assert EVIL in title, name
        assert "SLA: tps_p10>=90" in title, name
        colours = {line.get_label(): line.get_color() for line in axes.lines}
        for policy in result.plans["policy"]:
            assert colours[policy] == policy_colour(policy, result.plans), name
    for name in ("frontier", "cost"):  # the speed's bound lies on their axis
        (mark,) = [line for line in figures[name].axes[0].lines if str(line.get_label()).startswith("SLA")]
        assert set(mark.get_xdata()) == {90}
    assert figures["frontier"].axes[0].get_xlabel() == "tokens/s per user, p10"
    assert figures["frontier"].axes[0].get_ylabel() == "throughput, tokens/s per replica"
    assert figures["cost"].axes[0].get_xlabel() == "bound of tps_p10, tokens/s"


def test_gpu_hours_have_a_period_and_costs_their_unit(shown: Any, result: CapacityPlan) -> None:
    heads = [cell.text for cell in shown.find_elements("css selector", "#plans th")]
    assert "GPU hours per day" in heads  # the traffic is a day's
    assert heads[8:9] == ["<i>$</i> per M output tokens, fleet following demand"]
    row = result.plans.set_index("policy").loc[result.recommended]
    assert row["gpu_hours"] == pytest.approx(24 * row["gpus"])
