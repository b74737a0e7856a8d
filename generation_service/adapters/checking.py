"""Whether an adapter can be served: the server's own steps from its folder to its weights, run one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from generation_service.adapters.admission import Admission, error_context
from generation_service.adapters.checkpoint.binding import Rename
from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.source import AdapterRoots, AdapterSource, source_in
from generation_service.lora.weights import AdapterWeights, Shapes
from infra.contract.adapter import ADAPTER_ID_PATTERN, Adapter


@dataclass(frozen=True)
class CheckpointReader:
    """Reads an adapter's folder for a base model with the modules `targets` and a bank of `bank_ranks` in `dtype`."""

    targets: Shapes
    canonical: Rename
    bank_ranks: int
    dtype: torch.dtype

    def __call__(self, source: AdapterSource) -> AdapterWeights:
        """Return the weights of `source`. Raises what `read_checkpoint` raises."""
        return read_checkpoint(
            source.folder,
            self.targets,
            self.canonical,
            max_rank=self.bank_ranks,
            expected_revision=source.content,
            dtype=self.dtype,
        )


def check_adapter(folder: Path, reader: CheckpointReader, base_model_names: Sequence[str]) -> AdapterWeights:
    """Locate, admit and return the adapter in `folder`, as a server of that base model does for a request.

    `base_model_names` are the server's name for its model and its aliases. Raises LoraRetrieverError with the message
    that the request would get.
    """
    name = folder.resolve().name
    adapter_id = name if ADAPTER_ID_PATTERN.fullmatch(name) else "adapter"  # Registered, it may have any id.
    return check_source(lambda adapter_id: source_in(folder, adapter_id), adapter_id, reader, base_model_names)


@dataclass(frozen=True)
class AdapterCheck:
    """The check of adapters that are to be registered, for a running server. Safe from any thread.

    `base_model_names` are the server's name for its model and its aliases.
    """

    roots: AdapterRoots
    reader: CheckpointReader
    base_model_names: tuple[str, ...]

    def __call__(self, adapter: Adapter) -> None:
        """Raise the error that a request for `adapter` would get once it is registered."""
        with error_context("adapter", adapter.adapter_id):
            folder = self.roots.find_checkpoint(adapter)
        source = replace(source_in(folder, adapter.adapter_id), base_model=adapter.base_model)
        check_source(lambda _: source, adapter.adapter_id, self.reader, self.base_model_names)


def check_source(
    locate: Callable[[str], AdapterSource], adapter_id: str, reader: CheckpointReader, base_model_names: Sequence[str]
) -> AdapterWeights:
    """Return the weights of the adapter that `locate` finds for `adapter_id`. Raises as `check_adapter` does."""
    host_cache = HostCache(_Resolver(locate), reader, base_model_names, max_bytes=0)
    admission = Admission(host_cache, reader.bank_ranks, lambda _: 0, max_adapters=1)
    (admitted,) = admission.admit_adapter(adapter_id).adapters
    with error_context("", adapter_id):
        return host_cache.weights(admitted.source)


@dataclass(frozen=True)
class _Resolver:
    """An AdapterResolver of one adapter."""

    locate: Callable[[str], AdapterSource]

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the source."""
        del revision
        return self.locate(adapter_id)
