"""Adapters on the host: each revision is read once, however many ask for it, and the last used ones are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from generation_service.adapters.checkpoint import read_config
from generation_service.adapters.peft_config import PeftConfig
from generation_service.adapters.sources import AdapterResolver, AdapterSource, check_base_model
from generation_service.adapters.weights import AdapterWeights
from infra.contract.composition import WeightedAdapter

Key = tuple[str, str]
"""Adapter id and revision."""


MAX_KNOWN_SOURCES = 4096


class WeightStore:
    """Resolves adapters and reads their weights, keeping at most `max_bytes` of them. Safe from any thread."""

    def __init__(
        self,
        resolver: AdapterResolver,
        read: Callable[[AdapterSource], AdapterWeights],
        base_model_names: Sequence[str],
        max_bytes: int,
        config_of: Callable[[AdapterSource], PeftConfig] = lambda source: read_config(source.folder),
    ) -> None:
        self._resolver = resolver
        self._read = read
        self._names = tuple(base_model_names)
        self._max_bytes = max_bytes
        self._config_of = config_of
        self._lock = threading.Lock()
        self._sources: OrderedDict[Key, AdapterSource] = OrderedDict()
        self._configs: OrderedDict[Key, PeftConfig] = OrderedDict()
        self._reading: dict[Key, Future[AdapterWeights]] = {}
        self._kept: OrderedDict[Key, AdapterWeights] = OrderedDict()

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return where the adapter is. Raises NotFoundError, CheckpointError or BaseModelMismatchError.

        A revision never changes, so it is looked up once; only the newest is asked for every time.
        """
        with self._lock:
            known = self._sources.get((adapter_id, revision))
        if known is not None:
            return known
        source = self._resolver.resolve(adapter_id, revision)
        check_base_model(source, self._names)
        with self._lock:
            self._sources[adapter_id, source.revision] = source
            while len(self._sources) > MAX_KNOWN_SOURCES:
                self._sources.popitem(last=False)
        return source

    def known(self, adapters: Sequence[WeightedAdapter]) -> list[AdapterSource] | None:
        """Return the sources of adapters whose revisions are named and were looked up before; else None."""
        with self._lock:
            found = [self._sources.get((share.adapter_id, share.revision)) for share in adapters]
        sources = [source for source in found if source is not None]
        return sources if len(sources) == len(adapters) else None

    def config(self, source: AdapterSource) -> PeftConfig:
        """Return what the config of `source` says, read once a revision. Raises CheckpointError."""
        key = (source.adapter_id, source.revision)
        with self._lock:
            known = self._configs.get(key)
        if known is not None:
            return known
        config = self._config_of(source)
        with self._lock:
            self._configs[key] = config
            while len(self._configs) > MAX_KNOWN_SOURCES:
                self._configs.popitem(last=False)
        return config

    def weights(self, source: AdapterSource) -> AdapterWeights:
        """Return the weights of `source`, read now, or kept, or being read by another caller."""
        key = (source.adapter_id, source.revision)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            future = self._reading.get(key)
            if future is None:
                mine = self._reading[key] = Future()
        if future is not None:
            return future.result()
        try:
            weights = self._read(source)
        except BaseException as error:
            with self._lock:
                del self._reading[key]
            mine.set_exception(error)
            raise
        with self._lock:
            del self._reading[key]
            self._keep(key, weights)
        mine.set_result(weights)
        return weights

    def _keep(self, key: Key, weights: AdapterWeights) -> None:
        self._kept[key] = weights
        total = sum(kept.bytes for kept in self._kept.values())
        while total > self._max_bytes and self._kept:
            _, dropped = self._kept.popitem(last=False)
            total -= dropped.bytes
