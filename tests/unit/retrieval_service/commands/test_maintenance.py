"""Re-indexing with another embedder, going back, backup and restore."""

from __future__ import annotations

import io
import json
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.contract.adapter import Adapter
from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    InvalidArgumentError,
)
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from infra.runtime.images import ImageLimits
from orchestrator.cli.main import run
from retrieval_service.catalogue import backup, reindexing, stored_examples
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.collections import collection_info
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer
from retrieval_service.catalogue.reindexing import changes_undone_by_rollback, reindex, roll_back
from retrieval_service.catalogue.stored_examples import (
    MAX_STORED_IMAGE_PIXELS,
    ExampleStore,
    decode_prompt,
    encode_prompt,
)
from retrieval_service.indexing import ExamplePrompts, ExampleVectors, Indexer
from tests.support.harness.images import png_part
from tests.support.servers.fake_qdrant import fake_qdrant_url
from tests.support.servers.qdrant_locations import LOCATIONS, QDRANT_URL, qdrant_location
from tests.support.servers.retrieval_server import WordEmbedder

OLD, NEW = WordEmbedder(dim=16, name="old"), WordEmbedder(dim=24, name="new")


class World:
    """A catalogue under a name of its own, opened as often as a test likes."""

    def __init__(self, qdrant: Qdrant) -> None:
        self.qdrant = qdrant
        self.name = f"test-{uuid.uuid4().hex}"

    def open(self, embedder: WordEmbedder) -> Catalogue:
        return Catalogue(self.qdrant, self.name, dim=embedder.dim, fingerprint=embedder.fingerprint)

    def register(self, catalogue: Catalogue, embedder: WordEmbedder, name: str, *texts: str) -> Adapter:
        examples = ExamplePrompts(tuple(Prompt.of(text) for text in texts))
        return Indexer(embedder, catalogue, 64).create(Adapter(name, "base", f"at/{name}", kind="app"), examples)

    def reindex(self, embedder: WordEmbedder, **options: Any) -> Any:
        with self.qdrant.session() as client:
            return reindex(client, self.name, embedder, indexed=self.qdrant.shared, **options)

    def collections(self) -> list[str]:
        with self.qdrant.session() as client:
            return [one.name for one in client.get_collections().collections if one.name.startswith(self.name)]


@pytest.fixture(params=LOCATIONS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    if request.param == "server" and not QDRANT_URL:
        pytest.skip("QDRANT_URL names no Qdrant server")
    with ExitStack() as stack:
        place = stack.enter_context(qdrant_location(request.param, tmp_path / "qdrant"))
        made = World(stack.enter_context(closing(Qdrant(place))))
        yield made
        with made.qdrant.session() as client:
            for name in made.collections():
                client.delete_collection(name)


def best(catalogue: Catalogue, embedder: WordEmbedder, text: str) -> list[str]:
    found = catalogue.search(embedder.embed([Prompt.of(text)]), AdapterFilter(), 9).matches[0]
    return [one.adapter.adapter_id for one in found]


def test_re_index_embeds_examples_anew_and_moves_name_at_once(world: World) -> None:
    before = world.open(OLD)
    one = world.register(before, OLD, "one", "red shoes", "blue shoes")
    two = world.register(before, OLD, "two", "send mail", "read mail")
    with pytest.raises(ConfigurationError, match=r"built with \[old 16\].*retrieval reindex"):
        world.open(NEW)
    done = world.reindex(NEW)
    assert (done.embedded, done.skipped) == (2, ())
    after = world.open(NEW)
    assert [after.get(name) for name in ("one", "two")] == [one, two]
    assert best(after, NEW, "green shoes")[0] == "one"
    np.testing.assert_allclose(
        after.look_up("two", with_vectors=True).vectors,
        NEW.embed([Prompt.of("send mail"), Prompt.of("read mail")]),
        atol=1e-6,
    )
    with pytest.raises(ConfigurationError, match=r"built with \[new 24\]"):
        world.open(OLD)


def test_servers_of_old_embedder_go_on_reading_and_take_no_changes(world: World) -> None:
    before = world.open(OLD)
    one = world.register(before, OLD, "one", "red shoes")
    world.reindex(NEW)
    assert best(before, OLD, "red shoes") == ["one"]
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
    assert best(world.open(NEW), NEW, "shoes") == ["one"]


def test_what_is_registered_during_re_index_is_in_it(world: World) -> None:
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


def test_re_index_waits_for_examples_that_are_not_yet_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_examples_that_were_never_kept_are_said_to_be_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_adapters_registered_by_vectors_stop_re_index_unless_left_out(world: World) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "one", "red shoes")
    vectors = ExampleVectors((np.ones(16, np.float32),))
    Indexer(OLD, before, 64).create(Adapter("ready", "base", "at/ready"), vectors)
    there = world.collections()
    with pytest.raises(FailedPreconditionError, match=r"1 adapters have no stored examples.*ready.*--leave-out"):
        world.reindex(NEW)
    assert world.collections() == there
    assert set(best(before, OLD, "shoes")) == {"one", "ready"}
    assert world.reindex(NEW, skip_without_examples=True).skipped == ("ready",)
    assert best(world.open(NEW), NEW, "shoes") == ["one"]


