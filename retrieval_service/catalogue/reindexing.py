"""Moves the catalogue to another embedder without interrupting service, and back.

The new embedder embeds the stored examples into a collection of its own while the service keeps using the old one.
Registrations made in the meantime are caught up with, then the alias moves in one step. Servers of the old embedder
keep reading the old collection and accept no more changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep

from qdrant_client import QdrantClient

from infra.contract.errors import FailedPreconditionError
from retrieval_service.catalogue.adapter_store import AdapterStore
from retrieval_service.catalogue.collections import (
    CollectionInfo,
    bump_revision,
    catalogue_exists,
    collection_info,
    collection_name,
    create_collection,
    delete_previous,
    point_alias,
    set_previous,
)
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.catalogue.stored_examples import ExampleStore
from retrieval_service.embedders.base import Embedder

_MAX_PASSES = 20  # bounds the chase after a service that registers adapters all the time
_PAUSE_S = 0.1  # gives a service time to store the examples of the adapter it has just stored
_MAX_LISTED = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ReindexResult:
    """How many adapters were embedded, which were skipped, the collection now in use and the one before."""

    embedded: int
    skipped: tuple[str, ...]
    collection: str
    previous: str


def reindex(
    client: QdrantClient,
    alias: str,
    embedder: Embedder,
    *,
    indexed: bool,
    skip_without_examples: bool = False,
    progress: Progress = lambda done, total: None,
) -> ReindexResult:
    """Embed the examples of all adapters with `embedder` and point the alias at the new collection.

    Raises FailedPreconditionError, leaving the catalogue unchanged, if it already belongs to the embedder, or if an
    adapter has no stored examples and `skip_without_examples` is not set.
    """
    info = collection_info(client, alias)
    if info.matches_embedder(embedder.fingerprint, embedder.dim):
        raise FailedPreconditionError(f"catalogue {alias!r} is already built with [{info.fingerprint}]")
    name = collection_name(alias, embedder.fingerprint, embedder.dim, unique=True)
    create_collection(client, name, embedder.fingerprint, embedder.dim, indexed=indexed, previous=info.collection)
    sync = _CollectionSync(
        AdapterStore(client, info.collection), AdapterStore(client, name), ExampleStore(client, alias), embedder
    )
    try:
        sync.run(progress)
        if sync.without_examples and not skip_without_examples:
            raise _without_examples(sync.skipped)
        point_alias(client, alias, name)
    except BaseException:
        client.delete_collection(name)
        raise
    sync.run(progress)  # catches up with writes between the last pass and the move
    bump_revision(client, name)
    delete_previous(client, info)
    return ReindexResult(sync.embedded, sync.skipped, name, info.collection)


def changes_undone_by_rollback(client: QdrantClient, alias: str) -> list[str]:
    """Return the adapters whose registration, change or deletion a rollback would undo.

    Raises FailedPreconditionError if there is no previous state.
    """
    info = _with_previous(client, alias)
    before = {header.adapter_id: header.revision for header in AdapterStore(client, info.previous).headers()}
    now = {header.adapter_id: header.revision for header in AdapterStore(client, info.collection).headers()}
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def roll_back(client: QdrantClient, alias: str) -> CollectionInfo:
    """Point the alias at the collection before the last re-index or restore; return its metadata.

    A second rollback undoes the first. Raises FailedPreconditionError if there is no previous state.
    """
    info = _with_previous(client, alias)
    set_previous(client, info.previous, info.collection)
    point_alias(client, alias, info.previous)
    return collection_info(client, alias)


class _CollectionSync:
    """Brings a collection to the state of another one, with vectors from another embedder."""

    def __init__(self, old: AdapterStore, new: AdapterStore, examples: ExampleStore, embedder: Embedder) -> None:
        self._old, self._new, self._examples, self._embedder = old, new, examples, embedder
        self.embedded = 0
        self.without_examples: set[str] = set()
        self._incomplete: set[str] = set()  # stored, but their examples are not yet

    @property
    def skipped(self) -> tuple[str, ...]:
        return tuple(sorted(self.without_examples))

    def run(self, progress: Progress) -> None:
        """Synchronise until a pass finds no difference."""
        for _ in range(_MAX_PASSES):
            self._incomplete.clear()
            if not self._pass(progress):
                break
            if self._incomplete:
                sleep(_PAUSE_S)
        # The writer of these adapters died before it stored their examples.
        self.without_examples |= self._incomplete

    def _pass(self, progress: Progress) -> bool:
        """Apply the current differences; return whether there were any."""
        old = {header.adapter_id: header.revision for header in self._old.headers()}
        new = {header.adapter_id: header.revision for header in self._new.headers()}
        self.without_examples &= old.keys()
        deleted = sorted(new.keys() - old.keys())
        changed = sorted(
            name for name, revision in old.items() if new.get(name) != revision and name not in self.without_examples
        )
        if deleted:
            self._new.delete(deleted)
        for done, adapter_id in enumerate(changed):
            progress(done, len(changed))
            self._embed(adapter_id)
        progress(len(changed), len(changed))
        return bool(deleted or changed)

    def _embed(self, adapter_id: str) -> None:
        adapter, examples_revision = self._old.get(adapter_id), self._old.examples_revision(adapter_id)
        examples = self._examples.get(adapter_id)
        if adapter is None:
            return
        # Examples that older versions of the service stored have no revision; those are accepted.
        if examples.revision != examples_revision and (examples.revision or not examples.prompts):
            self._incomplete.add(adapter_id)
            return
        if not examples.prompts:
            self.without_examples.add(adapter_id)
            return
        vectors = AdapterVectors.of(list(self._embedder.embed(examples.prompts)), self._embedder.dim)
        self._new.upsert(adapter, vectors, examples_revision)
        self.embedded += 1


def _with_previous(client: QdrantClient, alias: str) -> CollectionInfo:
    info = collection_info(client, alias)
    if not info.previous or not catalogue_exists(client, info.previous):
        raise FailedPreconditionError(f"catalogue {alias!r} has no previous state to return to")
    return info


def _without_examples(names: tuple[str, ...]) -> FailedPreconditionError:
    listed = ", ".join(names[:_MAX_LISTED]) + (
        f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    )
    return FailedPreconditionError(
        f"{len(names)} adapters have no stored examples for their current revision, because they were registered by "
        f"vectors or the registration was interrupted: {listed}; register them again by examples ('loraretriever "
        "adapters add --replace'), or skip them with --leave-out"
    )
