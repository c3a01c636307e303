"""The report in a browser: what it draws, and that filters, tooltips, tables and themes do what they say.

Needs playwright and a Chromium of the system; without them these tests are skipped.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import report_rows
from report_rows import HARM, kernels, study
from resa_bench.plots.report.page import write_report
from resa_bench.suites.core.results import append

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[browser]'")

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=f"needs a browser, none of {', '.join(NAMES)} is here")

ROWS = "#rows tbody tr"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two runs, of which the second holds harmful words."""
    folder = tmp_path_factory.mktemp("report")
    return write_report(report_rows.write(folder), folder / "report.html")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as tools:
        program = tools.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield program
        program.close()


class Opened:
    """A page, with what it said on the console and what it asked for."""

    def __init__(self, browser: Any, file: Path, fragment: str = "", **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | context)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.printed: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.printed.append(message.text))
        self.page.on("pageerror", lambda error: self.printed.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.open(file, fragment)

    def open(self, file: Path, fragment: str = "") -> None:
        self.page.goto(file.as_uri() + fragment)
        self.page.locator("#foot").get_by_text("Written").wait_for()


@pytest.fixture(scope="module")
def shared(browser: Any, report: Path) -> Iterator[Opened]:
    """One window for the tests that leave nothing behind a reload."""
    view = Opened(browser, report)
    yield view
    view.context.close()


@pytest.fixture
def opened(shared: Opened, report: Path) -> Iterator[Opened]:
    """The report, opened anew; at the end it must have been silent and have asked for nothing."""
    shared.page.goto("about:blank")
    shared.page.mouse.move(0, 0)
    shared.page.emulate_media(media="screen", color_scheme="light")
    shared.printed.clear()
    shared.asked.clear()
    shared.open(report)
    yield shared
    assert shared.printed == []
    assert shared.asked == [report.as_uri()]


def cells(view: Opened, heading: str, section: str = "rows") -> list[str]:
    """The words of a column of a section's first table."""
    table = view.page.locator(f"#{section} table").first
    titles = table.locator("thead th").all_inner_texts()
    (number,) = [i for i, title in enumerate(titles, start=1) if title.split(" \u2195")[0] == heading]
    return list(table.locator(f"tbody tr > :nth-child({number})").all_inner_texts())


def choose(view: Opened, name: str, value: str) -> None:
    """Tick a value of a filter."""
    filter_ = view.page.locator(f"[data-filter={name}]")
    if filter_.get_attribute("open") is None:
        filter_.locator("summary").click()
    filter_.locator("label").filter(has_text=re.compile(rf"^{re.escape(value)}")).locator("input").click()


@pytest.mark.slow
def test_every_section_is_drawn(opened: Opened) -> None:
    sections = {node.get_attribute("id") for node in opened.page.locator("section.part").all()}
    shown = {"headline", "compare", "speed", "stages", "timeline", "quality", "trade", "rows", "missing"}
    assert sections == shown
    for name in shown:
        assert opened.page.locator(f"#{name} :is(svg.chart, table)").count() > 0, name
    assert opened.page.locator("#timeline svg.chart rect").count() >= 12
    for about in ("NVIDIA H100", "0123456789"):
        assert about in opened.page.locator("#about").inner_text()
    assert opened.page.locator("#headline .big").first.inner_text().startswith("4.00\u00d7")


@pytest.mark.slow
def test_filters_narrow_what_is_shown_and_stand_in_the_address(opened: Opened, browser: Any, report: Path) -> None:
    before = opened.page.locator(ROWS).count()
    choose(opened, "method", "Quest")
    choose(opened, "context", "32K")
    opened.page.locator("[data-filter=context].chosen").wait_for()
    playwright.expect(opened.page.locator(ROWS)).to_have_count(3)
    assert before > 3
    assert {name.split()[0] for name in cells(opened, "Method")} == {"Quest"}
    assert set(cells(opened, "Context")) == {"32K"}
    fragment = opened.page.evaluate("location.hash")
    assert fragment == "#method=Quest&context=32K"
    opened.page.locator("#sections").get_by_text("All rows").click()
    assert opened.page.evaluate("[location.hash, document.activeElement.id]") == [fragment, "rows-title"]
    again = Opened(browser, report, fragment)
    playwright.expect(again.page.locator(ROWS)).to_have_count(3)
    again.context.close()
    opened.page.locator("#clear").click()
    playwright.expect(opened.page.locator(ROWS)).to_have_count(before)


@pytest.mark.slow
def test_each_filter(opened: Opened) -> None:
    """Where all rows shown are of one value, the table has no column of it."""
    counts = []
    for name, value, column in (
        ("batch", "1", "Batch"), ("run", "first", "Run"), ("model", "m-7b", "Case"), ("suite", "micro", "Suite"),
        ("case", "micro-m-b1-32k", "Case"),
    ):  # fmt: skip
        choose(opened, name, value)
        opened.page.locator(f"[data-filter={name}].chosen").wait_for()
        titles = opened.page.locator("#rows thead th").all_inner_texts()
        if name != "model" and any(title.startswith(column) for title in titles):
            assert set(cells(opened, column)) == {value}
        counts.append(opened.page.locator(ROWS).count())
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[1] > counts[3] > counts[4] == 5


def test_a_chart_tells_of_the_point_under_the_pointer_and_by_keys(opened: Opened) -> None:
    chart = opened.page.locator("#speed svg.chart").first
    tip = opened.page.locator("#tip")
    assert tip.is_hidden()
    chart.scroll_into_view_if_needed()
    dot = chart.locator(".dot").last.bounding_box()
    opened.page.mouse.move(dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2)
    playwright.expect(tip).to_be_visible()
    assert re.search(r"\d\.\d\d\u00d7", tip.inner_text())
    opened.page.mouse.move(5, 5)
    playwright.expect(tip).to_be_hidden()
    chart.focus()
    opened.page.keyboard.press("ArrowRight")
    first = tip.inner_text()
    opened.page.keyboard.press("ArrowRight")
    assert tip.inner_text() != first
    assert opened.page.locator("#live").inner_text(), "said to who does not see it"
    opened.page.keyboard.press("Escape")
    playwright.expect(tip).to_be_hidden()


def test_bars_and_lanes_have_tips_too(opened: Opened) -> None:
    for name, mark in (("stages", "rect.segment"), ("timeline", "rect")):
        chart = opened.page.locator(f"#{name} svg.chart").first
        chart.scroll_into_view_if_needed()
        box = chart.locator(mark).first.bounding_box()
        opened.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        playwright.expect(opened.page.locator("#tip")).to_be_visible()
        assert re.search(r"\d (\u00b5s|ms)", opened.page.locator("#tip").inner_text())


def test_tables_sort_by_number_both_ways(opened: Opened) -> None:
    heading = opened.page.locator("#rows thead th", has_text="Context")
    for direction, reverse in (("descending", True), ("ascending", False)):
        heading.get_by_role("button").click()
        assert heading.get_attribute("aria-sort") == direction
        contexts = [int(cell.removesuffix("K")) for cell in cells(opened, "Context")]
        assert contexts == sorted(contexts, reverse=reverse)
        assert len(set(contexts)) == 3


@pytest.mark.slow
def test_the_theme_follows_the_system_until_chosen(browser: Any, report: Path) -> None:
    def ground(view: Opened) -> str:
        return str(view.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    view = Opened(browser, report, color_scheme="dark")
    dark = ground(view)
    view.page.locator("#theme").click()
    light = ground(view)
    assert (dark, light) == ("rgb(20, 23, 26)", "rgb(255, 255, 255)")
    assert view.page.locator("#theme").inner_text() == "Dark theme"
    view.page.locator("#theme").click()
    assert ground(view) == dark
    assert view.printed == []
    view.context.close()


def test_harmful_words_are_shown_and_do_nothing(opened: Opened) -> None:
    page = opened.page
    choose(opened, "case", HARM)
    page.locator("[data-filter=case].chosen").wait_for()
    assert HARM in cells(opened, "Case")
    assert HARM in page.locator("#missing").inner_text()
    page.keyboard.press("Escape")  # closes the list
    page.locator("#clear").click()
    for case in (HARM, "__proto__"):
        page.locator("#quality").get_by_label("Case").select_option(label=f"{case}, forced, second")
        assert page.locator("#quality tbody tr").count() == 1
    assert cells(opened, "constructor", "quality") == ["1"]
    assert page.evaluate("window.harmed === undefined && document.querySelectorAll('img').length === 0")
    assert page.evaluate("document.scripts.length") == 2


@pytest.mark.slow
def test_the_page_cannot_ask_for_anything(browser: Any, report: Path) -> None:
    """Whatever got into it: its own policy refuses a fetch, an image and a script."""
    view = Opened(browser, report)
    refused = view.page.evaluate(
        """async () => {
            const blocked = [];
            document.addEventListener("securitypolicyviolation", (event) => blocked.push(event.effectiveDirective));
            await fetch("https://example.org/").catch(() => null);
            const image = new Image();
            await new Promise((done) => { image.onerror = done; image.src = "https://example.org/a.png"; });
            const script = document.createElement("script");
            script.textContent = "window.harmed = 1";
            document.body.append(script);
            await new Promise((done) => setTimeout(done, 50));
            return [blocked.sort(), window.harmed === undefined];
        }"""
    )
    assert refused == [["connect-src", "img-src", "script-src-elem"], True]
    view.context.close()


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.slow
def test_no_width_scrolls_sideways(browser: Any, report: Path, width: int) -> None:
    view = Opened(browser, report, viewport={"width": width, "height": 740})
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert view.page.evaluate(wide) == 0
    view.page.locator("[data-filter=case] summary").click()
    box = view.page.locator("[data-filter=case] fieldset").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    chart = view.page.locator("#speed svg.chart").first
    chart.focus()
    view.page.keyboard.press("End")
    assert view.page.evaluate(wide) == 0, "with a tooltip at the right edge"
    assert view.printed == []
    view.context.close()


def test_two_runs_side_by_side(opened: Opened) -> None:
    section = opened.page.locator("#compare")
    tiles = dict(tile.inner_text().split("\n") for tile in section.locator(".tiles .card").all())
    assert int(tiles["SLOWER"]) == 6
    assert int(tiles["FASTER"]) == 0
    assert "A whole step got slower" in section.inner_text()
    section.get_by_label("Verdict", exact=True).select_option("slower")
    assert set(cells(opened, "Verdict", "compare")) == {"SLOWER"}
    assert set(cells(opened, "B / A", "compare")) == {"1.200"}


def test_lines_are_switched_and_the_focus_stays(opened: Opened) -> None:
    legend = opened.page.locator("#speed .legend button").first
    points = opened.page.locator("#speed svg.chart").first.locator(".dot")
    before = points.count()
    name = legend.inner_text()
    legend.focus()
    opened.page.keyboard.press("Enter")
    assert points.count() < before
    assert legend.get_attribute("aria-pressed") == "false"
    assert opened.page.evaluate("document.activeElement.textContent") == name
    opened.page.locator("#speed").get_by_label("Shown").first.select_option("time")
    assert "time of a step" in (opened.page.locator("#speed svg.chart").first.get_attribute("aria-label") or "")


def test_who_does_not_see_it_is_told(opened: Opened) -> None:
    page = opened.page
    assert all(node.get_attribute("aria-label") for node in page.locator("svg.chart").all())
    assert page.locator("svg.chart:not([role=img])").count() == 0
    assert page.locator("svg:not(.chart):not([aria-hidden])").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    assert page.locator("table:not(:has(caption))").count() == 0
    unnamed = "[...document.querySelectorAll('input, select')].filter((box) => !box.labels.length).length"
    assert page.evaluate(unnamed) == 0
    levels = [int(str(node.evaluate("node => node.tagName[1]"))) for node in page.locator("h1, h2, h3").all()]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"


def test_paper_has_no_controls(opened: Opened) -> None:
    opened.page.emulate_media(media="print", color_scheme="dark")
    for name in ("#filters", "#theme", "nav", ".controls"):
        assert opened.page.locator(name).first.is_hidden(), name
    assert opened.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert opened.page.locator("#speed svg.chart").first.is_visible()


def test_a_study_of_quality_alone(browser: Any, tmp_path: Path) -> None:
    append(tmp_path / "quality.jsonl", study())
    view = Opened(browser, write_report([tmp_path], tmp_path / "report.html"))
    assert view.page.locator("#headline, #speed, #stages, #rows").count() == 0
    assert cells(view, "KL, nats", "quality")[-2:] == ["0.2", "0.4"]
    assert view.page.locator("#quality svg.chart .dot").count() == 2 * 3
    assert view.printed == []
    view.context.close()


@pytest.mark.slow
def test_one_run_of_kernels_alone(browser: Any, tmp_path: Path) -> None:
    """Sections that would be empty are left out; how two runs are compared is said."""
    append(tmp_path / "micro.jsonl", kernels())
    view = Opened(browser, write_report([tmp_path], tmp_path / "report.html"))
    assert view.page.locator("#timeline, #trade, #quality").count() == 0
    assert "hold no two runs" in view.page.locator("#compare").inner_text()
    assert view.printed == []
    view.context.close()
