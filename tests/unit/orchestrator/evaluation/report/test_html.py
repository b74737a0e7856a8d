"""report.html: escaping, image access, and minimal records."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.charts import Bar, Stack, bar_chart, heatmap, stacked_bar_chart
from orchestrator.evaluation.report.html.markup import element, table
from orchestrator.evaluation.report.html.page import json_in_html, render_html
from orchestrator.evaluation.report.html.resource_use import percentile_95, strategy_usage
from orchestrator.evaluation.report.html.samples import ThumbnailBudget, choose_samples, samples_json
from orchestrator.evaluation.report.markdown_report import render_markdown
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import JobFacts
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol
from tests.support.harness.evaluation_data import answered, failure, sample
from tests.support.harness.images import picture, png
from tests.support.harness.report_records import HOSTILE, SPEC, hostile_records, many_records


def page_of(records: list[Record], budget: ThumbnailBudget | None = None, most: int = 2000) -> str:
    return render_html(summarize(records, JobFacts(SPEC, evaluation_id="ev-1")), records, budget, max_samples=most)


def data_of(page: str) -> Any:
    script = re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.DOTALL)
    assert script is not None
    return json.loads(script[1])


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    page = page_of(hostile_records(tmp_path))
    assert "<img" not in page
    assert page.count("<script") == 2
    assert data_of(page)["samples"][0]["actions"][0][:2] == [HOSTILE, HOSTILE]
    assert json.loads(json_in_html({"x": HOSTILE})) == {"x": HOSTILE}
    assert element("p", HOSTILE, title=HOSTILE).count("<") == 2
    assert "<script" not in table([HOSTILE], [[HOSTILE, HOSTILE]])


def test_page_reports_incomplete_and_changed_data() -> None:
    facts = JobFacts(SPEC, state="cancelled", planned_samples=20)
    page = render_html(replace(summarize([], facts), changed_datasets=("clock",)), [])
    assert "Incomplete (cancelled): 0 of 20 planned samples have a record." in page
    assert "These datasets changed while the job ran; their samples are the planned ones: clock." in page


def test_page_has_every_score_that_text_report_has(tmp_path: Path) -> None:
    page = page_of(many_records(tmp_path, 8))
    for title in ("All datasets, every metric, %", "Was the right adapter retrieved?"):
        assert f"<h2>{title}</h2>" in page
    for column in ("action type", "argument", "episodes right", "episodes, legacy", "@1, %", "mean reciprocal rank"):
        assert f'<th scope="col">{column}</th>' in page
    assert '<td class="short">0.750 ± 0.164</td>' in page


def test_page_has_no_loadable_address(tmp_path: Path) -> None:
    page = page_of(many_records(tmp_path, 8), ThumbnailBudget((tmp_path,)))
    assert "default-src 'none'" in page
    assert not re.search(r"""(?:src|href)=|url\(|@import|https?://""", page)


def test_minimal_records_make_page() -> None:
    old: dict[str, Any] = {"sample": sample("Scroll up").to_json(), "answer": "Scroll up"}
    del old["sample"]["image_sha256"], old["sample"]["adapter_id"]
    page = page_of([Record.from_json(old), failure(sample("Scroll up", episode="e2"))])
    assert "Step accuracy" in page
    assert "Where the time goes" not in page
    assert "Cost of a sample" not in page
    (first, second) = data_of(page)["samples"]
    assert (first["actions"], first["seconds"], first["tokens"]) == ([["Scroll up", "Scroll up", True]], None, None)
    assert second["error"] == "UNAVAILABLE: connection refused"
    assert second["actions"] == [["Scroll up", None, None]]
    assert "0 of 0 samples" in page_of([])


def test_unrecorded_phases_are_listed(tmp_path: Path) -> None:
    page = page_of([answered(sample("Scroll up"), "Scroll up")])
    assert "Not recorded in this job: embed, search, queue, prefill." in page
    assert "Not recorded" not in page_of(many_records(tmp_path, 2))


def test_sequence_is_compared_step_by_step() -> None:
    asked = sample("Scroll up\nScroll down", step_count=2, protocol=PromptProtocol.SEQUENCE)
    data = samples_json([answered(asked, "Scroll up\nScroll left\nWait for response")], ThumbnailBudget(), 0)
    assert data["samples"][0]["whole"]
    assert data["samples"][0]["actions"] == [
        ["Scroll up", "Scroll up", True],
        ["Scroll down", "Scroll left", False],
        [None, "Wait for response", False],
    ]


def test_samples_are_chosen_evenly_with_every_strategy(tmp_path: Path) -> None:
    records = many_records(tmp_path, 400)
    chosen = choose_samples(records, 80)
    assert Counter((record.sample.dataset, record.sample.strategy.label) for record in chosen) == {
        (dataset, strategy): 20 for dataset in ("clock", "office") for strategy in ("selection", "mixture")
    }
    assert choose_samples(records[::-1], 80) == chosen
    assert "80 of 800 samples are on this page" in page_of(records, most=80)


def test_page_lists_repeated_record_once() -> None:
    record = answered(sample("Scroll up"), "Scroll up")
    later = replace(record, answer="Scroll down")
    assert [shown["actions"][0][1] for shown in data_of(page_of([record, later]))["samples"]] == ["Scroll up"]


def test_thumbnails_are_small_below_roots_and_within_budget(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "screen.png").write_bytes(png(picture(900, 1600)))
    (inside / "link.png").symlink_to(outside / "screen.png")
    (inside / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    os.mkfifo(inside / "pipe.png")
    names = ["screen.png", "../out/screen.png", "link.png", "broken.png", "gone.png", "pipe.png", "screen.png"]
    asked = replace(sample("Scroll up"), images=tuple(inside / name for name in names))
    record = answered(asked, "Scroll up")
    data = samples_json([record], ThumbnailBudget((inside,)), 0)
    assert data["samples"][0]["pictures"] == [0, 1, 2, 3, 4, 5, 0]
    first, *others = data["pictures"]
    assert first.startswith("data:image/webp;base64,")
    assert len(first) < 40_000
    assert others == [None] * 5
    assert samples_json([record], ThumbnailBudget((inside,), max_bytes=1000), 0)["pictures"] == [None] * 6
    assert samples_json([record], ThumbnailBudget(), 0)["pictures"] == [None] * 6


def test_strategy_usage_excludes_failed_samples(tmp_path: Path) -> None:
    records = many_records(tmp_path, 4)
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    measured = strategy_usage([*records, failure(sample("Scroll up", strategy=base))])
    assert set(measured) == {"selection", "mixture"}
    of = measured["mixture"]
    assert of.tokens["prompt_tokens"] == [100] * 4
    assert of.generation_s == pytest.approx([0.3] * 4)
    assert of.weight_counts()[3] + of.weight_counts()[2] == 4
    assert of.weight_counts()[7] + of.weight_counts()[6] == 4
    assert percentile_95([]) is None
    assert percentile_95([1.0]) == 1.0


def test_charts_put_values_on_one_scale() -> None:
    drawn = bar_chart({"g": [Bar("half", 0.5, 0.25, 1.0), Bar("unscored", None)]}, low=0, high=1, title="t")
    assert drawn.count("<rect") == 1
    assert 'x="4.0" y="31" width="176.0"' in drawn
    assert 'x1="92.0" x2="356.0"' in drawn
    minus = bar_chart({"": [Bar("minus", -0.5)]}, low=-1, high=1, title="t")
    assert 'x="92.0" y="15" width="88.0"' in minus
    assert re.findall(
        r'width="([\d.]+)"', stacked_bar_chart([Stack("a", 0, [1.0, 1.0]), Stack("b", 1, [4.0])], "t")
    ) == [
        "88.0",
        "88.0",
        "352.0",
    ]
    squares = heatmap({"a": {"a": 3, "b": 1}}, ["a", "b"], "t")
    assert squares.count('class="hit"') == squares.count('class="miss"') == 1
    assert "a → b: 1 of 4" in squares


def test_chart_labels_numbers_and_truncates_only_long_names() -> None:
    name = "a-dataset-with-quite-a-long-name-of-44-chars"
    drawn = bar_chart({name: [Bar("0.0 to 0.1", 0.5, text="9"), Bar("unscored", None)]}, low=0, high=1, title="t")
    for text in (name, "0.0 to 0.1: 9", "unscored"):
        assert f">{text}</text>" in drawn


def test_strategy_has_same_colour_in_every_chart(tmp_path: Path) -> None:
    base = EvaluatedStrategy(AnswerStrategy.BASE)
    spec = replace(SPEC, strategies=(base, *SPEC.strategies))
    records = [failure(sample("Scroll up", strategy=base)), *many_records(tmp_path, 4)]
    page = render_html(summarize(records, JobFacts(spec)), records)
    for title in ("By dataset: steps right", "Share of weights in each tenth", "Mean seconds of each phase"):
        chart = page.partition(f"<title>{title}</title>")[2].partition("</svg>")[0]
        assert set(re.findall(r'class="(c\d)"', chart)) == {"c1", "c2"}


def test_heatmap_squares_are_light_enough_for_counts() -> None:
    squares = heatmap({"a": {"a": 9, "b": 1}}, ["a", "b"], "t")
    assert [float(opacity) for opacity in re.findall(r'fill-opacity="([\d.]+)"', squares)] == [0.46, 0.14]


def test_job_of_both_domains_has_matrix_and_collapses_many_bars() -> None:
    hidden = EvaluatedStrategy(AnswerStrategy.MIXTURE, exclude_own_adapter=True)
    mixture = EvaluatedStrategy(AnswerStrategy.MIXTURE)
    datasets = [f"app{number}" for number in range(40)]
    spec = EvaluationSpec(tuple(DatasetSpec(name, f"{name}.jsonl", name) for name in datasets), (mixture, hidden))
    records = [
        answered(sample("Scroll up", dataset=name, strategy=strategy), "Scroll up")
        for name in datasets
        for strategy in spec.strategies
    ]
    summary = summarize(records, JobFacts(spec))
    page, text = render_html(summary, records), render_markdown(summary)
    assert "In domain and out of domain" in page
    assert "## In domain and out of domain" in text
    assert page.count("<details><summary>app") == 40
    assert "In domain and out of domain" not in page_of([answered(sample("Scroll up"), "Scroll up")])
