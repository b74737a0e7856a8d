"""Read existing result files: records of this system, and rows in the published study's format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from infra.contract.errors import InvalidArgumentError, LoraRetrieverError, NotFoundError
from orchestrator.evaluation.metrics.episodes import AnsweredEpisode, answer_at
from orchestrator.evaluation.metrics.paired import content_digest
from orchestrator.evaluation.metrics.text import AnsweredText
from orchestrator.evaluation.records import Record
from orchestrator.evaluation.scoring import answered_episodes, answered_texts
from orchestrator.evaluation.spec import PromptProtocol


@dataclass(frozen=True)
class Results:
    """The content of a result file: records of this system, or rows in the study's format.

    Attributes:
        source: name of the file or job, for errors and tables.
        records: records of this system.
        rows: rows in the study's format.
        modes: distinct values of the rows' field `mode`.
    """

    source: str
    records: tuple[Record, ...]
    rows: tuple[AnsweredEpisode, ...]
    modes: tuple[str, ...] = ()

    @property
    def strategies(self) -> tuple[str, ...]:
        """Labels of the records' strategies; empty for the study's rows."""
        return tuple(dict.fromkeys(record.sample.strategy.label for record in self.records))

    @property
    def protocols(self) -> tuple[str, ...]:
        """Protocols of the answers: those of the records, and the modes of the study's rows."""
        return tuple(dict.fromkeys([*(record.sample.protocol.value for record in self.records), *self.modes]))

    def of_strategy(self, strategy: str | None = None) -> Results:
        """Return the results of one strategy. Raises InvalidArgumentError if it is absent, or unnamed among several."""
        labels = self.strategies
        if strategy is None and len(labels) > 1:
            raise InvalidArgumentError(
                "strategy", f"{self.source} has several strategies ({', '.join(labels)}); choose one"
            )
        if strategy is not None and strategy not in labels:
            present = f"it has {', '.join(labels)}" if labels else "its rows have no strategies"
            raise InvalidArgumentError("strategy", f"{self.source} has no {strategy!r}; {present}")
        chosen = [record for record in self.records if strategy in (None, record.sample.strategy.label)]
        return replace(self, records=tuple(chosen))

    def by_strategy(self) -> dict[str | None, Results]:
        """Return the results of each strategy by label; a single or unnamed strategy has the key None."""
        if len(self.strategies) <= 1:
            return {None: self}
        return {label: self.of_strategy(label) for label in self.strategies}

    @property
    def truths(self) -> Iterator[str]:
        """The true answers of records and rows."""
        return chain((record.sample.truth for record in self.records), *(row.truths for row in self.rows))

    @property
    def episodes(self) -> list[AnsweredEpisode]:
        """Answers as episodes, the input of the action metrics."""
        return [*self.rows, *answered_episodes(self.records)]

    @property
    def whole_rows(self) -> list[AnsweredEpisode]:
        """Each episode as one answer of a line an action, as the study's whole-row scores compare it."""
        wholes = [record for record in self.records if record.sample.protocol is PromptProtocol.SEQUENCE]
        stepwise = [record for record in self.records if record.sample.protocol is not PromptProtocol.SEQUENCE]
        return [
            *map(_as_one_answer, [*self.rows, *answered_episodes(stepwise)]),
            *(
                AnsweredEpisode(
                    record.sample.dataset,
                    record.sample.cluster,
                    (record.sample.truth,),
                    (record.answer,),
                    record.sample.episode_id,
                )
                for record in wholes
            ),
        ]

    @property
    def answers(self) -> list[AnsweredText]:
        """Answers as texts, the input of the text metrics and of a judge."""
        rows = (
            AnsweredText(row.question(step), row.cluster, truth, answer_at(row, step))
            for row in self.rows
            for step, truth in enumerate(row.truths)
        )
        return [*rows, *answered_texts(self.records)]

    @property
    def failed_count(self) -> int:
        """Number of records without an answer."""
        return sum(record.error is not None for record in self.records)


def read_results(path: Path) -> Results:
    """Read a result file of either format. Raises NotFoundError, or InvalidArgumentError with file and line."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}; give a JSONL file of results") from error
    return parse_results(content, str(path))


def parse_results(content: bytes, source: str) -> Results:
    """Parse the bytes of a result file; `source` appears in errors."""
    records: list[Record] = []
    rows: list[AnsweredEpisode] = []
    modes: dict[str, None] = {}
    episode_counts: Counter[str] = Counter()
    for line, text in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
            if isinstance(fields, dict) and "sample" in fields:
                records.append(Record.from_json(fields))
                continue
            rows.append(_study_row(fields, episode_counts))
        except (ValueError, RecursionError, LoraRetrieverError) as error:
            raise InvalidArgumentError("", f"{source}:{line}: {_first_line(error)}") from error
        mode = fields.get("mode")
        if isinstance(mode, str) and mode:
            modes[mode] = None
    if not records and not rows:
        raise InvalidArgumentError("", f"{source} has no results")
    return Results(source, tuple(records), tuple(rows), tuple(modes))


def _study_row(fields: Any, episode_counts: Counter[str]) -> AnsweredEpisode:
    """Parse a row in the study's format.

    Its `episode_id` need not be unique, so the name carries the number of its occurrence in `episode_counts`.
    """
    if not isinstance(fields, dict) or not {"ground_truths", "predictions"} <= fields.keys():
        raise ValueError("neither a record (sample, answer) nor a result row (ground_truths, predictions)")
    truths, answers = (_texts(fields, name) for name in ("ground_truths", "predictions"))
    if not truths:
        raise ValueError("ground_truths is empty")
    episode = str(fields.get("episode_id", ""))
    episode_counts[episode] += 1
    name = f"{episode}-{episode_counts[episode]}"
    return AnsweredEpisode("", f"{name}-{content_digest(*truths)}", truths, answers, name)


def _as_one_answer(episode: AnsweredEpisode) -> AnsweredEpisode:
    answer = "\n".join(map(str, episode.answers)) if episode.is_complete else None
    return replace(episode, truths=("\n".join(episode.truths),), answers=(answer,))


def _texts(fields: dict[str, Any], name: str) -> tuple[str, ...]:
    value = fields[name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{name} must be a list of strings")
    return tuple(value)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
