"""Tiny sentencepiece BPE models, written field by field (sentencepiece_model.proto), without sentencepiece."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


def sentencepiece_bpe(
    corpus: Iterable[str], vocabulary: int, *, user_defined: Sequence[str] = (), dummy_prefix: bool = False
) -> tuple[bytes, int]:
    """Return a model trained on `corpus` as a file's bytes, and the number of its pieces.

    In order: unknown, begin and end; 256 bytes; merged pieces, best first; characters; the user-defined pieces.
    """
    merged, characters = _trained(corpus, vocabulary)
    pieces = [("<unk>", 0.0, _UNKNOWN), ("<s>", 0.0, _CONTROL), ("</s>", 0.0, _CONTROL)]
    pieces += [(f"<0x{byte:02X}>", 0.0, _BYTE) for byte in range(256)]
    pieces += [(piece, float(-rank), _NORMAL) for rank, piece in enumerate([*merged, *characters])]
    pieces += [(piece, 0.0, _USER_DEFINED) for piece in user_defined]
    messages = b"".join(
        _bytes(1, _bytes(1, text.encode()) + _float(2, score) + _int(3, kind)) for text, score, kind in pieces
    )
    trainer = _int(3, 2) + _int(4, len(pieces)) + _int(35, 1) + _int(40, 0) + _int(41, 1) + _int(42, 2)
    normalizer = _bytes(1, b"identity") + _int(3, int(dummy_prefix)) + _int(4, 0) + _int(5, 1)
    return messages + _bytes(2, trainer) + _bytes(3, normalizer), len(pieces)


def _trained(corpus: Iterable[str], vocabulary: int) -> tuple[list[str], list[str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=vocabulary, show_progress=False))
    spec = json.loads(tokenizer.to_str())["model"]
    merged = list(dict.fromkeys("".join(pair) for pair in spec["merges"]))
    return merged, sorted(piece for piece in spec["vocab"] if len(piece) == 1)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value
