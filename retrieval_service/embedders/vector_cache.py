"""Vectors of parts that were embedded before, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict

from retrieval_service.embedders.base import FloatArray

_OVERHEAD_BYTES = 300  # of an entry beside its numbers: digest, array header, places in the dictionary


class VectorCache:
    """Vectors by digest, in at most `max_bytes` of memory; 0 keeps nothing. For one thread at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._vectors: OrderedDict[bytes, FloatArray] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    @property
    def used_bytes(self) -> int:
        """Memory of all entries."""
        return self._bytes

    def get(self, digest: bytes) -> FloatArray | None:
        """Return a vector, [dim], now the most recently used; None when it is not there."""
        vector = self._vectors.get(digest)
        if vector is not None:
            self._vectors.move_to_end(digest)
        return vector

    def put(self, digest: bytes, vector: FloatArray) -> None:
        """Keep a copy of a vector, [dim], and forget others for it where room is short."""
        kept = vector.copy()  # a view would keep its whole batch alive
        kept.flags.writeable = False
        replaced = self._vectors.pop(digest, None)
        self._bytes += _cost(kept) - (0 if replaced is None else _cost(replaced))
        self._vectors[digest] = kept
        while self._bytes > self._max_bytes:
            _, forgotten = self._vectors.popitem(last=False)
            self._bytes -= _cost(forgotten)


def _cost(vector: FloatArray) -> int:
    return int(vector.nbytes) + _OVERHEAD_BYTES
