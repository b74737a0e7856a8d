"""Adapters on the host: each revision is read once, however many ask for it, and the last used ones are kept."""

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
from infra.contract.composition import WeightedAdapter
from infra.contract.errors import ConflictError
from infra.runtime.single_flight import SingleFlight

Key = tuple[str, str]
"""Adapter id and revision."""

MAX_KNOWN_SOURCES = 4096

_V = TypeVar("_V")


class WeightStore:
    """Resolves adapters and reads their weights, keeping at most `max_bytes` of them. Safe from any thread.

    `read` gives the weights of a source as they are on disk, `config_of` what its config says; `host_form` brings
    weights into the form in which they are kept and go to the device.
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
        self._names = tuple(base_model_names)
        self._max_bytes = max_bytes
        self._config_of = config_of
        self._host_form = host_form
        self._lock = threading.Lock()
        self._sources: OrderedDict[Key, AdapterSource] = OrderedDict()
        self._configs: OrderedDict[Key, PeftConfig] = OrderedDict()
        self._contents: OrderedDict[Key, str] = OrderedDict()
        self._reads: SingleFlight[Key, AdapterWeights] = SingleFlight()
        self._kept: OrderedDict[Key, AdapterWeights] = OrderedDict()
        self._sizes: dict[Key, int] = {}
        self._bytes = 0

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
            _remember(self._sources, (adapter_id, source.revision), source)
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
            _remember(self._configs, key, config)
        return config

    def weights(self, source: AdapterSource) -> AdapterWeights:
        """Return the weights of `source`: kept, or being read by another caller, or read now.

        Raises, beside what reading does, ConflictError when the folder does not hold that revision any more: the one
        that the source names, or else the one that was read for it first.
        """
        key = (source.adapter_id, source.revision)
        return self._kept_of(key) or self._reads.run(
            key, lambda: self._kept_of(key) or self._read_and_keep(key, source)
        )

    def in_host_form(self, weights: AdapterWeights) -> AdapterWeights:
        """Return `weights` as those that are read are kept: in the form that the bank takes."""
        return self._host_form(weights)

    @property
    def bytes(self) -> int:
        """Bytes of the weights kept."""
        return self._bytes

    def _kept_of(self, key: Key) -> AdapterWeights | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            return None

    def _read_and_keep(self, key: Key, source: AdapterSource) -> AdapterWeights:
        weights = self._host_form(self._read_unchanged(key, source))
        size = weights.bytes
        dropped = []
        with self._lock:
            self._kept[key] = weights
            self._sizes[key] = size
            self._bytes += size
            while self._bytes > self._max_bytes and self._kept:
                oldest, least_used = self._kept.popitem(last=False)
                self._bytes -= self._sizes.pop(oldest)
                dropped.append(least_used)
        return weights

    def _read_unchanged(self, key: Key, source: AdapterSource) -> AdapterWeights:
        """Read `source`; a revision that was read before, only with the same content."""
        with self._lock:
            first = self._contents.get(key, "")
        try:
            weights = self._read(replace(source, content=source.content or first))
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


def _remember(known: OrderedDict[Key, _V], key: Key, value: _V) -> None:
    """Keep `value`, and of what was kept before as much as MAX_KNOWN_SOURCES allows."""
    known[key] = value
    known.move_to_end(key)
    while len(known) > MAX_KNOWN_SOURCES:
        known.popitem(last=False)
