"""The summary of a job: the content of `summary.json`, from which every report is rendered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from orchestrator.evaluation.actions import POINT_TOLERANCE_PX
from orchestrator.evaluation.data.datasets import BadRow
from orchestrator.evaluation.judge.verdicts import JudgeFacts
from orchestrator.evaluation.metrics.action import ActionParts
from orchestrator.evaluation.metrics.episodes import Score
from orchestrator.evaluation.metrics.legacy import LEGACY_THRESHOLD
from orchestrator.evaluation.metrics.retrieval import RetrievalScore
from orchestrator.evaluation.metrics.text import TEXTS_UNSCORED, TextScores
from orchestrator.evaluation.metrics.uncertainty import UNSCORED, Estimate
from orchestrator.evaluation.spec import EvaluationSpec

SCHEMA_VERSION = 1
ALL = "all"
"""Name of the group of all datasets."""


@dataclass(frozen=True)
class ScoringOptions:
    """Parameters of metrics: `legacy` accepts above its threshold, `action` accepts points within its tolerance."""

    legacy_threshold: float = LEGACY_THRESHOLD
    point_tolerance_px: float = POINT_TOLERANCE_PX


@dataclass(frozen=True)
class DatasetFile:
    """A dataset as it was read: its file, the SHA-256 of its bytes, and the numbers of episodes and bad rows."""

    name: str
    kind: str
    file: str
    sha256: str
    episodes: int
    bad_rows: int


@dataclass(frozen=True)
class JobFacts:
    """Facts about a job that its records do not contain. Empty strings: not known.

    Attributes:
        spec: the job's specification.
        evaluation_id: the job's id.
        state: the job's state when the report was written.
        planned_samples: number of planned samples; None: not known.
        files: datasets as they were read.
        bad_rows: rows that could not be read, possibly truncated.
        base_model: name of the base model when the job was accepted.
        version: version of this code.
        base_model_revision: digest of the base model's files.
        dtype: type of its weights.
        catalogue_revision: the catalogue's revision.
        embedder: the embedder's fingerprint.
    """

    spec: EvaluationSpec
    evaluation_id: str = ""
    state: str = "succeeded"
    planned_samples: int | None = None
    files: tuple[DatasetFile, ...] = ()
    bad_rows: tuple[BadRow, ...] = ()
    base_model: str = ""
    version: str = ""
    base_model_revision: str = ""
    dtype: str = ""
    catalogue_revision: str = ""
    embedder: str = ""


@dataclass(frozen=True)
class MeanTimings:
    """Mean seconds of each phase, over the samples in which it was measured; None: in none of them.

    `retrieval_s` is the whole call of the retrieval service and includes `embed_s` and `search_s`.
    """

    total_s: float | None
    retrieval_s: float | None
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None
    embed_s: float | None = None
    search_s: float | None = None


@dataclass(frozen=True)
class Cell:
    """Scores of one strategy on one dataset, or on a group of datasets pooled by sample. Failed samples are unscored.

    Attributes:
        strategy: label of the strategy.
        data: name of the dataset or group.
        samples: number of samples with a record.
        failed: number of them without an answer.
        action: score under `action`, of questions whose truth is in the action language.
        legacy: score of the same questions under `legacy`.
        retrieval: retrieval accuracy.
        timings: mean seconds of each phase.
        action_parts: shares of correct action types and arguments.
        confusion: how often each adapter came first, by true adapter.
        failure: the most common error message of the failed samples.
        texts: scores of the questions whose truth is not in the action language.
        judge: mean grade of a judge in [0, 1].
        judge_unscored: number of samples without a grade; 0 if not judged.
        text_samples: number of samples that `texts` covers.
        text_failed: number of them without an answer.
    """

    strategy: str
    data: str
    samples: int
    failed: int
    action: Score
    legacy: Score
    retrieval: RetrievalScore
    timings: MeanTimings
    action_parts: ActionParts | None = None
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    failure: str = ""
    texts: TextScores = TEXTS_UNSCORED
    judge: Estimate = UNSCORED
    judge_unscored: int = 0
    text_samples: int = 0
    text_failed: int = 0

    @property
    def mostly_failed(self) -> bool:
        """Whether more than half of the samples failed; a score of the rest is biased and is not reported."""
        return 2 * self.failed > self.samples


@dataclass(frozen=True)
class Difference:
    """Paired difference strategy - reference, on the questions that both have a score for.

    `steps` compares correct steps under `action`, `texts` exact match of whole answers, `judge` a judge's grades.
    """

    strategy: str
    reference: str
    data: str
    steps: Estimate
    texts: Estimate = UNSCORED
    judge: Estimate = UNSCORED


@dataclass(frozen=True)
class Failure:
    """A sample without an answer, and the error."""

    key: str
    strategy: str
    dataset: str
    reason: str
    message: str


def shared_floor(cells: Iterable[Cell]) -> float | None:
    """Return one step floor for strategies on the same samples; None: unscored.

    Takes the floor of the cell with the most scored steps, since a constant template overfits few samples.
    """
    fullest = max(cells, key=lambda cell: cell.action.steps.count, default=None)
    return None if fullest is None else fullest.action.step_floor


def _find(cells: tuple[Cell, ...], strategy: str, data: str) -> Cell | None:
    return next((cell for cell in cells if (cell.strategy, cell.data) == (strategy, data)), None)


@dataclass(frozen=True)
class Summary:
    """The summary of a job.

    Attributes:
        facts: facts about the job that its records do not contain.
        scoring: parameters of the metrics.
        strategies: labels of the strategies.
        group_names: the kinds of datasets, and ALL.
        dataset_names: names of the datasets.
        recorded_samples: number of samples with a record.
        failed_samples: number of them without an answer.
        repeated_records: records ignored because an earlier one has the same key.
        bad_row_count: number of rows that could not be read; `facts.bad_rows` lists the first of them.
        catalogue_revisions: revisions of the catalogue that were searched.
        groups: cells by strategy and group.
        datasets: cells by strategy and dataset.
        failure_reasons: number of failed samples by error reason.
        failures: some failed samples of each reason.
        schema_version: version of summary.json.
        differences: paired differences of strategies.
        changed_datasets: datasets whose file changed while the job ran; the samples are the planned ones.
        stale_samples: samples for which the catalogue was unreachable and its last known state was searched.
        judge: facts about the judge; None: not judged.
    """

    facts: JobFacts
    scoring: ScoringOptions
    strategies: tuple[str, ...]
    group_names: tuple[str, ...]
    dataset_names: tuple[str, ...]
    recorded_samples: int
    failed_samples: int
    repeated_records: int
    bad_row_count: int
    catalogue_revisions: tuple[str, ...]
    groups: tuple[Cell, ...]
    datasets: tuple[Cell, ...]
    failure_reasons: dict[str, int]
    failures: tuple[Failure, ...]
    schema_version: int = SCHEMA_VERSION
    differences: tuple[Difference, ...] = ()
    changed_datasets: tuple[str, ...] = ()
    stale_samples: int = 0
    judge: JudgeFacts | None = None

    @property
    def has_actions(self) -> bool:
        """Whether any scored question has a truth in the action language."""
        return any(cell.action_parts and cell.action_parts.action_type.count for cell in self.groups)

    @property
    def has_texts(self) -> bool:
        """Whether any scored question has a truth outside the action language."""
        return any(cell.texts.exact_match.count for cell in self.groups)

    @property
    def only_texts(self) -> bool:
        """Whether all scored questions have truths outside the action language."""
        return self.has_texts and not self.has_actions

    @property
    def is_mixed(self) -> bool:
        """Whether there are questions of both kinds, so that no score covers all of them."""
        return self.has_texts and self.has_actions

    @property
    def catalogue_changed(self) -> bool:
        """Whether any answer used another revision of the catalogue than the one at the job's acceptance."""
        return bool(self.facts.catalogue_revision) and not {self.facts.catalogue_revision}.issuperset(
            self.catalogue_revisions
        )

    def group(self, strategy: str, name: str) -> Cell | None:
        """Return the cell of a strategy and a group; None: it has no record."""
        return _find(self.groups, strategy, name)

    def dataset(self, strategy: str, name: str) -> Cell | None:
        """Return the cell of a strategy and a dataset; None: it has no record."""
        return _find(self.datasets, strategy, name)

    def compares_mostly_failed(self, difference: Difference) -> bool:
        """Whether one of the two strategies is mostly failed, so that few questions are left to compare."""
        compared = (self.group(label, difference.data) for label in (difference.strategy, difference.reference))
        return any(cell is None or cell.mostly_failed for cell in compared)

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        dumped: dict[str, Any] = _SUMMARY.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Summary:
        """Parse the output of `to_json`."""
        return _SUMMARY.validate_python(data)


_SUMMARY = TypeAdapter(Summary)
