"""The report: a summary as Markdown for people, and its headline as a plain table."""

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
    """Return the first headline of a job, with standard errors, which need less room than intervals."""
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
    made = domain_matrix(summary)
    return "" if made is None else f"## {TITLE}\n\n{render_matrix(made).rstrip()}"


def _opening(summary: Summary) -> str:
    facts = summary.facts
    name = f" {escape_inline(facts.evaluation_id)}" if facts.evaluation_id else ""
    model = f" Base model: {escape_inline(facts.base_model)}." if facts.base_model else ""
    strategies, datasets = len(summary.strategies), len(summary.dataset_names)
    lines = [
        f"# Evaluation{name}",
        f"{pluralize(strategies, 'way')} to answer, compared on {pluralize(datasets, 'dataset')}: "
        f"{pluralize(summary.recorded_samples, 'sample')} in the `{facts.spec.protocol.value}` protocol, "
        f"{summary.failed_samples:,} of them failed.{model}",
    ]
    planned = facts.planned_samples
    if planned is not None and planned != summary.recorded_samples:
        lines.append(
            f"**Incomplete ({escape_inline(facts.state)}): {summary.recorded_samples:,} of {planned:,} planned samples "
            "have a record.** Episodes with a missing step count in step shares only."
        )
    return "\n\n".join([*lines, *(f"**{escape_inline(caveat)}**" for caveat in caveats(summary))])


def caveats(summary: Summary) -> list[str]:
    """Return what a reader must know before believing the numbers: sentences, of foreign text."""
    said = []
    if summary.bad_row_count:
        first = [f", the first: {bad.file}:{bad.line}: {bad.problem}" for bad in summary.facts.bad_rows[:1]]
        said.append(f"{pluralize(summary.bad_row_count, 'row')} of the datasets could not be read{''.join(first)}.")
    if summary.changed_datasets:
        names = ", ".join(summary.changed_datasets)
        said.append(f"Changed while the job ran (its samples are those that were planned): {names}.")
    if summary.catalogue_changed:
        said.append("The catalogue of adapters changed while the job ran: answers came from more than one state of it.")
    if summary.stale_samples:
        count = pluralize(summary.stale_samples, "sample")
        said.append(f"For {count} the catalogue could not be reached: adapters were looked up in the last one known.")
    return said


def _rendered(report_table: ReportTable | None) -> str:
    if report_table is None:
        return ""
    text_columns = report_table.text_columns
    rows = [(*map(escape_inline, row[:text_columns]), *row[text_columns:]) for row in report_table.rows]
    drawn = markdown_table([*map(escape_inline, report_table.columns)], rows, text_columns)
    return f"## {report_table.title}\n\n{drawn}\n\n{report_table.note}".rstrip()


def _judged(summary: Summary) -> str:
    return (
        "" if summary.judge is None else f"{_rendered(judge_table(summary))} {escape_inline(judge_note(summary.judge))}"
    )


def judge_note(facts: JudgeFacts) -> str:
    """Return who graded and what it took, a sentence or two of foreign text."""
    unscored = "".join(f" Unscored: {count:,} ({reason})." for reason, count in facts.unscored.items())
    return (
        f"Graded by {facts.model} at {facts.endpoint}. "
        f"It took {pluralize(facts.calls, 'call')} ({facts.prompt_tokens:,} + {facts.completion_tokens:,} tokens); "
        f"{facts.cached:,} replies were known already.{unscored}"
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
        f"They are unscored: in no share above, neither right nor wrong. By reason: {counts}. Some of each:\n\n"
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
        "its files' digest": facts.base_model_revision,
        "type of its weights": facts.dtype,
        "embedder": facts.embedder,
        "catalogue when accepted": facts.catalogue_revision,
        "catalogues that answered": ", ".join(summary.catalogue_revisions),
    }
    known = [f"- {name}: {escape_inline(value)}" for name, value in ran.items() if value]
    if known:
        parts.append("What ran:\n\n" + "\n".join(known))
    return "\n\n".join(parts)
