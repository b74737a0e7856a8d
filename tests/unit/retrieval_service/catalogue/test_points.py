"""Validation and averaging of vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from infra.contract.errors import (
    InvalidArgumentError,
)
from retrieval_service.catalogue.points import AdapterVectors

DIM = 8


def basis(index: int, *more: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    vector = np.zeros(DIM, np.float32)
    vector[[index, *more]] = 1
    return vector


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "is empty"),
        ([basis(0), basis(0)[:4]], r"\[1\]: has 4 dimensions; this server's embedder has 8"),
        ([basis(0) * np.nan], r"\[0\]: contains NaN"),
        ([basis(0), basis(1) + np.inf], r"\[1\]: contains NaN or infinite"),
        ([basis(0) * 0], r"\[0\]: is all zeros"),
        ([basis(0), -basis(0)], "cancel each other out"),
    ],
)
def test_vectors_without_direction_are_refused(given: list[Any], problem: str) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(InvalidArgumentError, match=problem):
        AdapterVectors.of(given, DIM)


def test_extreme_but_finite_vectors_keep_their_direction() -> None:
    tiny, huge = basis(0) * np.float32(1e-40), basis(1) * np.float32(3e38)
    both = AdapterVectors.of([tiny, huge], DIM)
    np.testing.assert_allclose(both.examples, [basis(0), basis(1)], atol=1e-6)
    np.testing.assert_allclose(both.centroid, basis(0, 1) / 2**0.5, atol=1e-6)
