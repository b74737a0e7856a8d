"""Plan a job: choose its episodes, turn them into samples, and group samples into shards.

Pure: the same spec and dataset contents always give the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

# Bounds the memory of a plan: a job may have max_samples * MEAN_CHARACTERS characters of prompts and true answers.
MEAN_CHARACTERS = 4_000


def plan_samples(
    spec: EvaluationSpec, contents: Sequence[DatasetContent], max_samples: int = DEFAULT_MAX_SAMPLES
) -> list[Sample]:
    """Return all samples of a job, ordered by dataset and episode.

    Within an episode the order is step by step with all strategies of a step adjacent, so that they share one
    retrieval. In the episode protocol, where a prompt depends on the strategy's own answers, it is strategy by
    strategy. All strategies answer the same episodes.

    Raises InvalidArgumentError if no row of any dataset could be read, or if the job would exceed the limits on
    samples or text. Limits are checked before any sample is built.
    """
    chosen = [
        (
            content.dataset,
            list(content.episodes[: spec.max_episodes])
            if spec.first_episodes
            else choose_episodes(content.episodes, spec.max_episodes, spec.seed),
        )
        for content in contents
    ]
    if not any(episodes for _, episodes in chosen):
        raise InvalidArgumentError("datasets", f"no row could be read; {_why_empty(contents)}")
    _check_size(spec, [episode for _, episodes in chosen for episode in episodes], max_samples)
    return [
        sample
        for dataset, episodes in chosen
        for episode in episodes
        for sample in _interleave(
            [list(_samples(episode, dataset, strategy, spec)) for strategy in spec.strategies],
            episode.protocol(spec.protocol),
        )
    ]


def choose_episodes(episodes: Sequence[Episode], max_episodes: int | None, seed: int) -> list[Episode]:
    """Return at most `max_episodes` episodes, in file order.

    Takes the episodes with the smallest SHA-256 of seed, dataset and episode id. The choice depends neither on the
    order of rows nor on the Python version, and a smaller choice is a subset of a larger one.
    """
    if max_episodes is None or len(episodes) <= max_episodes:
        return list(episodes)

    def rank(episode: Episode) -> str:
        return hashlib.sha256(f"{seed}\n{episode.dataset}\n{episode.episode_id}".encode()).hexdigest()

    return sorted(sorted(episodes, key=rank)[:max_episodes], key=lambda episode: episode.line)


def split_into_shards(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """Split samples, in order, into shards of at most `size`.

    A shard never mixes datasets and never splits a chain; a chain longer than `size` becomes a shard of its own.
    """
    if size < 1:
        raise InvalidArgumentError("shard_size", f"must be at least 1, got {size}")
    shards: list[list[Sample]] = []
    for _, group in groupby(samples, key=lambda sample: sample.dataset):
        shard: list[Sample] = []
        for steps in sample_chains(list(group)):
            if shard and len(shard) + len(steps) > size:
                shards.append(shard)
                shard = []
            shard += steps
        shards.append(shard)
    return shards


def sample_chains(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Group samples into chains that must run sequentially.

    In the episode protocol the steps of an episode form a chain, since each step needs the answers before it. In the
    other protocols every sample is a chain of its own.
    """
    by_episode: dict[object, list[Sample]] = {}
    for sample in samples:
        episode = (sample.strategy.label, sample.dataset, sample.episode_id)
        by_episode.setdefault(episode if sample.protocol is PromptProtocol.EPISODE else sample.key, []).append(sample)
    return [sorted(steps, key=lambda sample: sample.step) for steps in by_episode.values()]


def step_text(instruction: str, earlier: Sequence[str]) -> str:
    """Return the canonical prompt text of one step: the instruction, then the earlier actions if there are any."""
    if not earlier:
        return instruction
    return "\n".join([instruction, "Actions so far:", *earlier])


def _why_empty(contents: Sequence[DatasetContent]) -> str:
    bad_rows = [bad for content in contents for bad in content.bad_rows]
    if not bad_rows:
        return "the files are empty"
    first = bad_rows[0]
    return f"the first of {len(bad_rows)} bad rows is {first.file}:{first.line}: {first.problem}"


