"""From a spec to a planned job: datasets found and read, samples cut into shards, true adapters checked."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from infra.contract.errors import FailedPreconditionError
from orchestrator.evaluation.data.datasets import read_datasets
from orchestrator.evaluation.data.files import MAX_DATASET_BYTES, resolve_datasets
from orchestrator.evaluation.report.summarize import dataset_files
from orchestrator.evaluation.sample_plan import DEFAULT_MAX_SAMPLES, plan_samples, split_into_shards
from orchestrator.evaluation.spec import EvaluationSpec
from orchestrator.jobs.ledger.types import NewEvaluation
from orchestrator.jobs.provenance import RunningSystem, System

_MAX_BAD_ROWS = 1000  # That many are kept for the report; the others are only counted.
_MAX_NAMED_ADAPTERS = 5


@dataclass(frozen=True)
class JobOptions:
    """Where datasets may be read and results are written, the default shard size, and how large a job may be."""

    dataset_roots: tuple[Path, ...]
    output_uri: str
    shard_size: int = 40
    max_samples: int = DEFAULT_MAX_SAMPLES
    max_dataset_bytes: int = MAX_DATASET_BYTES


async def plan_job(spec: EvaluationSpec, options: JobOptions, system: System) -> NewEvaluation:
    """Return the job of a spec, ready to be published.

    Raises:
        NotFoundError: a dataset does not exist.
        InvalidArgumentError: a dataset cannot be read, or the job is too large.
        FailedPreconditionError: a dataset has another content, or the catalogue lacks an adapter, than the spec says.
    """
    resolved = await asyncio.to_thread(resolve_datasets, spec, options.dataset_roots, options.max_dataset_bytes)
    job = await asyncio.to_thread(_plan, resolved, options, await system.running())
    await _check_true_adapters(job, system)
    return job


def _plan(spec: EvaluationSpec, options: JobOptions, running: RunningSystem) -> NewEvaluation:
    contents = read_datasets(
        spec.datasets,
        protocol=spec.protocol,
        roots=options.dataset_roots,
        image_root=spec.image_root,
        max_bytes=options.max_dataset_bytes,
    )
    samples = plan_samples(spec, contents, options.max_samples)
    bad_rows = [bad_row for content in contents for bad_row in content.bad_rows]
    return NewEvaluation(
        spec=spec,
        shards=split_into_shards(samples, spec.shard_size or options.shard_size),
        output_uri=options.output_uri,
        bad_rows=[asdict(bad_row) for bad_row in bad_rows[:_MAX_BAD_ROWS]],
        bad_row_count=len(bad_rows),
        provenance={
            "files": [asdict(file) for file in dataset_files(contents)],
            "system": asdict(running),
            "version": version("loraretriever"),
        },
    )


async def _check_true_adapters(job: NewEvaluation, system: System) -> None:
    """Raise FailedPreconditionError for a true adapter that the catalogue lacks.

    Such an adapter can be neither retrieved nor excluded: retrieval would always be wrong, and "out of domain" would be
    in domain.
    """
    datasets = {sample.adapter_id: sample.dataset for shard in job.shards for sample in shard if sample.adapter_id}
    catalogue = await system.adapter_ids() if datasets else None
    unknown = sorted(set(datasets) - catalogue) if catalogue is not None else []
    if unknown:
        names = ", ".join(map(repr, unknown[:_MAX_NAMED_ADAPTERS]))
        raise FailedPreconditionError(
            f"the catalogue holds no adapter {names}, which the job names as trained for "
            f"dataset {datasets[unknown[0]]!r}; register it, or name another (or none)",
            adapter_id=unknown[0],
            dataset=datasets[unknown[0]],
        )