def test_adapter_changed_to_vectors_keeps_no_examples(world: World) -> None:
    catalogue = world.open(OLD)
    world.register(catalogue, OLD, "one", "red shoes")
    card = Adapter("one", "base", "at/one", kind="x")
    Indexer(OLD, catalogue, 64).update(card, ["kind"], None, "")
    assert world.reindex(NEW).embedded == 1
    after = world.open(NEW)
    Indexer(NEW, after, 64).update(card, ["kind"], ExampleVectors((np.ones(24, np.float32),)), "")
    with pytest.raises(FailedPreconditionError, match="have no stored examples"):
        world.reindex(OLD)


def test_embedder_that_fails_leaves_all_as_it_was(world: World) -> None:
    before = world.open(OLD)
    world.register(before, OLD, "one", "red shoes")
    there = world.collections()

    class Broken(WordEmbedder):
        def embed(self, prompts: Any) -> Any:
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        world.reindex(Broken(name="broken"))
    assert world.collections() == there
    assert best(before, OLD, "shoes") == ["one"]


def test_same_embedder_has_nothing_to_do(world: World) -> None:
    world.open(OLD)
    with pytest.raises(FailedPreconditionError, match="already"):
        world.reindex(OLD)


def test_rollback_goes_back_and_forth_and_one_step_is_kept(world: World) -> None:
    world.register(world.open(OLD), OLD, "one", "red shoes")
    with world.qdrant.session() as client, pytest.raises(FailedPreconditionError, match="no previous state"):
        roll_back(client, world.name)
    world.reindex(NEW)
    later = world.open(NEW)
    world.register(later, NEW, "two", "mail")
    with world.qdrant.session() as client:
        assert changes_undone_by_rollback(client, world.name) == ["two"]
        assert roll_back(client, world.name).matches_embedder(OLD.fingerprint, OLD.dim)
        assert best(world.open(OLD), OLD, "shoes") == ["one"]
        assert roll_back(client, world.name).matches_embedder(NEW.fingerprint, NEW.dim)
    assert set(best(later, NEW, "shoes")) == {"one", "two"}
    world.reindex(WordEmbedder(name="third"))
    assert len([name for name in world.collections() if not name.endswith("-prompts")]) == 2


def test_backup_holds_all_and_restore_brings_it_back(world: World, tmp_path: Path) -> None:
    catalogue = world.open(OLD)
    one = world.register(catalogue, OLD, "one", "red shoes", "blue shoes")
    Indexer(OLD, catalogue, 64).create(Adapter("ready", "base", "r"), ExampleVectors((np.ones(16, np.float32),)))
    vectors = catalogue.look_up("one", with_vectors=True).vectors
    with world.qdrant.session() as client:
        backup.write_backup(backup.take_backup(client, world.name), tmp_path / "backup.zip")
        content = backup.read_backup(tmp_path / "backup.zip")
        catalogue.delete("one")
        world.register(catalogue, OLD, "two", "mail")
        with pytest.raises(FailedPreconditionError, match=r"not empty.*--replace"):
            backup.restore_backup(client, world.name, content, replace=False, indexed=world.qdrant.shared)
        backup.restore_backup(client, world.name, content, replace=True, indexed=world.qdrant.shared)
    assert catalogue.get("one") == one  # the running service sees it
    assert set(best(catalogue, OLD, "shoes")) == {"one", "ready"}
    np.testing.assert_allclose(catalogue.look_up("one", with_vectors=True).vectors, vectors, atol=1e-6)
    assert world.reindex(NEW, skip_without_examples=True).skipped == ("ready",)
    with world.qdrant.session() as client:
        assert collection_info(client, world.name).previous


