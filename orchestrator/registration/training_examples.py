"""The inputs of an adapter's embedding: prompts from its training data, or existing vectors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Prompt
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.data.datasets import read_dataset
from orchestrator.evaluation.records import Sample
from orchestrator.evaluation.sample_plan import plan_samples
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol


def example_prompts(
    file: Path, *, count: int, seed: int, protocol: PromptProtocol = PromptProtocol.STEP
) -> list[Prompt]:
    """Return at most `count` prompts of a JSONL dataset, identical to those of an evaluation.

    Takes the samples with the smallest SHA-256 of seed and sample key, so the choice does not depend on the order of
    rows. Raises NotFoundError if the file cannot be read, InvalidArgumentError if none of its rows can.
    """
    if count < 1:
        raise InvalidArgumentError("count", f"must be at least 1, got {count}")
    return [sample_prompt(sample) for sample in ranked_samples(file, seed=seed, protocol=protocol)[:count]]


def ranked_samples(file: Path, *, seed: int, protocol: PromptProtocol = PromptProtocol.STEP) -> list[Sample]:
    """Return all samples of a JSONL dataset, ordered by the SHA-256 of seed and sample key."""
    return sorted(_samples(file, protocol), key=lambda sample: _rank(sample, seed))


def sample_prompt(sample: Sample) -> Prompt:
    """Return the prompt of a sample."""
    return sample.prompt([load_image(image) for image in sample.images])


def load_image(file: Path) -> ImagePart:
    """Return the image in a file. Raises InvalidArgumentError if it cannot be read."""
    try:
        return ImagePart(file.read_bytes())
    except OSError as error:
        raise InvalidArgumentError("image", f"{file} cannot be read: {error.strerror}") from error


def read_vectors(file: Path) -> list[bytes]:
    """Return the vectors of a `.npy` file, one mean [d] or m vectors [m, d], as little-endian float32 bytes."""
    import numpy as np

    try:
        with file.open("rb") as stream:
            loaded = np.lib.format.read_array(stream, allow_pickle=False)
    except OSError as error:
        raise InvalidArgumentError("vectors", f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        # numpy's own message advises to allow pickles, which would run code from the file.
        raise InvalidArgumentError(
            "vectors", f"{file} is not a complete .npy file of numbers; write it again with numpy.save"
        ) from error
    if loaded.ndim not in (1, 2) or loaded.size == 0 or loaded.dtype.kind not in "fiu":
        raise InvalidArgumentError("vectors", f"{file} has {loaded.dtype} {loaded.shape}; give [d] or [m, d] numbers")
    return [row.astype("<f4").tobytes() for row in np.atleast_2d(loaded)]


def _samples(file: Path, protocol: PromptProtocol) -> list[Sample]:
    dataset = DatasetSpec("examples", str(file.resolve()))
    spec = EvaluationSpec((dataset,), (EvaluatedStrategy(AnswerStrategy.BASE),), protocol)
    content = read_dataset(dataset, protocol=protocol, roots=[Path(file.resolve().anchor)])
    return plan_samples(spec, [content])


def _rank(sample: Sample, seed: int) -> str:
    return hashlib.sha256(f"{seed}\n{sample.key}".encode()).hexdigest()
