"""The catalogue brought to another embedder, without a gap in service; and back.

The new embedder embeds the kept examples into a collection of its own while the service goes on with the old one. What
is registered meanwhile is caught up with, then the alias moves in one step. Servers of the old embedder go on reading
the old collection, and take no more changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import sleep

from qdrant_client import QdrantClient

from infra.contract.errors import FailedPreconditionError
from retrieval_service.catalogue.adapter_store import Store
from retrieval_service.catalogue.collections import Head, describe, exists, head_of, make, name_for, point
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.catalogue.stored_examples import KeptPrompts
from retrieval_service.embedders.base import Embedder

_PASSES = 20
_PAUSE_S = 0.1  # for a service to keep the examples of the adapter that it has just stored
_NAMED = 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reindexed:
    """How many adapters were embedded anew, which were left out, and the collection that is in use now."""

    embedded: int
    left_out: tuple[str, ...]
    collection: str
    former: str


def reindex(
    client: QdrantClient,
    alias: str,
    embedder: Embedder,
    *,
    indexed: bool,
    leave_out: bool = False,
    progress: Progress = lambda done, total: None,
) -> Reindexed:
    """Embed all adapters' examples with `embedder` and let the alias name the outcome.

    Raises FailedPreconditionError when the catalogue is the embedder's already, and, unless they are to be left out,
    when adapters were registered by vectors; then nothing has changed.
    """
    head = head_of(client, alias)
    if head.made_by(embedder.fingerprint, embedder.dim):
        raise FailedPreconditionError(f"catalogue {alias!r} is made with [{head.fingerprint}] already")
    name = name_for(alias, embedder.fingerprint, embedder.dim, unique=True)
    make(client, name, embedder.fingerprint, embedder.dim, indexed=indexed, former=head.collection)
    filling = _Filling(Store(client, head.collection), Store(client, name), KeptPrompts(client, alias), embedder)
    try:
        filling.follow(progress)
        if filling.without_prompts and not leave_out:
            raise _without_prompts(filling.left_out)
        point(client, alias, name)
    except BaseException:
        client.delete_collection(name)
        raise
    filling.follow(progress)  # what was written between the last look and the move
    describe(client, name)
    forget(client, head)
    return Reindexed(filling.embedded, filling.left_out, name, head.collection)


def lost_by_rollback(client: QdrantClient, alias: str) -> list[str]:
    """Return the adapters whose registration or change a rollback would undo. Raises FailedPreconditionError."""
    head = _with_former(client, alias)
    before = {card.adapter_id: card.revision for card in Store(client, head.former).cards()}
    now = {card.adapter_id: card.revision for card in Store(client, head.collection).cards()}
    return sorted(one for one in before.keys() | now.keys() if before.get(one) != now.get(one))


def roll_back(client: QdrantClient, alias: str) -> Head:
    """Let the alias name the collection before the last re-index or restore; return its head.

    A second rollback undoes the first. Raises FailedPreconditionError when there is none before.
    """
    head = _with_former(client, alias)
    describe(client, head.former, former=head.collection)
    point(client, alias, head.former)
    return head_of(client, alias)


class _Filling:
    """A collection that follows another with other vectors."""

    def __init__(self, old: Store, new: Store, prompts: KeptPrompts, embedder: Embedder) -> None:
        self._old, self._new, self._prompts, self._embedder = old, new, prompts, embedder
        self.embedded = 0
        self.without_prompts: set[str] = set()
        self._not_yet: set[str] = set()

    @property
    def left_out(self) -> tuple[str, ...]:
        return tuple(sorted(self.without_prompts))

    def follow(self, progress: Progress) -> None:
        """Bring the new collection to the state of the old one, and what changes meanwhile too."""
        for _ in range(_PASSES):
            self._not_yet.clear()
            if not self._catch_up(progress):
                break
            if self._not_yet:
                sleep(_PAUSE_S)
        self.without_prompts |= self._not_yet  # whoever stored those adapters did not live to keep their examples

    def _catch_up(self, progress: Progress) -> bool:
        """Bring the new collection to the state of the old one; return whether there was something to do."""
        old = {card.adapter_id: card.revision for card in self._old.cards()}
        new = {card.adapter_id: card.revision for card in self._new.cards()}
        self.without_prompts &= old.keys()
        gone = sorted(new.keys() - old.keys())
        changed = sorted(
            one for one, revision in old.items() if new.get(one) != revision and one not in self.without_prompts
        )
        if gone:
            self._new.delete(gone)
        for done, adapter_id in enumerate(changed):
            progress(done, len(changed))
            self._embed(adapter_id)
        progress(len(changed), len(changed))
        return bool(gone or changed)

    def _embed(self, adapter_id: str) -> None:
        adapter, kept_as = self._old.read(adapter_id), self._old.kept_as(adapter_id)
        kept = self._prompts.of(adapter_id)
        if adapter is None:
            return
        if kept.revision != kept_as and (kept.revision or not kept.prompts):  # of older versions it is not known
            self._not_yet.add(adapter_id)
            return
        if not kept.prompts:
            self.without_prompts.add(adapter_id)
            return
        vectors = AdapterVectors.of(list(self._embedder.embed(kept.prompts)), self._embedder.dim)
        self._new.put(adapter, vectors, kept_as)
        self.embedded += 1


def _with_former(client: QdrantClient, alias: str) -> Head:
    head = head_of(client, alias)
    if not head.former or not exists(client, head.former):
        raise FailedPreconditionError(f"catalogue {alias!r} has no former state to go back to")
    return head


def forget(client: QdrantClient, head: Head) -> None:
    """Delete the collection before the one that was in use: one step back is kept."""
    if head.former and exists(client, head.former):
        client.delete_collection(head.former)


def _without_prompts(names: tuple[str, ...]) -> FailedPreconditionError:
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return FailedPreconditionError(
        f"of {len(names)} adapters no examples are kept, or none of their revision, since they were registered by "
        f"vectors or the registration broke off: {shown}; register them again by examples ('loraretriever adapters add "
        "--replace'), or leave them out with --leave-out"
    )
