"""Adapter ids -> checkpoint folders, from the catalogue or from the layout of the adapter roots."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from generation_service.adapters.checkpoint.folder_files import WEIGHTS_FILE
from generation_service.adapters.checkpoint.peft_config import CONFIG_FILE
from generation_service.adapters.checkpoint.reader import content_revision, read_config
from infra.contract.adapter import Adapter, base_model_name, is_same_base_model
from infra.contract.errors import BaseModelMismatchError, CheckpointError, NotFoundError
from infra.runtime.single_flight import SingleFlight

REVISION_LENGTH = 12
"""Hex digits of a content hash that are a folder's revision: 48 bits, short enough to read."""

Signature = tuple[tuple[int, ...], ...]
"""The `stat` of some files, an empty tuple for a missing one. It changes when a file does."""


@dataclass(frozen=True)
class AdapterSource:
    """Where one revision of an adapter is read from.

    `content` is its expected content hash; empty means the hash of its first read.
    """

    adapter_id: str
    revision: str
    folder: Path
    base_model: str
    content: str = ""


class AdapterResolver(Protocol):
    """Locates adapters. May block on disk or network. Called on: encoder, preloader and reader threads."""

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the source of `revision` (empty: the newest). Raises NotFoundError or CheckpointError."""


class AdapterRoots:
    """The folders that adapters may be read from. Nothing outside them is opened, not even through symbolic links."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.resolve() for root in roots]

    def __str__(self) -> str:
        return ", ".join(str(root) for root in self._roots) or "no folder: start the server with --adapter-roots"

    def signature(self, name: str) -> Signature:
        """Return the signature of the files of the adapter folder `name` below every root."""
        paths = [f"{root}/{name}/{file}" for root in self._roots for file in (CONFIG_FILE, WEIGHTS_FILE)]
        return tuple(_stat(path) for path in paths)

    def find(self, uri: str) -> Path | None:
        """Return the folder at `uri`, relative to a root or absolute; None if there is none.

        Raises CheckpointError if the folder, or a file in it that would be read, is outside the roots.
        """
        candidates = [Path(uri)] if Path(uri).is_absolute() else [root / uri for root in self._roots]
        for candidate in candidates:
            with suppress(
                OSError, ValueError, RuntimeError
            ):  # Not a valid path: too long, a NUL byte, a loop of links.
                self._check_inside(uri, candidate)
                if candidate.is_dir():
                    return candidate.resolve()
        return None

    def find_checkpoint(self, adapter: Adapter) -> Path:
        """Return the folder of a registered adapter. Raises CheckpointError if there is none below the roots."""
        folder = self.find(adapter.checkpoint_uri)
        if folder is None:
            raise CheckpointError(
                f"adapter {adapter.adapter_id!r} is registered with the checkpoint {adapter.checkpoint_uri!r}, and "
                f"there is no such folder below {self}",
                adapter_id=adapter.adapter_id,
            )
        return folder

    def _check_inside(self, uri: str, folder: Path) -> None:
        for path in (folder, folder / CONFIG_FILE, folder / WEIGHTS_FILE):
            if not any(path.resolve().is_relative_to(root) for root in self._roots):
                raise CheckpointError(
                    f"{uri} leads outside the folders that adapters are read from ({self}): move it there, or "
                    "start the server with another --adapter-roots",
                    checkpoint_uri=uri,
                )


def source_in(folder: Path, adapter_id: str) -> AdapterSource:
    """Return the source of the PEFT folder `folder` as it is now. Raises CheckpointError."""
    base_model = read_config(folder).base_model
    content = content_revision(folder)
    return AdapterSource(adapter_id, content[:REVISION_LENGTH], folder, base_model, content)


class FolderResolver:
    """An AdapterResolver for adapters in `<root>/<adapter_id>/`. The revision is a prefix of the content hash.

    Sources are cached until a file of the adapter changes in any root. Safe from any thread.
    """

    def __init__(self, roots: AdapterRoots) -> None:
        self._roots = roots
        self._lock = threading.Lock()  # Guards: `_cached`.
        self._cached: dict[str, tuple[Signature, AdapterSource]] = {}
        self._reads: SingleFlight[tuple[str, Signature], AdapterSource] = SingleFlight()

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the source of `adapter_id`. Raises NotFoundError for an unknown adapter or another revision."""
        signature = self._roots.signature(adapter_id)
        with self._lock:
            cached = self._cached.get(adapter_id)
        if cached is not None and cached[0] == signature:
            source = cached[1]
        else:
            source = self._reads.run((adapter_id, signature), lambda: self._hash_folder(adapter_id))
            with self._lock:
                self._cached[adapter_id] = (signature, source)
        if revision and revision != source.revision:
            raise NotFoundError(
                f"adapter {adapter_id!r} has no revision {revision!r}; on disk is {source.revision!r}",
                adapter_id=adapter_id,
                revision=revision,
            )
        return source

    def _hash_folder(self, adapter_id: str) -> AdapterSource:
        folder = self._roots.find(adapter_id)
        if folder is None:
            raise NotFoundError(
                f"adapter {adapter_id!r} is not known: put its PEFT folder into {adapter_id}/ below {self._roots}",
                adapter_id=adapter_id,
            )
        return source_in(folder, adapter_id)


class CatalogueResolver:
    """An AdapterResolver that asks the catalogue. Checkpoints must still be below the roots."""

    def __init__(self, get_adapter: Callable[[str], Adapter], roots: AdapterRoots) -> None:
        self._get_adapter = get_adapter
        self._roots = roots

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the registered adapter's source.

        Raises:
            NotFoundError: the adapter or the revision is not registered.
            CheckpointError: its folder does not exist or is outside the roots.
        """
        try:
            adapter = self._get_adapter(adapter_id)
        except NotFoundError as error:
            raise NotFoundError(
                f"adapter {adapter_id!r} is not in the catalogue: register it with `loraretriever adapters add`",
                adapter_id=adapter_id,
            ) from error
        if revision and revision != adapter.revision:
            raise NotFoundError(
                f"adapter {adapter_id!r} has no revision {revision!r}; the catalogue has {adapter.revision!r}",
                adapter_id=adapter_id,
                revision=revision,
            )
        folder = self._roots.find_checkpoint(adapter)
        return AdapterSource(adapter_id, adapter.revision, folder, adapter.base_model)


def check_base_model(source: AdapterSource, names: Sequence[str]) -> None:
    """Raise BaseModelMismatchError if the adapter's config names a base model that is not one of `names`.

    Paths and names are compared as `base_model_name` reads them, ignoring case.
    """
    trained_on = base_model_name(source.base_model)
    if trained_on and not any(is_same_base_model(trained_on, name) for name in names):
        raise BaseModelMismatchError(
            f"adapter {source.adapter_id!r} was trained on {trained_on}; this server runs {names[0]}. If that is the "
            f"same model, start the server with --model-aliases {trained_on}",
            adapter_id=source.adapter_id,
            adapter_base_model=trained_on,
            server_base_model=names[0],
        )


def _stat(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
