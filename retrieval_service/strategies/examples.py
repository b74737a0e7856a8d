"""The example vectors of many adapters as one array. Every strategy is fitted on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval_service.embedders.base import FloatArray, normalise

IntArray = NDArray[np.int64]
Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ExampleSet:
    """Adapters by id, sorted, and their examples: `vectors` [n, dim] of length 1, grouped by `owners` [n].

    `owners` holds ascending positions in `ids`; every adapter has an example. `kinds` has one entry per adapter.
    """

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    vectors: FloatArray
    owners: IntArray

    @classmethod
    def of(cls, examples: Mapping[str, FloatArray], kinds: Mapping[str, str] | None = None) -> ExampleSet:
        """Return the set of `examples`, one array [n, dim] per adapter, each vector normalised to length 1."""
        ids = tuple(sorted(examples))
        arrays = [examples[adapter_id] for adapter_id in ids]
        owners = np.repeat(np.arange(len(ids)), [len(array) for array in arrays])
        vectors = normalise(np.concatenate(arrays)) if arrays else np.zeros((0, 0), np.float32)
        return cls(ids, tuple((kinds or {}).get(adapter_id, "") for adapter_id in ids), vectors, owners)

    @cached_property
    def counts(self) -> IntArray:
        """Examples of each adapter, [adapters]."""
        return np.bincount(self.owners, minlength=len(self.ids)).astype(np.int64)

    @cached_property
    def starts(self) -> IntArray:
        """The first row of each adapter, [adapters]."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]]).astype(np.int64)

    @cached_property
    def means(self) -> Float64Array:
        """The mean of each adapter's examples, [adapters, dim], not normalised (LoraRetriever, section 3.2)."""
        if not len(self.ids):
            return np.zeros((0, self.dim))
        sums: Any = np.add.reduceat(self.vectors, self.starts, axis=0, dtype=np.float64)
        return np.asarray(sums / self.counts[:, None], np.float64)

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return int(self.vectors.shape[1])

    def rows_of(self, adapter: int) -> IntArray:
        """Return the rows of one adapter."""
        return np.arange(self.starts[adapter], self.starts[adapter] + self.counts[adapter])

    def without(self, left_out: int | IntArray) -> ExampleSet:
        """Return the set without some examples, whose adapters must have others."""
        rows = np.delete(np.arange(len(self.owners)), left_out)
        return ExampleSet(self.ids, self.kinds, self.vectors[rows], self.owners[rows])

    def without_adapter(self, adapter: int) -> ExampleSet:
        """Return the set without one adapter."""
        rows = np.flatnonzero(self.owners != adapter)
        owners = self.owners[rows] - (self.owners[rows] > adapter)
        ids, kinds = (tuple(np.delete(np.array(names, object), adapter)) for names in (self.ids, self.kinds))
        return ExampleSet(ids, kinds, self.vectors[rows], owners)

    @cached_property
    def twins(self) -> dict[int, IntArray]:
        """The rows that hold the same vector as a row, under other adapters, by row."""
        _, groups = np.unique(self.vectors, axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        order = np.argsort(groups, kind="stable").astype(np.int64)
        found: dict[int, IntArray] = {}
        for group in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
            owners = self.owners[group]
            for row, owner in zip(group.tolist(), owners, strict=True):
                others = group[owners != owner]
                if len(others):
                    found[row] = others
        return found

    def mean_without(self, row: int) -> Float64Array:
        """Return the mean of the adapter's other examples, [dim]; it must have others."""
        owner = self.owners[row]
        count = self.counts[owner]
        return np.asarray((count * self.means[owner] - self.vectors[row]) / (count - 1), np.float64)

    def testable(self, at_most: int | None = None) -> IntArray:
        """Return the rows whose adapters have other examples, evenly thinned to `at_most`."""
        rows = np.flatnonzero(self.counts[self.owners] > 1)
        if at_most is not None and len(rows) > at_most:
            rows = rows[np.arange(at_most) * len(rows) // at_most]
        return rows.astype(np.int64)


def chunks(count: int, size: int = 256) -> Sequence[slice]:
    """Return slices that cover `count` rows, `size` at a time."""
    return [slice(start, start + size) for start in range(0, count, size)]


def lengths(vectors: NDArray[Any]) -> Float64Array:
    """Return the Euclidean length of each vector of [..., dim], 1 for a zero vector."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=-1)
    return np.where(norms > 0, norms, 1.0)
