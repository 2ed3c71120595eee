"""The report in a real browser: drawn without errors, numbers that follow the SLA, nothing injected."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.keys import Keys

from simulator.planning.plan import CapacityPlan
from simulator.report.columns import definition
from simulator.report.drawing.colours import policy_colour
from simulator.report.page import write_report
from simulator.report.plan.decision import decision
from simulator.report.plan.figures import plan_figures, write_figures
from simulator.report.plan.tables import plan_tables
from simulator.report.terminal import print_plan
from simulator.sla.terms import parse_sla
from simulator.sweeps.comparison import parse_speed
from simulator.sweeps.leads import Recommendation
from simulator.sweeps.lines import lines
from tests.report.conftest import EVIL
from tests.support.browsers import chromium
from tests.support.pages import wait

FIGURES = ("frontier", "throughput", "budget", "attainment", "cost", "day")


@pytest.fixture(scope="module")
def page(result: CapacityPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(result, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = chromium(tmp_path_factory.mktemp("chromium"))
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_of_the_page_draws_a_policy_in_its_colour(
    shown: Any, result: CapacityPlan, scheme: str
) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    shown.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    read = """return arguments[0].map(name => document.getElementById(name).data
      .map(trace => [trace.name, (trace.mode.includes('lines') ? trace.line : trace.marker).color]))"""
    try:
        first = policy_colour(result.plans["policy"][0])._asdict()[scheme]
        wait(shown, lambda b: b.execute_script(read, ["cost"])[0][0][1] == first)
        for figure, traces in zip(FIGURES, shown.execute_script(read, list(FIGURES)), strict=True):
            drawn = dict(traces)
            for policy in set(result.plans["policy"]) & set(drawn):
                assert drawn[policy] == getattr(policy_colour(policy), scheme), figure
            assert len(set(result.plans["policy"]) & set(drawn)) >= (1 if figure == "day" else 2)
    finally:
        shown.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_figure_has_a_text_alternative(shown: Any) -> None:
    for figure in shown.find_elements("css selector", "figure"):
        name = figure.find_element("css selector", "[role=img]").get_attribute("aria-label")
        assert len(name) > 5
        assert name.startswith(figure.find_element("css selector", "figcaption").text[:5])


def test_nothing_is_loaded_from_a_network(shown: Any) -> None:
    assert shown.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_the_frontier_has_the_axis_of_the_speed_that_is_promised(shown: Any, result: CapacityPlan) -> None:
    """A bound on p10 lies on the axis of p10, and is read there: not on that of the mean."""
    read = """const plot = document.getElementById('frontier');
      return [document.getElementById('statistic').value, plot.layout.shapes[0].x0,
        plot.layout.xaxis.title.text, document.getElementById('at-sla').innerText, plot.data[0].x]"""
    statistic, bound, axis, answers, drawn = shown.execute_script(read)
    assert (statistic, bound, axis) == ("p10", 90, "speed per user (p10), tokens/s")
    first = result.frontier[result.frontier["policy"] == result.plans["policy"][0]]
    assert drawn == pytest.approx(first.sort_values("concurrency")["tps_p10"].tolist())
    for policy, each in lines(result.frontier).items():
        throughput = each.at_sla(parse_speed("p10>=90")).throughput
        row = next(row for row in answers.splitlines() if row.startswith(policy)).split("\t")
        if math.isnan(throughput):
            assert row[1] == "cannot"
        else:
            assert float(row[1].replace(",", "")) == pytest.approx(throughput, rel=2e-3)


def test_selecting_an_sla_changes_the_numbers(shown: Any, result: CapacityPlan) -> None:
    select = (
        "const s = document.getElementById('sla'), which = document.getElementById('statistic');"
        "if (which.value != 'mean') { which.value = 'mean'; which.dispatchEvent(new Event('change')); }"
        "s.value = arguments[0];"
        "s.dispatchEvent(new Event('input'));"
        "return [document.getElementById('at-sla').innerText,"
        " document.getElementById('frontier').layout.shapes[0].x0]"
    )
    before, _ = shown.execute_script(select, 90)
    after, line = shown.execute_script(select, 120)
    assert before != after
    assert float(line) == 120
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
    places = [text.index(line) for lines in decision(result).values() for line in lines]
    assert places == sorted(places)
    assert places[-1] < text.index(result.warnings[0]) < text.index("Plan\n")


def test_steps_beyond_the_table_are_said_once_for_all_policies(result: CapacityPlan) -> None:
    outside = result.plans[result.plans["steps_outside_fraction"] > 0]
    assert len(outside) == 2
    (said,) = [each for each in result.warnings if "beyond the measured cost table" in each]
    for policy, share in outside[["policy", "steps_outside_fraction"]].itertuples(index=False):
        assert f"{policy} {share:.1%}" in said


def test_page_and_terminal_say_the_same_decision(
    shown: Any, result: CapacityPlan, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What to run, on what, for how much, how sure, on which grounds, what if; then tables. Tags are text."""
    monkeypatch.setenv("COLUMNS", "400")
    print_plan(result)
    printed, warned = capsys.readouterr()
    said = decision(result)
    assert list(said) == ["Run", "On", "Costs", "How sure", "Rests on", "Would change it"]
    page = shown.find_element("id", "decision").text
    lines = [line for each in said.values() for line in each]
    places = [printed.index(line) for line in lines]
    assert places == sorted(places)
    assert all(line in page for line in lines)
    assert places[-1] < printed.index("Fleet at the peak")
    assert all(f"warning: {each}" in warned for each in result.warnings)
    mine = result.terms[result.terms["policy"] == result.recommended]
    assert all(each in printed for each in mine["shown"])


