"""Adapter ids -> checkpoint folders: what the catalogue says, or what lies below the adapter roots."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from generation_service.adapters.checkpoint import WEIGHTS_FILE, content_revision, read_config
from generation_service.adapters.peft_config import CONFIG_FILE
from infra.contract.adapter import Adapter
from infra.contract.errors import BaseModelMismatchError, CheckpointError, NotFoundError

REVISION_LENGTH = 12


@dataclass(frozen=True)
class AdapterSource:
    """Where one revision of an adapter is read from. `content` is its expected content revision; empty: any."""

    adapter_id: str
    revision: str
    folder: Path
    base_model: str
    content: str = ""


class AdapterResolver(Protocol):
    """Knows where adapters are. May block on disk or network; called from loader threads."""

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the source of `revision` (empty: the newest). Raises NotFoundError or CheckpointError."""


class Roots:
    """The folders that adapters may be read from; nothing outside them is opened, symbolic links included."""

    def __init__(self, roots: Sequence[Path]) -> None:
        self._roots = [root.resolve() for root in roots]

    def __str__(self) -> str:
        return ", ".join(str(root) for root in self._roots) or "no folder: start the server with --adapter-roots"

    def find(self, uri: str) -> Path | None:
        """Return the folder that `uri` names, relative to a root or absolute; None when there is none.

        Raises CheckpointError when it, or a file of it that would be read, lies outside the roots.
        """
        candidates = [Path(uri)] if Path(uri).is_absolute() else [root / uri for root in self._roots]
        for candidate in candidates:
            with suppress(OSError, ValueError, RuntimeError):  # No name of a folder: too long, a NUL, a loop of links.
                self._check_inside(uri, candidate)
                if candidate.is_dir():
                    return candidate.resolve()
        return None

    def _check_inside(self, uri: str, folder: Path) -> None:
        for path in (folder, folder / CONFIG_FILE, folder / WEIGHTS_FILE):
            if not any(path.resolve().is_relative_to(root) for root in self._roots):
                raise CheckpointError(
                    f"{uri} leads outside the folders that adapters are read from ({self}): move it there, or "
                    "start the server with another --adapter-roots",
                    checkpoint_uri=uri,
                )


class FolderSources:
    """Adapters that lie in `<root>/<adapter_id>/`; their revision is their content's."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the folder of `adapter_id`. Raises NotFoundError for an unknown adapter or another revision."""
        folder = self._roots.find(adapter_id)
        if folder is None:
            raise NotFoundError(
                f"adapter {adapter_id!r} is not known: put its PEFT folder into {adapter_id}/ below {self._roots}",
                adapter_id=adapter_id,
            )
        content = self._content(folder)
        if revision and revision != content[:REVISION_LENGTH]:
            raise NotFoundError(
                f"adapter {adapter_id!r} has no revision {revision!r}; on disk is {content[:REVISION_LENGTH]!r}",
                adapter_id=adapter_id,
                revision=revision,
            )
        return AdapterSource(adapter_id, content[:REVISION_LENGTH], folder, read_config(folder).base_model, content)

    def _content(self, folder: Path) -> str:
        """Return the content revision, hashing only what changed since the last call."""
        signature = _signature(folder)
        with self._lock:
            known = self._known.get(folder)
        if known is not None and known[0] == signature:
            return known[1]
        content = content_revision(folder)
        with self._lock:
            self._known[folder] = (signature, content)
        return content


class CatalogueSources:
    """Adapters as the catalogue describes them; their checkpoints still lie below the roots."""

    def __init__(self, get_adapter: Callable[[str], Adapter], roots: Roots) -> None:
        self._get_adapter = get_adapter
        self._roots = roots

    def resolve(self, adapter_id: str, revision: str) -> AdapterSource:
        """Return the registered adapter's source. Raises NotFoundError when it, or the revision, is not registered."""
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
        folder = self._roots.find(adapter.checkpoint_uri)
        if folder is None:
            raise CheckpointError(
                f"adapter {adapter_id!r} is registered with the checkpoint {adapter.checkpoint_uri!r}, and there is no "
                f"such folder below {self._roots}",
                adapter_id=adapter_id,
            )
        return AdapterSource(adapter_id, adapter.revision, folder, adapter.base_model)


def check_base_model(source: AdapterSource, names: Sequence[str]) -> None:
    """Raise BaseModelMismatchError unless the adapter was trained on a model of one of `names`, or does not say.

    Only the last component of a path counts, without regard to case.
    """
    trained_on = source.base_model.rstrip("/").rsplit("/", 1)[-1]
    if trained_on and trained_on.casefold() not in {name.casefold() for name in names}:
        raise BaseModelMismatchError(
            f"adapter {source.adapter_id!r} was trained on {trained_on}; this server runs {names[0]}",
            adapter_id=source.adapter_id,
            adapter_base_model=trained_on,
            server_base_model=names[0],
        )


def _signature(folder: Path) -> tuple[int, ...]:
    try:
        stats = [(folder / name).stat() for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError:
        return ()
    return tuple(value for stat in stats for value in (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
