"""Re-indexing with another embedder, and rollback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
)
from infra.contract.prompt import Prompt
from retrieval_service.catalogue import reindexing
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.reindexing import changes_undone_by_rollback, roll_back
from retrieval_service.catalogue.stored_examples import (
    ExampleStore,
)
from retrieval_service.indexing import ExamplePrompts, ExampleVectors, Indexer
from tests.support.harness.catalogue_world import NEW, OLD, CatalogueWorld, best_ids
from tests.support.servers.retrieval_server import WordEmbedder


def test_reindex_embeds_examples_again_and_moves_alias(world: CatalogueWorld) -> None:
    before = world.open(OLD)
    one = world.register(before, OLD, "one", "red shoes", "blue shoes")
    two = world.register(before, OLD, "two", "send mail", "read mail")
    with pytest.raises(ConfigurationError, match=r"built with \[old 16\].*retrieval reindex"):
        world.open(NEW)
    done = world.reindex(NEW)
    assert (done.embedded, done.skipped) == (2, ())
    after = world.open(NEW)
    assert [after.get(name) for name in ("one", "two")] == [one, two]
    assert best_ids(after, NEW, "green shoes")[0] == "one"
    np.testing.assert_allclose(
        after.look_up("two", with_vectors=True).vectors,
        NEW.embed([Prompt.of("send mail"), Prompt.of("read mail")]),
        atol=1e-6,
    )
    with pytest.raises(ConfigurationError, match=r"built with \[new 24\]"):
        world.open(OLD)


def test_servers_of_old_embedder_keep_reading_and_refuse_changes(world: CatalogueWorld) -> None:
    before = world.open(OLD)
    one = world.register(before, OLD, "one", "red shoes")
    world.reindex(NEW)
    assert best_ids(before, OLD, "red shoes") == ["one"]
    assert before.get("one") == one
    assert before.page(AdapterFilter(), 9).total == 1
    for change in (
        lambda: world.register(before, OLD, "two", "mail"),
        lambda: before.update("one", lambda adapter: replace(adapter, kind="x")),
        lambda: before.delete("one"),
    ):
        with pytest.raises(
            FailedPreconditionError, match=r"re-indexed with \[new 24\].*restart it with the new embedder"
        ):
            change()
    assert best_ids(world.open(NEW), NEW, "shoes") == ["one"]


def test_changes_during_reindex_are_included(world: CatalogueWorld) -> None:
    before = world.open(OLD)
    for name in ("one", "two", "three"):
        world.register(before, OLD, name, f"about {name}")
    steps: list[int] = []

    def meanwhile(done: int, total: int) -> None:
        steps.append(done)
        if len(steps) == 2:
            world.register(before, OLD, "late", "about late")
            before.delete("one")
            before.update("two", lambda adapter: replace(adapter, kind="changed"))

    world.reindex(NEW, progress=meanwhile)
    after = world.open(NEW)
    assert [one.adapter_id for one in after.page(AdapterFilter(), 9).adapters] == ["late", "three", "two"]
    assert after.get("two").kind == "changed"


def test_reindex_waits_for_examples_not_yet_stored(world: CatalogueWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "changed", "red shoes")
    late: list[Callable[[], None]] = []

    def keep_late(kept: ExampleStore, *given: Any) -> None:
        late.append(lambda: keep(kept, *given))

    keep = ExampleStore.put
    monkeypatch.setattr(ExampleStore, "put", keep_late)
    mail = ExamplePrompts((Prompt.of("send mail"),))
    Indexer(OLD, before, 64).update(Adapter("changed", "base", "at/new"), ["checkpoint_uri"], mail, "")
    Indexer(OLD, before, 64).create(Adapter("new", "base", "at/mail"), mail)
    passes: list[float] = []

    def pause(seconds: float) -> None:
        passes.append(seconds)
        for one in late if len(passes) == 2 else ():
            one()

    monkeypatch.setattr(reindexing, "sleep", pause)
    assert world.reindex(NEW).skipped == ()
    after = world.open(NEW)
    for name in ("changed", "new"):
        found = after.look_up(name, with_vectors=True)
        np.testing.assert_allclose(found.vectors, NEW.embed([Prompt.of("send mail")]), atol=1e-6)
        assert found.adapter == before.get(name)
    assert len(passes) == 2


def test_adapters_without_stored_examples_are_reported(world: CatalogueWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "one", "red shoes")
    before.update("one", lambda one: replace(one, kind="other"))
    monkeypatch.setattr(reindexing, "sleep", lambda seconds: None)
    with monkeypatch.context() as patch:
        patch.setattr(ExampleStore, "put", lambda *given: None)  # as if the service had died right before
        world.register(before, OLD, "two", "send mail")
    with pytest.raises(FailedPreconditionError, match=r"1 adapters have no stored examples.*two"):
        world.reindex(NEW)
    assert world.reindex(NEW, skip_without_examples=True).skipped == ("two",)
    assert world.reindex(WordEmbedder(name="third")).embedded == 1


def test_adapters_registered_by_vectors_stop_reindex_unless_skipped(world: CatalogueWorld) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "one", "red shoes")
    vectors = ExampleVectors((np.ones(16, np.float32),))
    Indexer(OLD, before, 64).create(Adapter("ready", "base", "at/ready"), vectors)
    there = world.collections()
    with pytest.raises(FailedPreconditionError, match=r"1 adapters have no stored examples.*ready.*--leave-out"):
        world.reindex(NEW)
    assert world.collections() == there
    assert set(best_ids(before, OLD, "shoes")) == {"one", "ready"}
    assert world.reindex(NEW, skip_without_examples=True).skipped == ("ready",)
    assert best_ids(world.open(NEW), NEW, "shoes") == ["one"]


def test_update_by_vectors_removes_stored_examples(world: CatalogueWorld) -> None:
    catalogue = world.open(OLD)
    world.register(catalogue, OLD, "one", "red shoes")
    card = Adapter("one", "base", "at/one", kind="x")
    Indexer(OLD, catalogue, 64).update(card, ["kind"], None, "")
    assert world.reindex(NEW).embedded == 1
    after = world.open(NEW)
    Indexer(NEW, after, 64).update(card, ["kind"], ExampleVectors((np.ones(24, np.float32),)), "")
    with pytest.raises(FailedPreconditionError, match="have no stored examples"):
        world.reindex(OLD)


def test_failing_embedder_leaves_catalogue_unchanged(world: CatalogueWorld) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "one", "red shoes")
    there = world.collections()

    class Broken(WordEmbedder):
        def embed(self, prompts: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        world.reindex(Broken(name="broken"))
    assert world.collections() == there
    assert best_ids(before, OLD, "shoes") == ["one"]


def test_reindex_with_same_embedder_is_refused(world: CatalogueWorld) -> None:
    world.open(OLD)
    with pytest.raises(FailedPreconditionError, match="already"):
        world.reindex(OLD)


def test_rollback_toggles_between_two_states(world: CatalogueWorld) -> None:
    world.register(world.open(OLD), OLD, "one", "red shoes")
    with world.qdrant.session() as client, pytest.raises(FailedPreconditionError, match="no previous state"):
        roll_back(client, world.name)
    world.reindex(NEW)
    later = world.open(NEW)
    world.register(later, NEW, "two", "mail")
    with world.qdrant.session() as client:
        assert changes_undone_by_rollback(client, world.name) == ["two"]
        assert roll_back(client, world.name).matches_embedder(OLD.fingerprint, OLD.dim)
        assert best_ids(world.open(OLD), OLD, "shoes") == ["one"]
        assert roll_back(client, world.name).matches_embedder(NEW.fingerprint, NEW.dim)
    assert set(best_ids(later, NEW, "shoes")) == {"one", "two"}
    world.reindex(WordEmbedder(name="third"))
    assert len([name for name in world.collections() if not name.endswith("-prompts")]) == 2