def spoiled(file: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(file) as opened:
        content = {name: opened.read(name) for name in opened.namelist()}
    change(content)
    with zipfile.ZipFile(file, "w") as opened:
        for name, data in content.items():
            opened.writestr(name, data)


def _other_format(content: dict[str, bytes]) -> None:
    content["catalogue.json"] = json.dumps(json.loads(content["catalogue.json"]) | {"format": "9"}).encode()


def _pickled(content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}], dtype=object), allow_pickle=True)
    content["vectors.npy"] = buffer.getvalue()


def _short(content: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ones((1, 16), np.float32))
    content["vectors.npy"] = buffer.getvalue()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_other_format, "format is '9'"),
        (_pickled, "pickle|Object arrays"),
        (_short, "have 2 vectors"),
        (lambda content: content.pop("prompts.jsonl"), "not a complete backup"),
        (lambda content: content.update({"catalogue.json": b"{"}), "not a complete backup"),
    ],
)
def test_spoiled_backup_is_refused(tmp_path: Path, change: Callable[[dict[str, bytes]], None], problem: str) -> None:
    file = tmp_path / "backup.zip"
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant, qdrant.session() as client:
        world = World(qdrant)
        world.register(world.open(OLD), OLD, "one", "red", "blue")
        backup.write_backup(backup.take_backup(client, world.name), file)
    spoiled(file, change)
    with pytest.raises(InvalidArgumentError, match=problem):
        backup.read_backup(file)


def test_restore_keeps_one_step_back_and_no_examples_that_backup_lacks(world: World) -> None:
    catalogue = world.open(OLD)
    Indexer(OLD, catalogue, 64).create(Adapter("one", "base", "r"), ExampleVectors((np.ones(16, np.float32),)))
    with world.qdrant.session() as client:
        content = backup.take_backup(client, world.name)
        catalogue.delete("one")
        world.register(catalogue, OLD, "one", "red shoes")
        for _ in range(3):
            backup.restore_backup(client, world.name, content, replace=True, indexed=world.qdrant.shared)
        assert backup.take_backup(client, world.name).prompts == {}
    assert len([name for name in world.collections() if not name.endswith("-prompts")]) == 2


def test_damaged_backup_is_refused_and_named(tmp_path: Path) -> None:
    file = tmp_path / "backup.zip"
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant, qdrant.session() as client:
        world = World(qdrant)
        world.register(world.open(OLD), OLD, "one", "red", "blue")
        backup.write_backup(backup.take_backup(client, world.name), file)
    whole = file.read_bytes()
    refused: list[str] = []
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5B]) + whole[place + 1 :])
        try:
            backup.read_backup(file)
        except InvalidArgumentError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 4
    assert all("backup.zip" in one for one in refused)