def test_every_column_is_defined_on_hover_and_on_focus(shown: Any, result: CapacityPlan) -> None:
    """The definition is that of the documentation; a keyboard reaches it, Escape hides it."""
    for name, table in plan_tables(result).items():
        names = shown.find_elements("css selector", f"#{name} th .defined")
        assert [each.text for each in names] == [head.text for head in table.heads]
        for head in table.heads:
            assert head.definition == definition(head.column) or head.column.startswith(("term ", "gpus "))
    box = shown.find_element("id", "definition")
    assert not box.is_displayed()
    shown.execute_script("document.querySelector('#plans th:nth-child(3) .defined').focus()")
    assert box.is_displayed()
    assert box.text == definition("replicas")
    shown.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not box.is_displayed()


def test_a_column_of_the_page_has_the_same_decimals_throughout(shown: Any) -> None:
    """Also in the table that the page works out by itself."""
    for name in ("plans", "sensitivity", "at-sla"):
        cells = shown.execute_script(
            "return [...document.querySelectorAll(arguments[0])].map(row => "
            "[...row.cells].map(cell => cell.textContent))",
            f"#{name} tr:not(:first-child)",
        )
        assert cells
        for column in zip(*cells, strict=True):
            numbers = [re.match(r"[\d,]+(?:\.(\d+))?(?= |$)", text) for text in column]
            if all(text == "–" or found for text, found in zip(column, numbers, strict=True)):
                assert len({len(found[1] or "") for found in numbers if found}) <= 1, column


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
    figures = plan_figures(result)
    for name, figure in figures.items():
        title = figure.get_suptitle()
        assert EVIL in title, name
        assert "SLA: tps_p10>=90" in title, name
        if name == "attainment":  # a lane for each policy
            assert [axes.get_title("left") for axes in figure.axes] == list(result.plans["policy"])
            drawn = [{line.get_color() for line in axes.lines} for axes in figure.axes]
            assert drawn == [{policy_colour(policy).light} for policy in result.plans["policy"]]
            continue
        (axes,) = figure.axes
        colours = {line.get_label(): line.get_color() for line in axes.lines}
        for policy in result.plans["policy"]:
            assert colours[policy] == policy_colour(policy).light, name
    for name in ("frontier", "cost"):  # the speed's bound lies on their axis
        (mark,) = [line for line in figures[name].axes[0].lines if str(line.get_label()).startswith("SLA")]
        assert set(mark.get_xdata()) == {90}
    assert figures["frontier"].axes[0].get_xlabel() == "tokens/s per user, p10"
    assert figures["frontier"].axes[0].get_ylabel() == "throughput, tokens/s per replica"
    assert figures["cost"].axes[0].get_xlabel() == "bound of tps_p10, tokens/s"


def test_each_speed_of_the_sla_has_a_panel_with_its_bound(result: CapacityPlan) -> None:
    both = replace(result, sla=parse_sla(["tps_mean>=80", "ttft_p99<=2s", "tps_p10>=60"]))
    panels = plan_figures(both)["frontier"].axes
    assert [axes.get_xlabel().split(", ")[1] for axes in panels] == ["mean", "p10"]
    marks = [
        line.get_xdata()[0]
        for axes in panels
        for line in axes.lines
        if str(line.get_label()).startswith("SLA")
    ]
    assert marks == [80, 60]
    for axes, statistic in zip(panels, ("mean", "p10"), strict=True):
        drawn = next(line for line in axes.lines if line.get_label() == result.plans["policy"][0])
        mine = result.frontier[result.frontier["policy"] == result.plans["policy"][0]]
        assert sorted(drawn.get_xdata()) == sorted(mine[f"tps_{statistic}"])


def test_lines_that_lie_on_each_other_are_told_apart(result: CapacityPlan) -> None:
    kinds = {
        (line.get_linestyle(), line.get_marker(), line.get_color())
        for line in plan_figures(result)["budget"].axes[0].lines
    }
    assert len(kinds) == len(result.plans)
    assert len({kind[0] for kind in kinds}) == len({kind[1] for kind in kinds}) == len(result.plans)


def test_gpu_hours_have_a_period_and_costs_their_unit(shown: Any, result: CapacityPlan) -> None:
    heads = [cell.text for cell in shown.find_elements("css selector", "#plans th")]
    assert "GPU hours per day" in heads  # the traffic is a day's
    assert heads[7:9] == ["<i>$</i> per M output tokens", "<i>$</i> per M, following demand"]
    row = result.plans.set_index("policy").loc[result.recommended]
    assert row["gpu_hours"] == pytest.approx(24 * row["gpus"])