def _check_size(spec: EvaluationSpec, episodes: Sequence[Episode], max_samples: int) -> None:
    strategies = len(spec.strategies)
    count = strategies * sum(_sample_count(episode, spec.protocol) for episode in episodes)
    size = f"{len(spec.datasets):,} datasets, {len(episodes):,} episodes, {strategies} strategies"
    remedy = (
        "use fewer episodes per dataset (max_episodes; on the command line --num-samples) or fewer strategies, or "
        "raise the orchestrator's max_samples"
    )
    if count > max_samples:
        raise InvalidArgumentError(
            "datasets",
            f"the job would have {count:,} samples ({size}), more than the limit of {max_samples:,}; {remedy}",
        )
    characters = strategies * sum(_characters(episode, spec.protocol) for episode in episodes)
    if characters > max_samples * MEAN_CHARACTERS:
        raise InvalidArgumentError(
            "datasets",
            f"the {count:,} samples of the job ({size}) would have {characters:,} characters of text, more than the "
            f"limit of {MEAN_CHARACTERS:,} for each of {max_samples:,} samples; {remedy}",
        )


def _sample_count(episode: Episode, requested: PromptProtocol) -> int:
    return 1 if episode.protocol(requested) is PromptProtocol.SEQUENCE else len(episode.actions)


def _characters(episode: Episode, requested: PromptProtocol) -> int:
    """Return the number of characters in the prompts and true answers of an episode's samples."""
    protocol = episode.protocol(requested)
    if protocol is PromptProtocol.SEQUENCE:
        return len(episode.system) + len(episode.instruction) + len(episode.response)
    lengths = [len(action) + 1 for action in episode.actions]
    actions = sum(accumulate(lengths)) if protocol is PromptProtocol.STEP else sum(lengths)
    return (len(episode.system) + len(episode.instruction)) * len(lengths) + actions


def _interleave(by_strategy: list[list[Sample]], protocol: PromptProtocol) -> Iterator[Sample]:
    """Yield the samples of an episode step by step over all strategies, or strategy by strategy for `episode`."""
    return chain.from_iterable(by_strategy if protocol is PromptProtocol.EPISODE else zip(*by_strategy, strict=True))


@dataclass(frozen=True)
class _Question:
    images: tuple[Path, ...]
    text: str
    truth: str


def _questions(episode: Episode, protocol: PromptProtocol, max_images: int | None) -> list[_Question]:
    match protocol:
        case PromptProtocol.SEQUENCE:
            return [
                _Question(episode.images[-(max_images or len(episode.images)) :], episode.instruction, episode.response)
            ]
        case PromptProtocol.STEP:
            texts = [step_text(episode.instruction, episode.actions[:step]) for step in range(len(episode.actions))]
        case PromptProtocol.EPISODE:
            # The worker adds the model's own answers to the earlier steps.
            texts = [episode.instruction] * len(episode.actions)
    steps = zip(episode.images, texts, episode.actions, strict=True)
    return [_Question((image,), text, action) for image, text, action in steps]


def _samples(
    episode: Episode, dataset: DatasetSpec, strategy: EvaluatedStrategy, spec: EvaluationSpec
) -> Iterator[Sample]:
    protocol = episode.protocol(spec.protocol)
    for step, question in enumerate(_questions(episode, protocol, spec.max_images)):
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
            images=question.images,
            text=question.text,
            truth=question.truth,
            adapter_id=episode.adapter_id or None,
            system=episode.system,
            image_sha256=tuple(map(_sha256_if_present, question.images)),
        )


def _sha256_if_present(image: Path) -> str:
    """Return an image's SHA-256; empty if it has disappeared since its row was read, in which case the sample fails."""
    try:
        return file_sha256(image)
    except OSError:
        return ""


def _cluster(episode: Episode) -> str:
    """Return a name shared by the same episode in every dataset that contains it, and by no other episode."""
    content = "\n".join((episode.instruction, *episode.actions))
    return f"{episode.episode_id}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
