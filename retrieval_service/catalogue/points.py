"""What crosses the border to Qdrant: adapters as points, filters as conditions, vectors checked and averaged."""

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

CENTROID, EXAMPLES = "centroid", "examples"
KEPT_AS = "kept_as"
_NAMESPACE = uuid.UUID("5d3c8f2e-6d0b-4f0e-9a53-3f1f6f0c7b11")

_NO_DIRECTION = 1e-6  # a mean of unit vectors this short is rounding error


@dataclass(frozen=True)
class AdapterFilter:
    """Which adapters count. Empty fields filter nothing; all of `tags` must be there."""

    base_model: str = ""
    kind: str = ""
    tags: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def passes(self, adapter: Adapter) -> bool:
        """Return whether an adapter counts."""
        return (
            self.base_model in ("", adapter.base_model)
            and self.kind in ("", adapter.kind)
            and set(self.tags) <= set(adapter.tags)
            and (not self.include or adapter.adapter_id in self.include)
            and adapter.adapter_id not in self.exclude
        )


@dataclass(frozen=True)
class Found:
    """An adapter, and its similarity to the query, in [-1, 1], on the scale of the cosine with a centroid."""

    adapter: Adapter
    similarity: float


@dataclass(frozen=True)
class AdapterVectors:
    """The vectors of an adapter's examples [n, dim], and their mean [dim], each of length 1."""

    examples: FloatArray
    centroid: FloatArray

    @classmethod
    def of(cls, vectors: Sequence[FloatArray], dim: int) -> AdapterVectors:
        """Return the vectors, each brought to length 1, with their mean (LoraRetriever, section 3.2).

        Raises InvalidArgumentError, its path starting at `[i]`, for a vector that is not finite, not of `dim`, or
        zero; and, without a path, when there is none, or when they cancel each other out.
        """
        if not len(vectors):
            raise InvalidArgumentError("", "there is none; send at least one")
        for index, vector in enumerate(vectors):
            if len(vector) != dim:
                raise InvalidArgumentError(
                    f"[{index}]", f"has {len(vector)} dimensions; this server's embedder has {dim}"
                )
            if not np.isfinite(vector).all():
                raise InvalidArgumentError(f"[{index}]", "holds NaN or infinite values")
            if not vector.any():
                raise InvalidArgumentError(f"[{index}]", "is all zeros, which has no direction to compare")
        examples = normalise(np.stack(vectors))
        mean = examples.mean(axis=0, dtype=np.float64)
        if np.linalg.norm(mean) < _NO_DIRECTION:
            raise InvalidArgumentError("", "the vectors cancel each other out: their mean is zero")
        return cls(examples, normalise(mean))


def ranked(points: Sequence[models.ScoredPoint]) -> tuple[Found, ...]:
    """Return search results, most similar first, equals by id."""
    found = [Found(adapter_of(point), min(1.0, max(-1.0, point.score))) for point in points]
    found.sort(key=lambda one: one.adapter.adapter_id)
    order = ranking(np.array([[one.similarity for one in found]]))[0]
    return tuple(found[one] for one in order)


def condition(wanted: AdapterFilter) -> models.Filter | None:
    """Return the filter as Qdrant takes it; None when it filters nothing."""
    must: list[models.Condition] = [
        equals(name, value) for name, value in (("base_model", wanted.base_model), ("kind", wanted.kind)) if value
    ]
    must += [equals("tags", tag) for tag in wanted.tags]
    if wanted.include:
        must.append(models.HasIdCondition(has_id=[point_id(one) for one in wanted.include]))
    must_not: list[models.Condition] = []
    if wanted.exclude:
        must_not.append(models.HasIdCondition(has_id=[point_id(one) for one in wanted.exclude]))
    return models.Filter(must=must, must_not=must_not) if must or must_not else None


def equals(name: str, value: str) -> models.FieldCondition:
    """Return the condition that a field of the payload is, or contains, `value`."""
    return models.FieldCondition(key=name, match=models.MatchValue(value=value))


def point_id(adapter_id: str) -> str:
    """Return the UUID of an adapter's point."""
    return str(uuid.uuid5(_NAMESPACE, adapter_id))


def point_of(adapter: Adapter, vector: Any, kept_as: str = "") -> models.PointStruct:
    """Return an adapter as a point with these named vectors, and the revision that its examples are kept as."""
    payload = _payload(adapter) | {KEPT_AS: kept_as}
    return models.PointStruct(id=point_id(adapter.adapter_id), vector=vector, payload=payload)


def _payload(adapter: Adapter) -> dict[str, Any]:
    moment = adapter.update_time
    lists = {"tags": list(adapter.tags), "targets": list(adapter.targets)}
    return asdict(adapter) | lists | {"update_time": moment.isoformat() if moment else None}


def adapter_of(point: models.Record | models.ScoredPoint) -> Adapter:
    """Return the adapter that a point stands for."""
    payload, known = {"targets": [], **(point.payload or {})}, {field.name for field in fields(Adapter)}
    if not known <= payload.keys():
        raise FailedPreconditionError(f"point {point.id} of the catalogue is no adapter; who else writes to it?")
    values = {name: payload[name] for name in known}
    moment = values["update_time"]
    values |= {"tags": tuple(values["tags"]), "targets": tuple(values["targets"])}
    values |= {"update_time": datetime.fromisoformat(moment) if moment else None}
    return Adapter(**values)
