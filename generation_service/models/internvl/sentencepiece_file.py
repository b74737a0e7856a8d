"""Read a sentencepiece model file.

The file is a protocol buffer (sentencepiece_model.proto). The few fields needed are parsed from the wire format here,
because sentencepiece's generated classes refuse every protobuf runtime older than themselves (docs/decisions/0010).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from infra.contract.errors import CheckpointError

_VARINT, _EIGHT_BYTES, _MESSAGE, _FOUR_BYTES = 0, 1, 2, 5
_BPE = 2


class PieceKind(IntEnum):
    """The type of a piece (SentencePiece.Type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    BYTE = 6


@dataclass(frozen=True)
class SpmPiece:
    """One piece; its index in the file is its id."""

    text: str
    score: float = 0.0
    kind: PieceKind = PieceKind.NORMAL


@dataclass(frozen=True)
class SpmModel:
    """A sentencepiece BPE model, with settings named as in TrainerSpec and NormalizerSpec."""

    pieces: tuple[SpmPiece, ...]
    unk_id: int
    byte_fallback: bool
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    precompiled_charsmap: bytes


def read_sentencepiece(path: Path) -> SpmModel:
    """Return the model in `path`. Raises CheckpointError if the file is missing, broken, or not a BPE model."""
    try:
        return _model(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path.parent} has no {path.name}: give the complete folder as it was downloaded", path=str(path)
        ) from None
    except (OSError, ValueError, IndexError, struct.error) as error:
        raise CheckpointError(
            f"{path} is not a sentencepiece BPE model ({error}): download it again", path=str(path)
        ) from error


def _model(data: bytes) -> SpmModel:
    pieces: list[SpmPiece] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for field, value in _fields(data):
        if field == 1:
            pieces.append(_piece(_bytes(value)))
        elif field == 2:
            trainer = dict(_fields(_bytes(value)))
        elif field == 3:
            normalizer = dict(_fields(_bytes(value)))
    if not pieces or trainer.get(3) != _BPE:
        raise ValueError(f"{len(pieces)} pieces, model type {trainer.get(3)!r}")
    return SpmModel(
        pieces=tuple(pieces),
        unk_id=int(trainer.get(40, 0)),
        byte_fallback=bool(trainer.get(35, 0)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        precompiled_charsmap=_bytes(normalizer.get(2, b"")),
    )


def _piece(data: bytes) -> SpmPiece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _bytes(fields[2])) if 2 in fields else (0.0,)
    return SpmPiece(_bytes(fields.get(1, b"")).decode(), score, PieceKind(int(fields.get(3, PieceKind.NORMAL))))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the fields of a message: number and value, an integer or the bytes of any other type."""
    offset = 0
    while offset < len(data):
        key, offset = _varint(data, offset)
        kind = key & 7
        if kind == _VARINT:
            value, offset = _varint(data, offset)
            yield key >> 3, value
            continue
        if kind == _MESSAGE:
            size, offset = _varint(data, offset)
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if kind == _FOUR_BYTES else 8
        else:
            raise ValueError(f"unknown wire type {kind} at byte {offset}")
        if offset + size > len(data):
            raise ValueError("it ends in the middle of a field")
        yield key >> 3, data[offset : offset + size]
        offset += size


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[offset]
        value |= (byte & 0x7F) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 0x80:
            return value, offset


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("it has a number where bytes are expected")
    return value