def test_file_that_is_no_backup_is_refused(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("words")
    for name, problem in (("words", "not a complete backup"), ("nothing", "cannot be read")):
        with pytest.raises(InvalidArgumentError, match=problem):
            backup.read_backup(tmp_path / name)


def test_commands_back_up_restore_and_go_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = ["--qdrant-path", str(tmp_path / "qdrant")]
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        world = World(qdrant)
        world.name = "adapters"
        world.register(world.open(OLD), OLD, "one", "red shoes")
        assert run(["retrieval", "backup", str(tmp_path / "b.zip"), *place]) == 2
        assert "in use by another process" in capsys.readouterr().err
    assert run(["retrieval", "backup", str(tmp_path / "b.zip"), *place]) == 0
    assert "wrote 1 adapters" in capsys.readouterr().out
    assert run(["retrieval", "restore", str(tmp_path / "b.zip"), *place]) == 1
    assert "--replace" in capsys.readouterr().err
    assert run(["retrieval", "restore", str(tmp_path / "b.zip"), *place, "--replace", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == 1
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        world = World(qdrant)
        world.name = "adapters"
        world.register(world.open(OLD), OLD, "two", "mail")
    assert run(["retrieval", "rollback", *place]) == 1
    assert "these adapters were registered, changed or removed since: two" in capsys.readouterr().err
    assert run(["retrieval", "rollback", *place, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["undone"] == ["two"]
    assert run(["retrieval", "backup", str(tmp_path / "c.zip"), *place, "--collection", "other"]) == 1
    assert "there is no catalogue 'other'" in capsys.readouterr().err


def test_prompts_are_kept_whole_and_large_images_small() -> None:
    small = png_part(90, 60)
    buffer = io.BytesIO()
    Image.new("RGB", (1200, 900), (10, 200, 30)).save(buffer, "PNG")
    prompt = Prompt(
        (
            Message(Role.SYSTEM, (TextPart("be brief"),)),
            Message(Role.USER, (ImagePart(buffer.getvalue(), "image/png"), TextPart("tap é"), small)),
        )
    )
    back = decode_prompt(json.loads(json.dumps(encode_prompt(prompt, ImageLimits()))))
    assert back.messages[0] == prompt.messages[0]
    large, text, same = back.messages[1].parts
    assert (text, same) == (TextPart("tap é"), small)
    assert isinstance(large, ImagePart)
    with Image.open(io.BytesIO(large.data)) as image:
        assert image.width * image.height == pytest.approx(MAX_STORED_IMAGE_PIXELS, rel=0.01)
        assert image.width / image.height == pytest.approx(4 / 3, rel=0.01)
        assert image.getpixel((5, 5)) == pytest.approx((10, 200, 30), abs=3)


def test_image_whose_body_is_broken_registers_nothing(world: World) -> None:
    catalogue = world.open(OLD)
    world.register(catalogue, OLD, "there", "red shoes")
    whole = png_part(90, 60)
    cut = ExamplePrompts((Prompt.of("one", [whole]), Prompt.of("two", [ImagePart(whole.data[:-900])])))
    indexer = Indexer(OLD, catalogue, 64)
    problem = r"^examples\.prompts\[1\]\.messages\[0\]\.parts\[\d\]\.image\.data: the image is broken or cut off"
    with pytest.raises(InvalidArgumentError, match=problem):
        indexer.create(Adapter("new", "base", "at/new"), cut)
    with pytest.raises(InvalidArgumentError, match=problem):
        indexer.update(Adapter("there", "base", "at/there", kind="changed"), ["kind"], cut, "")
    assert [one.adapter_id for one in catalogue.page(AdapterFilter(), 9).adapters] == ["there"]
    assert catalogue.get("there").kind == "app"
    assert indexer.create(Adapter("new", "base", "at/new"), ExamplePrompts((Prompt.of("one", [whole]),)))


def test_examples_are_kept_within_limits_of_server(world: World) -> None:
    catalogue, example = world.open(OLD), ExamplePrompts((Prompt.of("one", [png_part(90, 60)]),))
    with pytest.raises(InvalidArgumentError, match="at most 100"):
        Indexer(OLD, catalogue, 64, ImageLimits(max_pixels=100)).create(Adapter("small", "base", "at/small"), example)
    Indexer(OLD, catalogue, 64, ImageLimits(max_pixels=5400)).create(Adapter("large", "base", "at/large"), example)


def test_examples_that_qdrant_would_not_take_register_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_examples, "_MAX_EXAMPLES_BYTES", 200)
    with fake_qdrant_url() as url, closing(Qdrant(QdrantServer(url))) as qdrant:
        world = World(qdrant)
        catalogue = world.open(OLD)
        with pytest.raises(InvalidArgumentError, match=r"bytes of examples are too many for Qdrant.*send fewer"):
            world.register(catalogue, OLD, "one", *["red shoes"] * 9)
        assert not catalogue.exists("one")
        world.register(catalogue, OLD, "one", "red shoes")
