"""Which samples a job consists of, and in which shards they travel. Pure: the same job gives the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from urllib.parse import quote

from infra.contract.errors import InvalidArgumentError, UnimplementedError
from orchestrator.evaluation.datasets import DatasetContent, Episode
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, Protocol


def plan(spec: EvaluationSpec, contents: Sequence[DatasetContent]) -> list[Sample]:
    """Return every sample of a job: strategy by strategy, dataset by dataset, episode by episode, step by step.

    All strategies answer the same episodes. Raises UnimplementedError for the episode protocol, and
    InvalidArgumentError when no row of any dataset could be read.
    """
    if spec.protocol is Protocol.EPISODE:
        raise UnimplementedError(
            "the episode protocol asks each step with the model's own earlier actions, so its samples cannot be "
            "planned ahead; it is not implemented yet, use step or sequence"
        )
    chosen = [
        (content.dataset, choose_episodes(content.episodes, spec.max_episodes, spec.seed)) for content in contents
    ]
    if not any(episodes for _, episodes in chosen):
        bad_rows = [bad for content in contents for bad in content.bad_rows]
        first = "the files are empty"
        if bad_rows:
            bad = bad_rows[0]
            first = f"the first of {len(bad_rows)} bad rows is {bad.file}:{bad.line}: {bad.problem}"
        raise InvalidArgumentError("datasets", f"no row could be read; {first}")
    return [
        sample
        for strategy in spec.strategies
        for dataset, episodes in chosen
        for episode in episodes
        for sample in _samples(episode, dataset, strategy, spec.protocol)
    ]


def choose_episodes(episodes: Sequence[Episode], max_episodes: int | None, seed: int) -> list[Episode]:
    """Return at most `max_episodes` episodes, in file order.

    Those with the smallest SHA-256 of seed, dataset and episode id are taken, so that the choice depends neither on
    the order of rows nor on the Python version, and a smaller choice is part of a larger one.
    """
    if max_episodes is None or len(episodes) <= max_episodes:
        return list(episodes)

    def rank(episode: Episode) -> str:
        return hashlib.sha256(f"{seed}\n{episode.dataset}\n{episode.episode_id}".encode()).hexdigest()

    return sorted(sorted(episodes, key=rank)[:max_episodes], key=lambda episode: episode.line)


def shards(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return the samples in order, in shards of at most `size`, none of which mixes datasets or strategies."""
    if size < 1:
        raise InvalidArgumentError("shard_size", f"must be at least 1, got {size}")
    cut: list[list[Sample]] = []
    for _, group in groupby(samples, key=lambda sample: (sample.strategy.label, sample.dataset)):
        together = list(group)
        cut += [together[start : start + size] for start in range(0, len(together), size)]
    return cut


def step_text(instruction: str, earlier: Sequence[str]) -> str:
    """Return the canonical text of one step: the instruction, and the actions so far where there are any."""
    if not earlier:
        return instruction
    return "\n".join([instruction, "Actions so far:", *earlier])


def _samples(
    episode: Episode, dataset: DatasetSpec, strategy: EvaluatedStrategy, protocol: Protocol
) -> Iterator[Sample]:
    if protocol is Protocol.SEQUENCE:
        asked = [(episode.images, episode.instruction, "\n".join(episode.actions))]
    else:
        asked = [
            ((image,), step_text(episode.instruction, episode.actions[:step]), action)
            for step, (image, action) in enumerate(zip(episode.images, episode.actions, strict=True))
        ]
    for step, (images, text, truth) in enumerate(asked):
        yield Sample(
            key="/".join((strategy.label, dataset.name, quote(episode.episode_id, safe=""), str(step))),
            dataset=dataset.name,
            kind=dataset.kind,
            episode_id=episode.episode_id,
            cluster=_cluster(episode),
            protocol=protocol,
            step=step,
            step_count=len(episode.actions),
            strategy=strategy,
            images=images,
            text=text,
            truth=truth,
            adapter_id=dataset.adapter_id or None,
        )


def _cluster(episode: Episode) -> str:
    """Return a name that the same episode has in every dataset that holds it, and no other episode has."""
    content = "\n".join((episode.instruction, *episode.actions))
    return f"{episode.episode_id}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
