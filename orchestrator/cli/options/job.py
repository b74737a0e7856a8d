"""The specification of a job, from the options of its commands."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.cli.options.answering import GreedyDecodingFlags, WeightingFlags
from orchestrator.cli.options.datasets import SampleOptions
from orchestrator.cli.options.scoring import ScoringFlags
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec


def evaluation_spec(
    datasets: Sequence[DatasetSpec],
    strategies: Sequence[EvaluatedStrategy],
    *,
    samples: SampleOptions,
    retrieval: WeightingFlags,
    decoding: GreedyDecodingFlags,
    scoring: ScoringFlags,
) -> EvaluationSpec:
    """Return the specification of a job. Raises InvalidArgumentError."""
    parameters = scoring.options()
    return EvaluationSpec(
        datasets=tuple(datasets),
        strategies=tuple(strategies),
        protocol=samples.protocol,
        retrieval=retrieval.options(),
        decoding=decoding.decoding(),
        max_episodes=samples.num_samples,
        seed=samples.seed,
        shard_size=samples.shard_size,
        image_root=samples.image_folder,
        legacy_threshold=parameters.legacy_threshold,
        point_tolerance_px=parameters.point_tolerance_px,
    )
