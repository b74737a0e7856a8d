"""The embedder protocol, and the type and length of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from infra.contract.prompt import Prompt

FloatArray = NDArray[np.float32]


class Embedder(Protocol):
    """Prompts -> vectors of length 1. Safe to call from many threads."""

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights and every setting that changes a vector: equal fingerprints, comparable vectors."""
        ...

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector per prompt, [len(prompts), dim].

        Raises InvalidArgumentError if a prompt cannot be embedded; the field path starts at `[i]` of the prompt.
        """
        ...


def normalise(vectors: NDArray[np.floating]) -> FloatArray:
    """Return the vectors, [..., dim], each divided by its Euclidean length; a zero vector stays zero."""
    exact = vectors.astype(np.float64)
    length = np.linalg.norm(exact, axis=-1, keepdims=True)
    return (exact / np.where(length > 0, length, 1.0)).astype(np.float32)
