"""Write the output files of a job: records.jsonl, and the reports summary.json, summary.md and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.judge.verdicts import JobGrades
from orchestrator.evaluation.metrics.action import ActionMetric, ActionTypeMetric
from orchestrator.evaluation.metrics.legacy import LegacyMetric
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.report.html.page import render_html
from orchestrator.evaluation.report.html.samples import ThumbnailBudget
from orchestrator.evaluation.report.markdown_report import render_markdown
from orchestrator.evaluation.report.summarize import summarize
from orchestrator.evaluation.report.summary import ScoringOptions, Summary
from orchestrator.evaluation.scoring import record_scores
from orchestrator.evaluation.storage import read_text, write_text

RECORDS_FILE = "records.jsonl"
SUMMARY_JSON_FILE = "summary.json"
SUMMARY_MARKDOWN_FILE = "summary.md"
REPORT_HTML_FILE = "report.html"
GRADES_FILE = "judge.jsonl"


def write_records(folder: str, records: Sequence[Record], options: ScoringOptions) -> None:
    """Write every record, one a line, with its scores (null: unscored)."""
    metrics = ActionMetric(options.point_tolerance_px), ActionTypeMetric(), LegacyMetric(options.legacy_threshold)
    lines = ({**record.to_json(), "scores": record_scores(record, metrics)} for record in records)
    write_text(folder, RECORDS_FILE, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def write_report(
    folder: str,
    summary: Summary,
    records: Sequence[Record],
    pictures: ThumbnailBudget,
    grades: Mapping[str, float] | None = None,
) -> None:
    """Write summary.json, summary.md and report.html. `grades` are a judge's, by sample key."""
    write_text(folder, SUMMARY_JSON_FILE, json.dumps(summary.to_json(), indent=2, ensure_ascii=False) + "\n")
    write_text(folder, SUMMARY_MARKDOWN_FILE, render_markdown(summary))
    write_text(folder, REPORT_HTML_FILE, render_html(summary, records, pictures, grades=grades))


def add_grades(folder: str, judged: JobGrades, records: Sequence[Record], pictures: ThumbnailBudget) -> Summary:
    """Write a judge's verdicts to judge.jsonl, rewrite the reports with its grades, and return the new summary.

    Raises:
        NotFoundError: the folder has no summary.json.
        InvalidArgumentError: its summary.json is not a summary.
    """
    previous = read_summary(folder)
    summary = summarize(records, previous.facts, previous.scoring, bad_row_count=previous.bad_row_count, judged=judged)
    verdicts = {record.sample.key: judged.verdicts[record.sample.key] for record in records}
    lines = (json.dumps({"key": key, **asdict(verdict)}, ensure_ascii=False) for key, verdict in verdicts.items())
    write_text(folder, GRADES_FILE, "".join(f"{line}\n" for line in lines))
    write_report(folder, summary, records, pictures, judged.grades)
    return summary


def read_summary(folder: str) -> Summary:
    """Return the summary of a job. Raises NotFoundError, or InvalidArgumentError if the file is not a summary."""
    text = read_text(folder, SUMMARY_JSON_FILE)
    try:
        return Summary.from_json(json.loads(text))
    except ValueError as error:
        problem = str(error).partition("\n")[0]
        raise InvalidArgumentError(
            "", f"{folder}/{SUMMARY_JSON_FILE} is not the summary of a job: {problem}"
        ) from error
