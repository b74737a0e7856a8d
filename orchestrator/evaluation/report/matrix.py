"""The paper's table: strategies against domains, each with its interval and its difference to selection."""

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
TO_SELECTION = "to selection"
COLUMNS = ("strategy", "in domain", TO_SELECTION, "out of domain", TO_SELECTION)
MAX_REASON = 160


def matrix_strategies() -> tuple[EvaluatedStrategy, ...]:
    """Return every row of the table, those that can hide the dataset's own adapter also out of domain."""
    hiding = (each for each in _ROWS if each.strategy.retrieves or each.strategy.ignores_prompt)
    outside = (EvaluatedStrategy(each.strategy, each.fusion_method, exclude_own_adapter=True) for each in hiding)
    return (*_ROWS, *outside)


@dataclass(frozen=True)
class MatrixCell:
    """A strategy in one domain: its step accuracy, and how much that is above selection's.

    `reason` says why there is no number, or why it is one of some of the samples only.
    """

    steps: Estimate = UNSCORED
    to_selection: Estimate = UNSCORED
    samples: int = 0
    failed: int = 0
    reason: str = ""


@dataclass(frozen=True)
class MatrixRow:
    """A strategy in domain and out of domain; None where it means nothing."""

    strategy: str
    in_domain: MatrixCell | None
    out_of_domain: MatrixCell | None


@dataclass(frozen=True)
class Matrix:
    """The table. `floor` is the step share of the best constant template (see shared_floor), None: unscored."""

    rows: tuple[MatrixRow, ...]
    floor: float | None


def build_matrix(summary: Summary, data: str = ALL) -> Matrix:
    """Return the table of a job; strategies that answer alike but for the hidden adapter share a row.

    The base model knows no adapters, so that it is the same in both columns.
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
            MatrixRow(name, *(_cell(summary, row.get(hides), data, hides) for hides in (False, True)))
            for name, row in rows.items()
        ),
        shared_floor(cell for cell in summary.groups if cell.data == data),
    )


def domain_matrix(summary: Summary) -> Matrix | None:
    """Return the table of a job that hides the own adapter from some strategy; None where there is but one domain.

    There is none either where no question is answered by actions.
    """
    hides = any(strategy.exclude_own_adapter for strategy in summary.facts.spec.strategies)
    return build_matrix(summary) if hides and not summary.only_texts else None


def _cell(summary: Summary, strategy: EvaluatedStrategy | None, data: str, hides: bool) -> MatrixCell | None:
    if strategy is None:
        return None
    cell = summary.group(strategy.label, data)
    if cell is None:
        return MatrixCell(reason="no record")
    reference = next(
        (
            each.label
            for each in summary.facts.spec.strategies
            if each.strategy is AnswerStrategy.SELECTION and each.exclude_own_adapter == hides
        ),
        "",
    )
    difference = next(
        (
            each.steps
            for each in summary.differences
            if (each.strategy, each.reference, each.data) == (strategy.label, reference, data)
            and not summary.mostly_failed_in(each)
        ),
        UNSCORED,
    )
    return MatrixCell(cell.action.steps, difference, cell.samples, cell.failed, _reason(cell))


def _reason(cell: Cell) -> str:
    if not cell.failed:
        return ""
    said = cell.failure if len(cell.failure) <= MAX_REASON else f"{cell.failure[: MAX_REASON - 1]}…"
    share = "cannot run" if cell.failed == cell.samples else f"{cell.failed} of {cell.samples} failed"
    return f"{share}: {said}"


def matrix_rows(matrix: Matrix) -> list[tuple[str, ...]]:
    """Return the table as ready text, below COLUMNS; the last row is the floor.

    Where most samples failed the cell says why and no number: what is left of them is a choice of its own.
    """
    rows = [(row.strategy, *_texts(row.in_domain), *_texts(row.out_of_domain)) for row in matrix.rows]
    floor = UNSCORED_TEXT if matrix.floor is None else f"{100 * matrix.floor:.1f}"
    return [*rows, ("constant template (floor)", floor, "", floor, "")]


def render_matrix(matrix: Matrix) -> str:
    """Return the table as Markdown."""
    drawn = domain_table(matrix)
    rows = [tuple(map(escape_inline, row)) for row in drawn.rows]
    return f"{markdown_table(drawn.columns, rows)}\n\n{drawn.note}\n"


def domain_table(matrix: Matrix) -> ReportTable:
    """Return the table without the columns of differences that are empty, as where the job has no selection."""
    rows = matrix_rows(matrix)
    kept = [index for index, column in enumerate(COLUMNS) if column != TO_SELECTION or any(row[index] for row in rows)]
    differs = any(COLUMNS[index] == TO_SELECTION for index in kept)
    return ReportTable(
        TITLE,
        tuple(COLUMNS[index] for index in kept),
        tuple(tuple(row[index] for index in kept) for row in rows),
        NOTE if differs else f"{_SHARES}.",
    )


_SHARES = "Steps right in percent (action type and argument) with their 95 % interval, clustered by episode"
NOTE = (
    f"{_SHARES}; to selection: the difference in percentage points on the questions that both answered, with its own "
    "interval."
)


def _texts(cell: MatrixCell | None) -> Sequence[str]:
    if cell is None:
        return UNSCORED_TEXT, ""
    if cell.steps.value is None or 2 * cell.failed > cell.samples:
        return cell.reason or UNSCORED_TEXT, ""
    failed = f" ({cell.reason})" if cell.reason else ""
    difference = "" if cell.to_selection.value is None else interval_text(cell.to_selection, signed=True)
    return interval_text(cell.steps) + failed, difference
