"""The numbers of a job: what `summary.json` holds, and every report is drawn from."""

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


@dataclass(frozen=True)
class ScoringOptions:
    """What metrics leave open: `legacy` accepts strictly above the threshold, `action` points within the tolerance."""

    legacy_threshold: float = LEGACY_THRESHOLD
    point_tolerance_px: float = POINT_TOLERANCE_PX


@dataclass(frozen=True)
class DatasetFile:
    """A dataset as it was read: the file, the SHA-256 of its bytes, and its good and bad rows."""

    name: str
    kind: str
    file: str
    sha256: str
    episodes: int
    bad_rows: int


@dataclass(frozen=True)
class JobFacts:
    """What the records do not say. `planned_samples` None, and empty strings: not known.

    `base_model` to `embedder` is what ran when the job was accepted: the base model, the digest of its files and the
    type of its weights, the catalogue's revision, and the embedder's fingerprint. `version` is that of this code.
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
    """Mean seconds of an answer's phases, over the samples in which a phase was measured; None: in none of them.

    `retrieval_s` is the whole call of the retrieval service, `embed_s` and `search_s` are parts of it.
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
    """One strategy on one dataset, or on a group of datasets pooled sample by sample. Failed samples are unscored.

    `confusion` counts by true adapter which adapter came first; `failure` is what most of the failed samples say.
    `action` and `legacy` score the questions whose truth is in the action language, `texts` the others; `judge` is the
    mean grade of a judge, in [0, 1], once one has graded the job, and `judge_unscored` counts samples without a grade.
    `text_samples`, and `text_failed` of them, are the questions that `texts` is of.
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
        """Whether more than half of the samples failed, so that a score of the others is one of a selection."""
        return 2 * self.failed > self.samples


@dataclass(frozen=True)
class Difference:
    """Scores of a strategy, less those of another one, on the questions that both have a score for.

    `steps` is of steps right under `action`, `texts` of the exact match of whole answers, `judge` of a judge's grades.
    """

    strategy: str
    reference: str
    data: str
    steps: Estimate
    texts: Estimate = UNSCORED
    judge: Estimate = UNSCORED


@dataclass(frozen=True)
class Failure:
    """A sample without an answer, and why."""

    key: str
    strategy: str
    dataset: str
    reason: str
    message: str


def shared_floor(cells: Iterable[Cell]) -> float | None:
    """Return the step floor for strategies on the same samples, None: unscored.

    It is that of the cell with the most scored steps: of few samples a constant template fits too well.
    """
    fullest = max(cells, key=lambda cell: cell.action.steps.count, default=None)
    return None if fullest is None else fullest.action.step_floor


def _find(cells: tuple[Cell, ...], strategy: str, data: str) -> Cell | None:
    return next((cell for cell in cells if (cell.strategy, cell.data) == (strategy, data)), None)


@dataclass(frozen=True)
class Summary:
    """A job's numbers. `groups` are the kinds of datasets and `all`; bad rows and failures are some of many.

    `repeated_records` were ignored: they carry the key of an earlier one. The files of `changed_datasets` changed while
    the job ran; its samples are those that were planned. For `stale_samples` the catalogue could not be reached, and
    the last known one was searched.
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
        """Whether any question was answered whose true answer is in the action language."""
        return any(cell.action_parts and cell.action_parts.action_type.count for cell in self.groups)

    @property
    def has_texts(self) -> bool:
        """Whether any question was answered whose true answer is another text."""
        return any(cell.texts.exact_match.count for cell in self.groups)

    @property
    def only_texts(self) -> bool:
        """Whether no question of the job is answered by actions."""
        return self.has_texts and not self.has_actions

    @property
    def is_mixed(self) -> bool:
        """Whether the job has questions of both kinds, so that no score is of all of them."""
        return self.has_texts and self.has_actions

    @property
    def catalogue_changed(self) -> bool:
        """Whether answers came from a catalogue other than that of the time when the job was accepted."""
        return bool(self.facts.catalogue_revision) and not {self.facts.catalogue_revision}.issuperset(
            self.catalogue_revisions
        )

    def group(self, strategy: str, name: str) -> Cell | None:
        """Return the cell of a strategy and a group, or None when it has no record."""
        return _find(self.groups, strategy, name)

    def dataset(self, strategy: str, name: str) -> Cell | None:
        """Return the cell of a strategy and a dataset, or None when it has no record."""
        return _find(self.datasets, strategy, name)

    def mostly_failed_in(self, difference: Difference) -> bool:
        """Whether most samples of one of the two strategies failed, so that few questions are left to compare."""
        compared = (self.group(label, difference.data) for label in (difference.strategy, difference.reference))
        return any(cell is None or cell.mostly_failed for cell in compared)

    def to_json(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        dumped: dict[str, Any] = _SUMMARY.dump_python(self, mode="json")
        return dumped

    @classmethod
    def from_json(cls, data: Any) -> Summary:
        """Return the summary that `to_json` described."""
        return _SUMMARY.validate_python(data)


_SUMMARY = TypeAdapter(Summary)
