"""Conversion of adapter.proto."""

from __future__ import annotations

from collections.abc import Iterable

from loraretriever.v1 import adapter_pb2

from infra.contract.adapter import Adapter
from infra.contract.composition import WeightedAdapter
from infra.contract.errors import field_path
from infra.runtime.wire.values import datetime_from_timestamp, timestamp_from_datetime


def adapter_from_proto(message: adapter_pb2.Adapter) -> Adapter:
    """Return an adapter."""
    return Adapter(
        adapter_id=message.adapter_id,
        base_model=message.base_model,
        checkpoint_uri=message.checkpoint_uri,
        kind=message.kind,
        display_name=message.display_name,
        description=message.description,
        tags=tuple(message.tags),
        rank=message.rank,
        revision=message.revision,
        example_count=message.example_count,
        update_time=datetime_from_timestamp(message.update_time) if message.HasField("update_time") else None,
        targets=tuple(message.targets),
    )


def adapter_to_proto(adapter: Adapter) -> adapter_pb2.Adapter:
    """Return an adapter as its message."""
    return adapter_pb2.Adapter(
        adapter_id=adapter.adapter_id,
        display_name=adapter.display_name,
        description=adapter.description,
        base_model=adapter.base_model,
        kind=adapter.kind,
        tags=adapter.tags,
        checkpoint_uri=adapter.checkpoint_uri,
        rank=adapter.rank,
        revision=adapter.revision,
        example_count=adapter.example_count,
        update_time=timestamp_from_datetime(adapter.update_time) if adapter.update_time is not None else None,
        targets=adapter.targets,
    )


def weighted_adapter_from_proto(message: adapter_pb2.WeightedAdapter) -> WeightedAdapter:
    """Return an adapter's share."""
    return WeightedAdapter(message.adapter_id, message.weight, message.revision)


def weighted_adapter_to_proto(adapter: WeightedAdapter) -> adapter_pb2.WeightedAdapter:
    """Return an adapter's share as its message."""
    return adapter_pb2.WeightedAdapter(adapter_id=adapter.adapter_id, revision=adapter.revision, weight=adapter.weight)


def weighted_adapters_from_proto(
    messages: Iterable[adapter_pb2.WeightedAdapter], name: str = "adapters"
) -> tuple[WeightedAdapter, ...]:
    """Return the shares. Field paths of errors start with "adapters[i]", or with `name` instead of "adapters"."""
    shares = []
    for index, message in enumerate(messages):
        with field_path(f"{name}[{index}]"):
            shares.append(weighted_adapter_from_proto(message))
    return tuple(shares)
