"""A least-recently-used cache of the vectors of parts."""

from __future__ import annotations

from collections import OrderedDict

from retrieval_service.embedders.base import FloatArray

_OVERHEAD_BYTES = 300  # per entry beyond its numbers: digest, array header, dictionary slots


class VectorCache:
    """Vectors by digest, in at most `max_bytes` of memory; 0 disables it. Not safe for threads: the caller locks."""

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
        """Return a vector, [dim], and mark it as most recently used; None if it is not cached."""
        vector = self._vectors.get(digest)
        if vector is not None:
            self._vectors.move_to_end(digest)
        return vector

    def put(self, digest: bytes, vector: FloatArray) -> None:
        """Store a copy of a vector, [dim], and evict the least recently used ones beyond `max_bytes`."""
        stored = vector.copy()  # a view would keep its whole batch in memory
        stored.flags.writeable = False  # callers share it
        replaced = self._vectors.pop(digest, None)
        self._bytes += _cost(stored) - (0 if replaced is None else _cost(replaced))
        self._vectors[digest] = stored
        while self._bytes > self._max_bytes:
            _, evicted = self._vectors.popitem(last=False)
            self._bytes -= _cost(evicted)


def _cost(vector: FloatArray) -> int:
    return int(vector.nbytes) + _OVERHEAD_BYTES
