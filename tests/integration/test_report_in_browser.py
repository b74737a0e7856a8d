"""report.html in a real browser: no console output, filters, paging, narrow screens, and inert foreign text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts
from orchestrator.evaluation.spec import PromptProtocol
from tests.support.harness.browser import Page, browser, find_chromium
from tests.support.harness.evaluation_data import answered, sample
from tests.support.harness.report_records import HOSTILE, SPEC, hostile_records, many_records

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH; install Debian's package chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(autouse=True)
def _no_earlier_problems(page: Page) -> None:
    page.problems.clear()
    page.requests.clear()


def written(folder: Path, *, hostile: bool = False, size: int = 60) -> Path:
    """Write a report of `size` questions and return its path."""
    records = hostile_records(folder) if hostile else many_records(folder, size)
    file = folder / "report.html"
    file.write_text(
        render_html(summarize(records, JobFacts(SPEC)), records, ThumbnailBudget((folder,))), encoding="utf-8"
    )
    return file


def shown(page: Page) -> list[str]:
    """Return the headings of the samples that are shown."""
    headings: list[str] = page.value("[...document.querySelectorAll('.card h3')].map((node) => node.textContent)")
    return headings


def choose(page: Page, control: str, value: str) -> None:
    """Set a filter like a user."""
    page.value(
        f"(() => {{ const node = document.getElementById('{control}'); node.value = '{value}';"
        " node.dispatchEvent(new Event('input')); })()"
    )


def test_page_opens_without_network_or_console_output(page: Page, tmp_path: Path) -> None:
    file = written(tmp_path)
    page.open(file)
    assert page.problems == []
    assert {url for url in page.requests if not url.startswith("data:")} == {file.as_uri()}
    assert page.value("document.querySelectorAll('svg.chart').length") >= 5
    assert page.value("[...document.images].length > 0 && [...document.images].every((one) => one.naturalWidth > 0)")


def test_filters_narrow_list_and_pages_turn(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path))
    assert page.value("document.getElementById('count').textContent") == "120 of 120 samples, page 1 of 6"
    first = shown(page)
    page.value("document.getElementById('next').click()")
    assert not set(first) & set(shown(page))
    choose(page, "strategy", "mixture")
    assert page.value("document.getElementById('count').textContent").startswith("60 of 120 samples, page 1")
    assert all(heading.startswith("mixture") for heading in shown(page))
    choose(page, "outcome", "wrong")
    assert page.value("document.getElementById('count').textContent").startswith("20 of 120")
    assert page.value("document.querySelectorAll('.card').length === document.querySelectorAll('.card.wrong').length")
    choose(page, "words", "question 57")
    assert len(shown(page)) == 1
    choose(page, "words", "nowhere")
    assert shown(page) == []
    assert page.problems == []


def test_failed_samples_are_neither_correct_nor_wrong(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path, hostile=True))
    choose(page, "outcome", "wrong")
    assert shown(page) == []
    choose(page, "outcome", "failed")
    (heading,) = shown(page)
    assert heading.endswith("failed · step 1/1")
    assert page.value("document.querySelectorAll('.card.failed').length") == 1
    assert page.value("document.querySelector('.mark').textContent") == "! failed: unscored"
    edges = "[...document.querySelectorAll('.card')].map((node) => getComputedStyle(node).borderLeftColor)"
    failed = page.value(edges)
    choose(page, "outcome", "")
    assert len(shown(page)) == 2
    assert len(set(page.value(edges))) == 2
    assert set(failed) < set(page.value(edges))
    assert page.problems == []


def test_sequence_is_titled_whole_episode(page: Page, tmp_path: Path) -> None:
    asked = sample("Scroll up\nScroll down", step_count=2, protocol=PromptProtocol.SEQUENCE)
    records = [answered(asked, "Scroll up\nScroll down")]
    file = tmp_path / "report.html"
    file.write_text(render_html(summarize(records, JobFacts(SPEC)), records), encoding="utf-8")
    page.open(file)
    assert [heading.rpartition(" · ")[2] for heading in shown(page)] == ["whole episode"]


def test_whole_answer_shows_scores_and_is_not_filtered_as_wrong(page: Page, tmp_path: Path) -> None:
    whole = answered(sample("Paris", protocol=PromptProtocol.SEQUENCE), "It is Paris")
    records = [whole, answered(sample("Wait for response", episode="e2"), "Scroll up")]
    summary = summarize(records, JobFacts(SPEC))
    file = tmp_path / "report.html"
    file.write_text(render_html(summary, records, grades={records[0].sample.key: 1.0}), encoding="utf-8")
    page.open(file)
    mark = page.value("document.querySelector('.card.whole .mark').textContent")
    assert mark.startswith("exact match 0 · ROUGE-L 0.5 · BLEU ")
    assert mark.endswith(" · judge's grade 1")
    assert page.value("document.querySelectorAll('.card.whole .right, .card.whole .wrong').length") == 0
    choose(page, "outcome", "wrong")
    (heading,) = shown(page)
    assert "e2" in heading
    assert page.problems == []


@pytest.mark.parametrize("width", [320, 375])
def test_phone_needs_no_horizontal_scrolling(page: Page, tmp_path: Path, width: int) -> None:
    page.open(written(tmp_path, hostile=True), width=width)
    assert page.value("innerWidth") == width
    assert page.value("document.documentElement.scrollWidth") <= width


def test_wide_table_has_shadow_at_its_edge(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path), width=375)
    scrolls = "[...document.querySelectorAll('section > .scroll')].filter((box) => box.scrollWidth > box.clientWidth)"
    layers = page.value(f"getComputedStyle({scrolls}[0]).backgroundAttachment")
    assert layers == "local, local, scroll, scroll"


def test_foreign_text_stays_text(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path, hostile=True))
    assert page.value("globalThis.broken === undefined")
    assert page.value("document.querySelectorAll('script').length") == 2
    assert page.value("document.querySelectorAll('img[src=x], b').length") == 0
    assert HOSTILE in page.value("document.getElementById('list').textContent")
    assert page.problems == []


def test_policy_forbids_network(page: Page, tmp_path: Path) -> None:
    page.open(written(tmp_path))
    page.value("fetch('http://127.0.0.1:9/').catch(() => { globalThis.refused = true; }); undefined")
    page.value("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/x.png'}))")
    page.value("document.body.append(Object.assign(document.createElement('script'), {text: 'globalThis.ran = 1'}))")
    assert page.value("globalThis.ran === undefined")
    for _ in range(100):
        if page.value("globalThis.refused") and violations(page) >= 3:
            break
        time.sleep(0.02)
    assert violations(page) >= 3


def violations(page: Page) -> int:
    """Return how often the page's policy refused something."""
    return sum("Content Security Policy" in problem for problem in page.problems)
