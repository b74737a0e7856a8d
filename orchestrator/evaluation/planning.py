"""Which samples a job consists of, and in which shards they travel. Pure: the same job gives the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby
from pathlib import Path
from urllib.parse import quote

from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.data.datasets import DatasetContent
from orchestrator.evaluation.data.files import file_sha256
from orchestrator.evaluation.data.rows import Episode
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol

DEFAULT_MAX_SAMPLES = 200_000
MEAN_CHARACTERS = 4_000


def plan_samples(
    spec: EvaluationSpec, contents: Sequence[DatasetContent], max_samples: int = DEFAULT_MAX_SAMPLES
) -> list[Sample]:
    """Return every sample of a job: dataset by dataset, episode by episode, all strategies of a question together.

    Strategies that put the same question travel together, so that what they retrieve is retrieved once; in the episode
    protocol, where questions depend on the strategy's own answers, the steps of an episode do. All strategies answer
    the same episodes. Raises InvalidArgumentError when no row of any dataset could be read, and before any sample is
    made where there would be too many, or too much text in them.
    """
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
    _check_size(spec, [episode for _, episodes in chosen for episode in episodes], max_samples)
    return [
        sample
        for dataset, episodes in chosen
        for episode in episodes
        for sample in _together(
            [list(_samples(episode, dataset, strategy, spec.protocol)) for strategy in spec.strategies], spec.protocol
        )
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


def split_into_shards(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Return the samples in order, in shards of at most `size`, none of which mixes datasets or cuts a chain in two.

    A chain that is longer than `size` is a shard of its own.
    """
    if size < 1:
        raise InvalidArgumentError("shard_size", f"must be at least 1, got {size}")
    cut: list[list[Sample]] = []
    for _, group in groupby(samples, key=lambda sample: sample.dataset):
        shard: list[Sample] = []
        for steps in sample_chains(list(group)):
            if shard and len(shard) + len(steps) > size:
                cut.append(shard)
                shard = []
            shard += steps
        cut.append(shard)
    return cut


def sample_chains(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Return samples in lists that are to be asked one after another: the steps of an episode where each needs the
    answers before it, and every sample alone in the other protocols.
    """
    by_episode: dict[object, list[Sample]] = {}
    for sample in samples:
        own = (sample.strategy.label, sample.dataset, sample.episode_id)
        by_episode.setdefault(own if sample.protocol is PromptProtocol.EPISODE else sample.key, []).append(sample)
    return [sorted(steps, key=lambda sample: sample.step) for steps in by_episode.values()]


def step_text(instruction: str, earlier: Sequence[str]) -> str:
    """Return the canonical text of one step: the instruction, and the actions so far where there are any."""
    if not earlier:
        return instruction
    return "\n".join([instruction, "Actions so far:", *earlier])


def _check_size(spec: EvaluationSpec, episodes: Sequence[Episode], max_samples: int) -> None:
    each = len(spec.strategies)
    is_whole = spec.protocol is PromptProtocol.SEQUENCE
    count = each * (len(episodes) if is_whole else sum(len(episode.actions) for episode in episodes))
    size = f"{len(spec.datasets):,} datasets, {len(episodes):,} episodes, {each} strategies"
    remedy = (
        "take fewer episodes of each dataset (max_episodes; on the command line --num-samples) or fewer strategies, or "
        "raise the orchestrator's max_samples"
    )
    if count > max_samples:
        raise InvalidArgumentError(
            "datasets",
            f"the job would have {count:,} samples ({size}), more than the {max_samples:,} that a job may have here; "
            + remedy,
        )
    characters = each * sum(_characters(episode, spec.protocol) for episode in episodes)
    if characters > max_samples * MEAN_CHARACTERS:
        raise InvalidArgumentError(
            "datasets",
            f"the {count:,} samples of the job ({size}) would have {characters:,} characters of text, more than "
            f"{MEAN_CHARACTERS:,} for each of the {max_samples:,} that a job may have here; {remedy}",
        )


def _characters(episode: Episode, protocol: PromptProtocol) -> int:
    """Return the characters of what an episode's samples ask, and of their true answers."""
    if protocol is PromptProtocol.SEQUENCE:
        return len(episode.instruction) + len(episode.response)
    lengths = [len(action) + 1 for action in episode.actions]
    told = sum(accumulate(lengths)) if protocol is PromptProtocol.STEP else sum(lengths)
    return len(episode.instruction) * len(lengths) + told


def _together(by_strategy: list[list[Sample]], protocol: PromptProtocol) -> Iterator[Sample]:
    """Yield the samples of an episode: step by step over all strategies, or strategy by strategy for `episode`."""
    return chain.from_iterable(by_strategy if protocol is PromptProtocol.EPISODE else zip(*by_strategy, strict=True))


def _samples(
    episode: Episode, dataset: DatasetSpec, strategy: EvaluatedStrategy, protocol: PromptProtocol
) -> Iterator[Sample]:
    if protocol is PromptProtocol.SEQUENCE:
        asked = [(episode.images, episode.instruction, episode.response)]
    else:
        asked = [
            ((image,), _step_text(episode, step, protocol), action)
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
            adapter_id=episode.adapter_id or None,
            image_sha256=tuple(map(_digest, images)),
        )


def _step_text(episode: Episode, step: int, protocol: PromptProtocol) -> str:
    """Return what a step is asked; in the episode protocol the worker adds the answers to the steps before."""
    return step_text(episode.instruction, episode.actions[:step] if protocol is PromptProtocol.STEP else ())


def _digest(image: Path) -> str:
    """Return an image's hash; empty where it went away after its row was read (its sample will say so)."""
    try:
        return file_sha256(image)
    except OSError:
        return ""


def _cluster(episode: Episode) -> str:
    """Return a name that the same episode has in every dataset that holds it, and no other episode has."""
    content = "\n".join((episode.instruction, *episode.actions))
    return f"{episode.episode_id}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
