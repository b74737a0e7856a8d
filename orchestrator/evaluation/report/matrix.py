"""The paper's table: step accuracy of strategies by domain, with intervals and differences to selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.contract.composition import FusionMethod
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate
from orchestrator.evaluation.report.formatting import (
    UNSCORED_TEXT,
    ReportTable,
    escape_inline,
    interval_text,
    markdown_table,
)
from orchestrator.evaluation.report.summary import ALL, Cell, Summary, shared_floor
from orchestrator.evaluation.spec import EvaluatedStrategy

FUSION_METHODS = (FusionMethod.LINEAR, FusionMethod.CONCAT, FusionMethod.SVD)
_ROWS = (
    EvaluatedStrategy(AnswerStrategy.BASE),
    EvaluatedStrategy(AnswerStrategy.ORACLE),
    EvaluatedStrategy(AnswerStrategy.SELECTION),
    EvaluatedStrategy(AnswerStrategy.MIXTURE),
    *(EvaluatedStrategy(AnswerStrategy.FUSION, method) for method in FUSION_METHODS),
    EvaluatedStrategy(AnswerStrategy.UNIFORM_ALL),
    EvaluatedStrategy(AnswerStrategy.RANDOM_K),
)
TITLE = "In domain and out of domain: steps right, %"
_TO_SELECTION = "to selection"
_COLUMNS = ("strategy", "in domain", _TO_SELECTION, "out of domain", _TO_SELECTION)
_MAX_REASON = 160
_SHARES = "Correct steps in percent (action type and argument), with 95 % intervals clustered by episode"
_NOTE = (
    f"{_SHARES}. To selection: the paired difference in percentage points, on the questions that both answered, with "
    "its own interval."
)


def matrix_strategies() -> tuple[EvaluatedStrategy, ...]:
    """Return the strategies of all rows, and the out-of-domain variants of those that can hide an adapter."""
    can_hide = (row for row in _ROWS if row.strategy.retrieves or row.strategy.ignores_prompt)
    out_of_domain = (EvaluatedStrategy(row.strategy, row.fusion_method, exclude_own_adapter=True) for row in can_hide)
    return (*_ROWS, *out_of_domain)


@dataclass(frozen=True)
class MatrixCell:
    """A strategy in one domain.

    Attributes:
        steps: step accuracy.
        to_selection: paired difference to selection.
        samples: number of samples.
        failed: number of them without an answer.
        reason: why there is no score, or why it covers only some of the samples; empty: neither.
    """

    steps: Estimate = UNSCORED
    to_selection: Estimate = UNSCORED
    samples: int = 0
    failed: int = 0
    reason: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """A strategy in domain and out of domain; None: not applicable."""

    strategy: str
    in_domain: MatrixCell | None
    out_of_domain: MatrixCell | None


@dataclass(frozen=True)
class Matrix:
    """The table. `floor` is the step share of the best constant template (see shared_floor); None: unscored."""

    rows: tuple[MatrixRow, ...]
    floor: float | None


def build_matrix(summary: Summary, data: str = ALL) -> Matrix:
    """Return the table of a job. Strategies that differ only in whether the own adapter is hidden share a row.

    The base model uses no adapters, so it is the same in both columns.
    """
    rows: dict[str, dict[bool, EvaluatedStrategy]] = {}
    for strategy in summary.facts.spec.strategies:
        visible = EvaluatedStrategy(strategy.strategy, strategy.fusion_method).label
        row = rows.setdefault(strategy.name or visible, {})
        row[strategy.exclude_own_adapter] = strategy
        if strategy.strategy is AnswerStrategy.BASE:
            row[True] = strategy
    return Matrix(
        tuple(
            MatrixRow(name, *(_cell(summary, row.get(domain), data, domain) for domain in (False, True)))
            for name, row in rows.items()
        ),
        shared_floor(cell for cell in summary.groups if cell.data == data),
    )


def domain_matrix(summary: Summary) -> Matrix | None:
    """Return the table of a job with both domains; None: it has one domain, or no question with a true action."""
    has_out_of_domain = any(strategy.exclude_own_adapter for strategy in summary.facts.spec.strategies)
    return build_matrix(summary) if has_out_of_domain and not summary.only_texts else None


def _cell(summary: Summary, strategy: EvaluatedStrategy | None, data: str, out_of_domain: bool) -> MatrixCell | None:
    if strategy is None:
        return None
    cell = summary.group(strategy.label, data)
    if cell is None:
        return MatrixCell(reason="no record")
    reference = next(
        (
            other.label
            for other in summary.facts.spec.strategies
            if other.strategy is AnswerStrategy.SELECTION and other.exclude_own_adapter == out_of_domain
        ),
        "",
    )
    difference = next(
        (
            candidate.steps
            for candidate in summary.differences
            if (candidate.strategy, candidate.reference, candidate.data) == (strategy.label, reference, data)
            and not summary.compares_mostly_failed(candidate)
        ),
        UNSCORED,
    )
    return MatrixCell(cell.action.steps, difference, cell.samples, cell.failed, _reason(cell))


def _reason(cell: Cell) -> str:
    if not cell.failed:
        return ""
    message = cell.failure if len(cell.failure) <= _MAX_REASON else f"{cell.failure[: _MAX_REASON - 1]}…"
    share = "cannot run" if cell.failed == cell.samples else f"{cell.failed} of {cell.samples} failed"
    return f"{share}: {message}"


def matrix_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """Return the rows of the table as text, without the header; the last row is the floor.

    If most samples failed, the cell has the reason in place of a score, which would be biased.
    """
    rows = [(row.strategy, *_texts(row.in_domain), *_texts(row.out_of_domain)) for row in matrix.rows]
    floor = UNSCORED_TEXT if matrix.floor is None else f"{100 * matrix.floor:.1f}"
    return [*rows, ("constant template (floor)", floor, "", floor, "")]


def render_matrix(matrix: Matrix) -> str:
    """Return the table as Markdown."""
    report_table = domain_table(matrix)
    rows = [tuple(map(escape_inline, row)) for row in report_table.rows]
    return f"{markdown_table(report_table.columns, rows)}\n\n{report_table.note}\n"


def domain_table(matrix: Matrix) -> ReportTable:
    """Return the table without empty columns of differences, as when the job has no selection."""
    rows = matrix_rows(matrix)
    kept = [
        index for index, column in enumerate(_COLUMNS) if column != _TO_SELECTION or any(row[index] for row in rows)
    ]
    differs = any(_COLUMNS[index] == _TO_SELECTION for index in kept)
    return ReportTable(
        TITLE,
        tuple(_COLUMNS[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
        _NOTE if differs else f"{_SHARES}.",
    )


def _texts(cell: MatrixCell | None) -> Sequence[str]:
    if cell is None:
        return UNSCORED_TEXT, ""
    if cell.steps.value is None or 2 * cell.failed > cell.samples:
        return cell.reason or UNSCORED_TEXT, ""
    failed = f" ({cell.reason})" if cell.reason else ""
    difference = "" if cell.to_selection.value is None else interval_text(cell.to_selection, signed=True)
    return interval_text(cell.steps) + failed, difference
