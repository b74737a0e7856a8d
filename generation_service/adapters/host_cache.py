"""Adapters on the host: sources, configs and weights, each read once a revision, and the weights kept by LRU."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from generation_service.adapters.checkpoint.peft_config import PeftConfig
from generation_service.adapters.checkpoint.reader import read_config
from generation_service.adapters.source import AdapterResolver, AdapterSource, check_base_model
from generation_service.lora.weights import AdapterWeights
from infra.contract.errors import ConflictError
from infra.runtime.single_flight import SingleFlight

Key = tuple[str, str]
"""Adapter id and revision."""

_MAX_REMEMBERED = 4096
"""Sources, configs and content hashes remembered, of each kind: under 1 KB an entry, and more than a catalogue's
adapters in use at a time."""

_V = TypeVar("_V")


class HostCache:
    """Resolves adapters and reads their weights, keeping at most `max_bytes` of weights. Safe from any thread.

    `read` returns the weights of a source as they are on disk, `config_of` its parsed config; `host_form` converts
    weights into the form in which they are cached and copied to the device.
    """

    def __init__(
        self,
        resolver: AdapterResolver,
        read: Callable[[AdapterSource], AdapterWeights],
        base_model_names: Sequence[str],
        max_bytes: int,
        *,
        config_of: Callable[[AdapterSource], PeftConfig] = lambda source: read_config(source.folder),
        host_form: Callable[[AdapterWeights], AdapterWeights] = lambda weights: weights,
    ) -> None:
        self._resolver = resolver
        self._read = read
        self._base_model_names = tuple(base_model_names)
        self._max_bytes = max_bytes
        self._config_of = config_of
        self._host_form = host_form
        # Guards: all fields below. Never held during a look-up, a read or a conversion.
        self._lock = threading.Lock()
        self._sources: OrderedDict[Key, AdapterSource] = OrderedDict()
        self._configs: OrderedDict[Key, PeftConfig] = OrderedDict()
        self._contents: OrderedDict[Key, str] = OrderedDict()  # Content hash of the first read of each revision.
        self._weights: OrderedDict[Key, AdapterWeights] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._bytes = 0
        self._reads: SingleFlight[Key, AdapterWeights] = SingleFlight()

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return where an adapter is; an empty `revision` means the newest.

        A revision never changes, so its source is cached. The newest is looked up every time.

        Raises:
            NotFoundError: the adapter or the revision is unknown.
            CheckpointError: its folder cannot be used.
            BaseModelMismatchError: it was trained on another base model.
        """
        with self._lock:
            cached = self._sources.get((adapter_id, revision))
        if cached is not None:
            return cached
        source = self._resolver.resolve(adapter_id, revision)
        check_base_model(source, self._base_model_names)
        with self._lock:
            _remember(self._sources, (adapter_id, source.revision), source)
        return source

    def config(self, source: AdapterSource) -> PeftConfig:
        """Return the config of `source`, read once a revision. Raises CheckpointError."""
        key = (source.adapter_id, source.revision)
        with self._lock:
            cached = self._configs.get(key)
        if cached is not None:
            return cached
        config = self._config_of(source)
        with self._lock:
            _remember(self._configs, key, config)
        return config

    def weights(self, source: AdapterSource) -> AdapterWeights:
        """Return the weights of `source`: cached, shared with a concurrent read, or read now.

        Raises what resolving and reading raise, and ConflictError if the folder no longer holds that revision: the one
        that the source names, or else the one that was first read for it.
        """
        key = (source.adapter_id, source.revision)
        return self._cached_weights(key) or self._reads.run(
            key, lambda: self._cached_weights(key) or self._read_and_cache(key, source)
        )

    def in_host_form(self, weights: AdapterWeights) -> AdapterWeights:
        """Return `weights` in the form in which the cache keeps them and the bank takes them."""
        return self._host_form(weights)

    @property
    def bytes(self) -> int:
        """Bytes of the cached weights."""
        return self._bytes

    def _cached_weights(self, key: Key) -> AdapterWeights | None:
        with self._lock:
            if key in self._weights:
                self._weights.move_to_end(key)
                return self._weights[key]
            return None

    def _read_and_cache(self, key: Key, source: AdapterSource) -> AdapterWeights:
        weights = self._host_form(self._read_unchanged(key, source))
        size = weights.bytes
        evicted = []  # Keeps evicted weights alive until the lock is released, so that they are not freed under it.
        with self._lock:
            self._weights[key] = weights
            self._sizes[key] = size
            self._bytes += size
            while self._bytes > self._max_bytes and self._weights:
                oldest, least_used = self._weights.popitem(last=False)
                self._bytes -= self._sizes.pop(oldest)
                evicted.append(least_used)
        return weights

    def _read_unchanged(self, key: Key, source: AdapterSource) -> AdapterWeights:
        """Read `source`. A revision that was read before must still have the same content."""
        with self._lock:
            first_content = self._contents.get(key, "")
            vanished = key not in self._sources
        if vanished:
            # A read found other files than the revision's since this source was admitted, or it was forgotten: the
            # look-up says what is there now.
            source = self.resolve(*key)
        try:
            weights = self._read(replace(source, content=source.content or first_content))
        except ConflictError as error:
            with self._lock:
                self._sources.pop(key, None)
                self._configs.pop(key, None)
            if source.content:
                raise
            raise ConflictError(
                f"the files of adapter {source.adapter_id!r} are not those that its revision {source.revision!r} was "
                f"read from: register the adapter again, for its new files to be a revision of their own",
                adapter_id=source.adapter_id,
                revision=source.revision,
            ) from error
        with self._lock:
            _remember(self._contents, key, weights.revision)
        return weights


def _remember(entries: OrderedDict[Key, _V], key: Key, value: _V) -> None:
    """Add an entry and drop the oldest ones beyond _MAX_REMEMBERED."""
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > _MAX_REMEMBERED:
        entries.popitem(last=False)
