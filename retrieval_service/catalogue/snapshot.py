"""The catalogue in memory: searched without Qdrant, brought up to date by what has changed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from qdrant_client import QdrantClient

from infra.contract.adapter import Adapter
from infra.contract.retrieval import RetrievalStrategy
from retrieval_service.catalogue.adapter_store import Card, Entry, Store
from retrieval_service.catalogue.collections import Head
from retrieval_service.catalogue.points import AdapterFilter, Found
from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import ExampleSet, IntArray
from retrieval_service.strategies.ranking import ranking
from retrieval_service.strategies.scale import Similarities
from retrieval_service.strategies.scatter import deciding_kinds, scatters

_TRUSTED_S = 30.0
_KEPT_FILTERS = 64


@dataclass(eq=False)
class _Fitting:
    """A strategy that is fitted once; only those who ask for it wait for that."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    done: Similarities | None = None


@dataclass(eq=False)
class Known:
    """A revision of the catalogue: its adapters by id, and strategies fitted on their examples when first asked for.

    `calibrated` is fitted for each kind that decides what is looked past: ten at most, whatever kinds are asked for.
    """

    head: Head
    entries: dict[str, Entry]
    adapters: tuple[Adapter, ...]
    examples: ExampleSet
    _fitted: dict[tuple[RetrievalStrategy, str], _Fitting] = field(default_factory=dict)
    _columns: dict[AdapterFilter, IntArray] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, head: Head, entries: dict[str, Entry]) -> Known:
        """Return the revision that holds these adapters."""
        ordered = [entries[one] for one in sorted(entries)]
        vectors = [one.vectors for one in ordered] or [np.zeros((0, head.dim), np.float32)]
        examples = ExampleSet(
            tuple(one.adapter.adapter_id for one in ordered),
            tuple(one.adapter.kind for one in ordered),
            np.concatenate(vectors),
            np.repeat(np.arange(len(ordered)), [len(one.vectors) for one in ordered]).astype(np.int64),
        )
        return cls(head, entries, tuple(one.adapter for one in ordered), examples)

    def search(
        self, vectors: FloatArray, wanted: AdapterFilter, top_k: int, strategy: RetrievalStrategy
    ) -> tuple[tuple[Found, ...], ...]:
        """Return the `top_k` most similar adapters that `wanted` lets pass, for each vector of [n, dim]."""
        columns = self._passing(wanted)
        if not len(columns):
            return ((),) * len(vectors)
        similarities = self._strategy(strategy, wanted.kind).of(vectors)[:, columns]
        best = ranking(similarities, top_k)
        return tuple(
            tuple(Found(self.adapters[columns[one]], float(similarities[row, one])) for one in order)
            for row, order in enumerate(best)
        )

    def _strategy(self, strategy: RetrievalStrategy, kind: str) -> Similarities:
        calibrated = strategy is RetrievalStrategy.CALIBRATED
        key = (strategy, kind if calibrated and kind in self._deciding else "")
        with self._lock:
            fitting = self._fitted.setdefault(key, _Fitting())
        with fitting.lock:
            if fitting.done is None:
                fitting.done = Similarities(strategy, self.examples, key[1])
            return fitting.done

    @cached_property
    def _deciding(self) -> frozenset[str]:
        return frozenset(deciding_kinds(scatters(self.examples))) if self.adapters else frozenset()

    def _passing(self, wanted: AdapterFilter) -> IntArray:
        columns = self._columns.get(wanted)
        if columns is None:
            columns = np.array([i for i, one in enumerate(self.adapters) if wanted.passes(one)], np.int64)
            if len(self._columns) < _KEPT_FILTERS:
                self._columns[wanted] = columns
        return columns


class Memory:
    """Follows a catalogue of at most `limit` vectors."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.last: Known | None = None
        self._too_large: Head | None = None
        self._lock = threading.Lock()
        self._looked_at = 0.0

    def at(self, client: QdrantClient, head: Head) -> Known | None:
        """Return the catalogue as of `head` or newer, reading only what has changed; None when it is too large.

        `head` must have been read before this call: a change after it has another revision, and is read next time.
        Whatever the revision says, every half minute all adapters' revisions are compared.
        """
        with self._lock:
            last = self.last
            if time.monotonic() - self._looked_at < _TRUSTED_S:
                if last is not None and last.head == head:
                    return last
                if self._too_large == head:
                    return None
            store = Store(client, head.collection)
            cards = list(store.cards())
            self._looked_at, self._too_large = time.monotonic(), None
            if sum(card.example_count for card in cards) > self.limit:
                self.last, self._too_large = None, head
                return None
            if last is not None and last.head.collection != head.collection:
                last = None
            before = last.entries if last is not None else {}
            same = {card.adapter_id for card in cards if _is_known(card, before)}
            if last is not None and len(same) == len(cards) == len(before):
                self.last = replace(last, head=head)
                return self.last
            entries = {one: before[one] for one in same}
            changed = [card.point_id for card in cards if card.adapter_id not in same]
            entries |= {entry.adapter.adapter_id: entry for entry in store.entries(changed)}
            self.last = Known.of(head, entries)
            return self.last


def _is_known(card: Card, entries: dict[str, Entry]) -> bool:
    entry = entries.get(card.adapter_id)
    return entry is not None and entry.adapter.revision == card.revision
