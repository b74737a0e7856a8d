"""Conversion of the values in messages: enums, durations, timestamps and vectors."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from loraretriever.v1 import retrieval_service_pb2

from infra.contract.errors import InvalidArgumentError

_E = TypeVar("_E", bound=StrEnum)


def enum_from_proto(cls: type[_E], wrapper: Any, value: int, name: str) -> _E | None:
    """Return the member of `cls` for a protobuf enum value; None if it is unspecified.

    `wrapper` is the protobuf enum: its names are those of the members with a common prefix. `name` is the field path.
    """
    if value == 0:
        return None
    prefix = wrapper.Name(0).removesuffix("UNSPECIFIED")
    members = {member.name: member for member in cls}
    if value not in wrapper.values():
        raise InvalidArgumentError(name, f"{value} is not a {cls.__name__}; use one of {', '.join(members)}")
    return members[wrapper.Name(value).removeprefix(prefix)]


def enum_to_proto(wrapper: Any, member: StrEnum | None) -> Any:
    """Return the protobuf enum value of a member; unspecified for None."""
    if member is None:
        return 0
    return wrapper.Value(wrapper.Name(0).removesuffix("UNSPECIFIED") + member.name)


def seconds_from_duration(message: Duration) -> float:
    """Return a duration in seconds."""
    return message.seconds + message.nanos * 1e-9


def duration_from_seconds(seconds: float) -> Duration:
    """Return seconds as a duration, to the nanosecond."""
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def datetime_from_timestamp(message: Timestamp) -> datetime:
    """Return a timestamp as an aware datetime in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def timestamp_from_datetime(moment: datetime) -> Timestamp:
    """Return an aware datetime as a timestamp."""
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def vector_from_proto(message: retrieval_service_pb2.Vector, path: str) -> bytes:
    """Return a vector's little-endian float32 bytes: at least one value, and only whole values.

    Dimension and finiteness are checked by the retrieval service, which knows the embedder. `path` is the vector's own,
    such as "vectors[0]".
    """
    data: bytes = message.float32
    if not data or len(data) % 4:
        raise InvalidArgumentError(
            f"{path}.float32", f"{len(data)} bytes are not a float32 vector; send 4 little-endian bytes per dimension"
        )
    return data


def vector_to_proto(data: bytes) -> retrieval_service_pb2.Vector:
    """Return little-endian float32 bytes as a vector message."""
    return retrieval_service_pb2.Vector(float32=data)
