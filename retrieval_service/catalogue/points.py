"""Conversions at the Qdrant boundary: adapters to points, filters to conditions, vectors validated and averaged."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from typing import Any

import numpy as np
from qdrant_client import models

from infra.contract.adapter import Adapter
from infra.contract.errors import FailedPreconditionError, InvalidArgumentError
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.temperature import DEFAULT_TEMPERATURE

CENTROID, EXAMPLES = "centroid", "examples"
_EXAMPLES_REVISION = "kept_as"  # payload field; the name is part of the stored format
_NAMESPACE = uuid.UUID("5d3c8f2e-6d0b-4f0e-9a53-3f1f6f0c7b11")

_MIN_MEAN_LENGTH = 1e-6  # the mean of unit vectors is rounding error below this length


@dataclass(frozen=True)
class AdapterFilter:
    """Conditions on adapters. Empty fields match everything; all of `tags` must be present."""

    base_model: str = ""
    kind: str = ""
    tags: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def matches(self, adapter: Adapter) -> bool:
        """Return whether an adapter satisfies all conditions."""
        return (
            self.base_model in ("", adapter.base_model)
            and self.kind in ("", adapter.kind)
            and set(self.tags) <= set(adapter.tags)
            and (not self.include or adapter.adapter_id in self.include)
            and adapter.adapter_id not in self.exclude
        )


@dataclass(frozen=True)
class ScoredAdapter:
    """An adapter and its similarity to the query, in [-1, 1], on the scale of the cosine with a centroid.

    `log_weight` is the logarithm of the adapter's probability up to a constant; under `two_covariance` its log-odds
    against an adapter that is not registered.
    """

    adapter: Adapter
    similarity: float
    log_weight: float


@dataclass(frozen=True)
class AdapterVectors:
    """The vectors of an adapter's examples [n, dim] and their mean [dim], each of length 1."""

    examples: FloatArray
    centroid: FloatArray

    @classmethod
    def of(cls, vectors: Sequence[FloatArray], dim: int) -> AdapterVectors:
        """Return the vectors, each normalised to length 1, with their mean (LoraRetriever, section 3.2).

        Raises InvalidArgumentError if a vector is not finite, not of `dim`, or zero (the field path starts at `[i]`),
        and, without a path, if there are no vectors or they cancel each other out.
        """
        if not len(vectors):
            raise InvalidArgumentError("", "is empty; send at least one")
        for index, vector in enumerate(vectors):
            if len(vector) != dim:
                raise InvalidArgumentError(
                    f"[{index}]", f"has {len(vector)} dimensions; this server's embedder has {dim}"
                )
            if not np.isfinite(vector).all():
                raise InvalidArgumentError(f"[{index}]", "contains NaN or infinite values")
            if not vector.any():
                raise InvalidArgumentError(f"[{index}]", "is all zeros, which has no direction to compare")
        examples = normalise(np.stack(vectors))
        mean = examples.mean(axis=0, dtype=np.float64)
        if np.linalg.norm(mean) < _MIN_MEAN_LENGTH:
            raise InvalidArgumentError("", "the vectors cancel each other out: their mean is zero")
        return cls(examples, normalise(mean))


def ranked_adapters(points: Sequence[models.ScoredPoint]) -> tuple[ScoredAdapter, ...]:
    """Return search results by falling similarity, ties by adapter id."""
    similarities = [min(1.0, max(-1.0, point.score)) for point in points]
    scored = [
        ScoredAdapter(from_point(point), similarity, similarity / DEFAULT_TEMPERATURE)
        for point, similarity in zip(points, similarities, strict=True)
    ]
    scored.sort(key=lambda match: match.adapter.adapter_id)
    order = ranking(np.array([[match.similarity for match in scored]]))[0]
    return tuple(scored[index] for index in order)


def to_qdrant_filter(adapter_filter: AdapterFilter) -> models.Filter | None:
    """Return the filter in Qdrant's form, or None if it matches everything."""
    exact = (("base_model", adapter_filter.base_model), ("kind", adapter_filter.kind))
    must: list[models.Condition] = [field_equals(name, value) for name, value in exact if value]
    must += [field_equals("tags", tag) for tag in adapter_filter.tags]
    if adapter_filter.include:
        must.append(models.HasIdCondition(has_id=[point_id(name) for name in adapter_filter.include]))
    must_not: list[models.Condition] = []
    if adapter_filter.exclude:
        must_not.append(models.HasIdCondition(has_id=[point_id(name) for name in adapter_filter.exclude]))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def field_equals(name: str, value: str) -> models.FieldCondition:
    """Return the condition that a payload field equals, or contains, `value`."""
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))


def point_id(adapter_id: str) -> str:
    """Return the UUID of an adapter's point. Qdrant accepts only integers and UUIDs as ids."""
    return str(uuid.uuid5(_NAMESPACE, adapter_id))


def to_point(adapter: Adapter, vector: Any, examples_revision: str = "") -> models.PointStruct:
    """Return an adapter as a point with these named vectors and the revision under which its examples are stored."""
    payload = _payload(adapter) | {_EXAMPLES_REVISION: examples_revision}
    return models.PointStruct(id=point_id(adapter.adapter_id), vector=vector, payload=payload)


def from_point(point: models.Record | models.ScoredPoint) -> Adapter:
    """Return the adapter that a point represents."""
    names = {field.name for field in fields(Adapter)}
    payload = {"targets": [], **(point.payload or {})}  # points of older versions have no targets
    if not names <= payload.keys():
        raise FailedPreconditionError(
            f"point {point.id} of the catalogue is not an adapter; check which other program writes to this collection"
        )
    values = {name: payload[name] for name in names}
    moment = values["update_time"]
    values |= {"tags": tuple(values["tags"]), "targets": tuple(values["targets"])}
    values |= {"update_time": datetime.fromisoformat(moment) if moment else None}
    return Adapter(**values)


def examples_revision_of(point: models.Record) -> str:
    """Return the revision under which the examples of a point's adapter are stored, or an empty string."""
    return str((point.payload or {}).get(_EXAMPLES_REVISION, ""))


def _payload(adapter: Adapter) -> dict[str, Any]:
    moment = adapter.update_time
    lists = {"tags": list(adapter.tags), "targets": list(adapter.targets)}
    return asdict(adapter) | lists | {"update_time": moment.isoformat() if moment else None}
