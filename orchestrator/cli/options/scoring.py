"""Options of how results are scored, gated and judged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.ci_gate import DEFAULT_MAX_FAILED, Gate, JobMetric
from orchestrator.cli.options.binding import Sets
from orchestrator.cli.settings import environment
from orchestrator.cli.strategies import complete_strategies
from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.judge.chat_client import ChatEndpoint
from orchestrator.evaluation.judge.grading import DEFAULT_TEMPLATE, JudgePrompt
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.report.summary import ScoringOptions
from orchestrator.evaluation.result_scores import MetricName

JUDGE_CACHE = Path(".loraretriever/judge")

MetricOption = Annotated[
    MetricName | None,
    typer.Option(
        help="action: type and argument right; action_type: the type alone; legacy: TF-IDF cosine, of whole rows as "
        "legacy_row; exact_match, rouge_l, bleu: whole answers, for tasks without actions (default: action, or "
        "exact_match where no true answer is an action).",
        show_default=False,
    ),
]
StrategyLabel = Annotated[
    str | None,
    typer.Option(help="The strategy to score, by its label (default: each).", autocompletion=complete_strategies),
]


@dataclass(frozen=True)
class ScoringFlags:
    """The parameters of the metrics."""

    threshold: Annotated[
        float | None,
        typer.Option(
            help=f"Similarity above which the legacy metric calls a step right (default: {LEGACY_THRESHOLD:g}).",
            show_default=False,
        ),
        Sets("legacy_threshold"),
    ] = None
    point_tolerance: Annotated[
        float | None,
        typer.Option(
            help=f"Distance in pixels up to which the action metric treats two points as equal (default: "
            f"{POINT_TOLERANCE_PX:g}).",
            show_default=False,
        ),
        Sets("point_tolerance_px"),
    ] = None

    @property
    def is_set(self) -> bool:
        """Whether a parameter is given."""
        return self.threshold is not None or self.point_tolerance is not None

    def options(self, metric: MetricName | None = None) -> ScoringOptions:
        """Return the parameters, with defaults for those not given. `metric` None: several metrics are computed.

        Raises InvalidArgumentError for a parameter that `metric` does not have.
        """
        for option, value, use in (
            ("threshold", self.threshold, (MetricName.LEGACY, MetricName.LEGACY_ROW)),
            ("point_tolerance", self.point_tolerance, (MetricName.ACTION,)),
        ):
            if value is not None and metric not in (None, *use):
                raise InvalidArgumentError(
                    option, f"has no effect on --metric {metric}; it belongs to --metric {use[0]}"
                )
        return ScoringOptions(
            LEGACY_THRESHOLD if self.threshold is None else self.threshold,
            POINT_TOLERANCE_PX if self.point_tolerance is None else self.point_tolerance,
        )


@dataclass(frozen=True)
class GateOptions:
    """What scores must reach for exit status 0."""

    fail_under: Annotated[
        float | None, typer.Option(help="Exit with status 1 when a score, in 0..1, is below this or unscored.")
    ] = None
    max_failed: Annotated[
        float | None,
        typer.Option(
            help="Exit with status 1 when a larger share of the samples, in 0..1, has no score (default: "
            f"{DEFAULT_MAX_FAILED:g} with --fail-under, else never).",
            show_default=False,
        ),
    ] = None

    def gate(self) -> Gate:
        """Return the gate. Raises InvalidArgumentError for shares outside 0..1."""
        return Gate(fail_under=self.fail_under, max_failed=self.max_failed)


@dataclass(frozen=True)
class JobGateOptions(GateOptions):
    """GateOptions for the strategies of a job."""

    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="The strategy that --fail-under applies to, by its label; may be repeated (default: each).",
            autocompletion=complete_strategies,
        ),
    ] = None
    metric: Annotated[
        JobMetric | None,
        typer.Option(
            "--metric",
            help="The metric that --fail-under applies to (default: action, or exact_match where no true answer is an "
            "action).",
            show_default=False,
        ),
    ] = None

    def gate(self, *, watch: bool = True) -> Gate:
        """Return the gate. Raises InvalidArgumentError also where no scores are waited for (`watch`)."""
        return _checked(Gate(self.metric, self.fail_under, self.max_failed, self.fail_on or ()), self.fail_on, watch)


@dataclass(frozen=True)
class MatrixGateOptions(GateOptions):
    """GateOptions for the strategies of a matrix, of which the mixture decides by default."""

    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="The strategy that --fail-under applies to, by its label; may be repeated (default: mixture).",
            autocompletion=complete_strategies,
        ),
    ] = None

    def gate(self, *, watch: bool = True) -> Gate:
        """Return the gate. Raises InvalidArgumentError also where no scores are waited for (`watch`)."""
        labels = self.fail_on or (AnswerStrategy.MIXTURE.value,)
        return _checked(Gate(None, self.fail_under, self.max_failed, labels), self.fail_on, watch)


def _checked(gate: Gate, fail_on: list[str] | None, watch: bool) -> Gate:
    if fail_on and not gate.is_set:
        raise InvalidArgumentError("fail_on", "selects the strategies of --fail-under; give --fail-under too")
    if gate.is_set and not watch:
        raise InvalidArgumentError("fail_under", "needs the scores of a finished job; leave --no-watch out")
    return gate


@dataclass(frozen=True)
class JudgeOptions:
    """The model that grades answers."""

    judge_url: Annotated[
        str,
        typer.Option("--judge", help="Let a model grade the answers: base URL of an OpenAI-compatible endpoint."),
        Sets("judge"),
    ] = ""
    judge_model: Annotated[
        str, typer.Option(help="The judge's model. Its key is read from LORARETRIEVER_CLIENT_JUDGE_KEY.")
    ] = ""
    judge_prompt: Annotated[
        Path | None,
        typer.Option(
            "--judge-prompt", help="File with the judge's prompt: {truth}, {answer}, {question} are filled in."
        ),
    ] = None
    judge_rate: Annotated[float | None, typer.Option(help="Maximum number of calls a minute (default: no limit).")] = (
        None
    )
    judge_concurrency: Annotated[int, typer.Option(help="Number of concurrent calls.")] = 8
    judge_cache: Annotated[Path, typer.Option(help="Folder of the judge's earlier replies.")] = JUDGE_CACHE

    @property
    def is_set(self) -> bool:
        """Whether a judge is given."""
        return bool(self.judge_url)

    def check_unset(self) -> None:
        """Raise InvalidArgumentError for options of a judge where no judge is given."""
        if self.judge_model or self.judge_prompt is not None or self.judge_rate is not None:
            raise InvalidArgumentError("judge", "the options of a judge have no effect without --judge")

    def endpoint(self) -> ChatEndpoint:
        """Return the judge's endpoint, with the key of the environment. Raises InvalidArgumentError."""
        key = environment().client.judge_key
        return ChatEndpoint(
            self.judge_url,
            self.judge_model,
            key=key.get_secret_value() if key is not None else "",
            requests_per_minute=self.judge_rate,
            concurrency=self.judge_concurrency,
        )

    def prompt(self) -> JudgePrompt:
        """Return the judge's prompt: the given file's, or the default. Raises InvalidArgumentError."""
        if self.judge_prompt is None:
            return JudgePrompt(DEFAULT_TEMPLATE)
        try:
            return JudgePrompt(self.judge_prompt.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidArgumentError("judge_prompt", f"{self.judge_prompt} cannot be read: {error}") from error
