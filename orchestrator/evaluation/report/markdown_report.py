"""Render a summary as Markdown."""

from __future__ import annotations

import json

from orchestrator.evaluation.judge.verdicts import JudgeFacts
from orchestrator.evaluation.report.comparison_tables import judge_table, paired_differences_table
from orchestrator.evaluation.report.formatting import (
    UNSCORED_TEXT,
    ReportTable,
    escape_inline,
    markdown_table,
    pluralize,
)
from orchestrator.evaluation.report.headline_tables import headline_tables
from orchestrator.evaluation.report.matrix import TITLE, domain_matrix, render_matrix
from orchestrator.evaluation.report.methodology import methodology_section
from orchestrator.evaluation.report.metric_tables import (
    all_metrics_table,
    answers_by_dataset_table,
    retrieval_table,
    steps_by_dataset_table,
    timings_table,
)
from orchestrator.evaluation.report.summary import Summary

MAX_LISTED = 20


def first_headline(summary: Summary) -> ReportTable:
    """Return the first headline table, with standard errors, which need less room than intervals."""
    return headline_tables(summary, intervals=False)[0]


def render_markdown(summary: Summary) -> str:
    """Return the report as Markdown."""
    sections = [
        _opening(summary),
        *map(_rendered, headline_tables(summary)),
        _domains(summary),
        _rendered(paired_differences_table(summary)),
        _judged(summary),
        _rendered(all_metrics_table(summary)),
        _rendered(steps_by_dataset_table(summary)),
        _rendered(answers_by_dataset_table(summary)),
        _rendered(retrieval_table(summary)),
        _rendered(timings_table(summary)),
        _failures(summary),
        _bad_rows(summary),
        methodology_section(summary),
        _specification(summary),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _domains(summary: Summary) -> str:
    matrix = domain_matrix(summary)
    return "" if matrix is None else f"## {TITLE}\n\n{render_matrix(matrix).rstrip()}"


def _opening(summary: Summary) -> str:
    facts = summary.facts
    name = f" {escape_inline(facts.evaluation_id)}" if facts.evaluation_id else ""
    model = f" Base model: {escape_inline(facts.base_model)}." if facts.base_model else ""
    lines = [
        f"# Evaluation{name}",
        f"{compared_text(summary)}: "
        f"{pluralize(summary.recorded_samples, 'sample')} in the `{facts.spec.protocol.value}` protocol, "
        f"{summary.failed_samples:,} of them failed.{model}",
    ]
    planned = facts.planned_samples
    if planned is not None and planned != summary.recorded_samples:
        lines.append(
            f"**Incomplete ({escape_inline(facts.state)}): {summary.recorded_samples:,} of {planned:,} planned samples "
            "have a record.** Episodes with a missing step count only in the shares of steps."
        )
    return "\n\n".join([*lines, *(f"**{escape_inline(caveat)}**" for caveat in caveats(summary))])


def compared_text(summary: Summary) -> str:
    """Return how many strategies were compared, on how many datasets."""
    strategies = pluralize(len(summary.strategies), "strategy", "strategies")
    return f"{strategies} compared on {pluralize(len(summary.dataset_names), 'dataset')}"


def caveats(summary: Summary) -> list[str]:
    """Return caveats that a reader must know before trusting the numbers, as sentences with foreign text."""
    notes = []
    if summary.bad_row_count:
        first = [f", the first: {bad.file}:{bad.line}: {bad.problem}" for bad in summary.facts.bad_rows[:1]]
        notes.append(f"{pluralize(summary.bad_row_count, 'row')} of the datasets could not be read{''.join(first)}.")
    if summary.changed_datasets:
        names = ", ".join(summary.changed_datasets)
        notes.append(f"These datasets changed while the job ran; their samples are the planned ones: {names}.")
    if summary.catalogue_changed:
        notes.append("The catalogue of adapters changed while the job ran; answers used more than one revision of it.")
    if summary.stale_samples:
        count = pluralize(summary.stale_samples, "sample")
        notes.append(f"For {count} the catalogue was unreachable; adapters were retrieved from its last known state.")
    return notes


def _rendered(report_table: ReportTable | None) -> str:
    if report_table is None:
        return ""
    text_columns = report_table.text_columns
    rows = [(*map(escape_inline, row[:text_columns]), *row[text_columns:]) for row in report_table.rows]
    drawn = markdown_table([*map(escape_inline, report_table.columns)], rows, text_columns)
    return f"## {report_table.title}\n\n{drawn}\n\n{report_table.note}".rstrip()


def _judged(summary: Summary) -> str:
    if summary.judge is None:
        return ""
    return f"{_rendered(judge_table(summary))} {escape_inline(judge_note(summary.judge))}"


def judge_note(facts: JudgeFacts) -> str:
    """Return sentences about the judge and its cost, with foreign text."""
    unscored = "".join(f" Unscored: {count:,} ({reason})." for reason, count in facts.unscored.items())
    return (
        f"Graded by {facts.model} at {facts.endpoint}, "
        f"with {pluralize(facts.calls, 'call')} ({facts.prompt_tokens:,} + {facts.completion_tokens:,} tokens) "
        f"and {pluralize(facts.cached, 'cached reply', 'cached replies')}.{unscored}"
    )


def _failures(summary: Summary) -> str:
    if not summary.failed_samples:
        return ""
    counts = ", ".join(f"{escape_inline(reason)} {count:,}" for reason, count in summary.failure_reasons.items())
    listed = summary.failures[:MAX_LISTED]
    rows = [
        (escape_inline(failure.key), escape_inline(failure.reason), escape_inline(failure.message))
        for failure in listed
    ]
    return (
        f"## Failed samples: {summary.failed_samples:,}\n\n"
        f"Failed samples are unscored and in no share above. By reason: {counts}. Examples of each:\n\n"
        f"{markdown_table(('sample', 'reason', 'message'), rows, text_columns=3)}"
    )


def _bad_rows(summary: Summary) -> str:
    if not summary.bad_row_count:
        return ""
    listed = summary.facts.bad_rows[:MAX_LISTED]
    lines = "\n".join(f"- {escape_inline(bad.file)}:{bad.line}: {escape_inline(bad.problem)}" for bad in listed)
    return f"## Rows that could not be read: {summary.bad_row_count:,}\n\nThe first {len(listed):,}:\n\n{lines}"


def _specification(summary: Summary) -> str:
    facts = summary.facts
    spec = {name: value for name, value in facts.spec.to_json().items() if name != "datasets"}
    files = {file.name: file for file in facts.files}
    rows = []
    for dataset in facts.spec.datasets:
        file = files.get(dataset.name)
        read = (f"{file.episodes:,}", f"{file.bad_rows:,}", file.sha256[:16]) if file else (UNSCORED_TEXT,) * 3
        rows.append((*map(escape_inline, (dataset.name, dataset.uri, dataset.kind, dataset.adapter_id)), *read))
    parts = [
        "## What was asked",
        markdown_table(("dataset", "file", "kind", "adapter", "episodes", "bad rows", "SHA-256"), rows, text_columns=4),
        f"```json\n{json.dumps(spec, indent=2)}\n```",
    ]
    ran = {
        "loraretriever": facts.version,
        "base model": facts.base_model,
        "digest of its files": facts.base_model_revision,
        "type of its weights": facts.dtype,
        "embedder": facts.embedder,
        "catalogue at acceptance": facts.catalogue_revision,
        "catalogue revisions searched": ", ".join(summary.catalogue_revisions),
    }
    known = [f"- {name}: {escape_inline(value)}" for name, value in ran.items() if value]
    if known:
        parts.append("What ran:\n\n" + "\n".join(known))
    return "\n\n".join(parts)
