"""Render a summary and its records as one self-contained page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template

from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.markup import Markup
from orchestrator.evaluation.report.html.samples import MAX_SAMPLES, ThumbnailBudget, choose_samples, samples_json
from orchestrator.evaluation.report.html.sections import page_header, page_sections
from orchestrator.evaluation.report.summarize import drop_repeated
from orchestrator.evaluation.report.summary import Summary


def render_html(
    summary: Summary,
    records: Sequence[Record],
    pictures: ThumbnailBudget | None = None,
    *,
    max_samples: int = MAX_SAMPLES,
    grades: Mapping[str, float] | None = None,
) -> str:
    """Return report.html: numbers and charts of the summary, and at most `max_samples` of the records to browse.

    The page loads nothing: its content security policy allows only its own script and style (by hash) and data: images.
    Without `pictures` no image is read, and the page shows a placeholder for each. `grades` are a judge's, by sample
    key.
    """
    kept, _ = drop_repeated(records)
    chosen = choose_samples(kept, max_samples)
    data = samples_json(chosen, pictures or ThumbnailBudget(), summary.scoring.point_tolerance_px, grades or {})
    style, script = _file("report.css"), _file("report.js")
    return Template(_file("page.html")).substitute(
        title=escape(f"Evaluation {summary.facts.evaluation_id}".strip()),
        style=style,
        style_hash=_source_hash(style),
        script=script,
        script_hash=_source_hash(script),
        sections=Markup("\n").join((page_header(summary), *page_sections(summary, kept))),
        shown=_shown(len(chosen), summary.recorded_samples, data["pictures"]),
        data=json_in_html(data),
    )


def json_in_html(data: object) -> str:
    """Return JSON that is safe inside a script element: `<`, `>` and `&` are written as escapes."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _shown(chosen: int, recorded: int, pictures: Sequence[str | None]) -> str:
    choice = "" if chosen == recorded else " (chosen evenly over datasets, each question with all its strategies)"
    missing = sum(picture is None for picture in pictures)
    not_shown = (
        f" {missing:,} of {len(pictures):,} images are not shown: missing, or beyond the page's size limit."
        if missing
        else ""
    )
    return f"{chosen:,} of {recorded:,} samples are on this page{choice}; records.jsonl has all of them.{not_shown}"


def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _source_hash(source: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
