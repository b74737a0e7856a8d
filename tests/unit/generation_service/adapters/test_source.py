"""Adapter ids resolve to folders, none of them outside the roots."""

from __future__ import annotations

from pathlib import Path

import pytest

from generation_service.adapters.checkpoint.reader import read_checkpoint
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.source import (
    AdapterResolver,
    AdapterRoots,
    AdapterSource,
    CatalogueResolver,
    FolderResolver,
    check_base_model,
)
from generation_service.lora.weights import AdapterWeights
from infra.contract.adapter import Adapter
from infra.contract.errors import (
    BaseModelMismatchError,
    CheckpointError,
    ConflictError,
    NotFoundError,
    UnavailableError,
)
from tests.support.checkpoints.peft_adapters import TinyAdapter


def write(folder: Path, seed: int = 0) -> Path:
    return TinyAdapter.random({"layer": (4, 4)}, seed=seed, base_model_name_or_path="hub/tiny").write(folder)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "root" / "apps" / "clock")
    write(tmp_path / "root" / "clock", seed=1)
    return tmp_path / "root"


def catalogue(root: Path, uri: str) -> CatalogueResolver:
    def get(adapter_id: str) -> Adapter:
        if adapter_id != "clock":
            raise NotFoundError("no")
        return Adapter("clock", "tiny", uri, revision="r7")

    return CatalogueResolver(get, AdapterRoots([root]))


def test_folder_resolver_uses_content_hash_as_revision(root: Path) -> None:
    sources = FolderResolver(AdapterRoots([root]))
    source = sources.resolve("clock", "")
    assert (source.folder, source.base_model) == (root / "clock", "hub/tiny")
    assert source.content.startswith(source.revision)
    assert sources.resolve("clock", source.revision) == source
    write(root / "clock", seed=2)
    changed = sources.resolve("clock", "")
    assert changed.revision != source.revision
    with pytest.raises(NotFoundError, match=source.revision):
        sources.resolve("clock", source.revision)


def test_unknown_adapter_error_says_where_to_put_its_folder(root: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'unknown'.*unknown/ below .*root"):
        FolderResolver(AdapterRoots([root])).resolve("unknown", "")
    with pytest.raises(NotFoundError, match="--adapter-roots"):
        FolderResolver(AdapterRoots([])).resolve("clock", "")


def test_catalogue_resolver_takes_folder_base_model_and_revision_from_catalogue(root: Path) -> None:
    for uri in ("apps/clock", str(root / "apps" / "clock")):
        source = catalogue(root, uri).resolve("clock", "")
        assert (source.folder, source.base_model, source.revision) == (root / "apps" / "clock", "tiny", "r7")


def test_adapter_or_revision_missing_from_catalogue_is_not_found(root: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'unknown'.*loraretriever adapters add"):
        catalogue(root, "clock").resolve("unknown", "")
    with pytest.raises(NotFoundError, match=r"'r6'.*'r7'"):
        catalogue(root, "clock").resolve("clock", "r6")


def test_missing_folder_of_registered_checkpoint_is_named(root: Path) -> None:
    with pytest.raises(CheckpointError, match="'apps/gone'"):
        catalogue(root, "apps/gone").resolve("clock", "")


@pytest.mark.parametrize("uri", ["apps/clo\0ck", "x" * 300, "x/" * 5000, "loop"], ids=["NUL", "name", "path", "loop"])
def test_checkpoint_uri_that_is_not_path_counts_as_missing(root: Path, uri: str) -> None:
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(CheckpointError, match="there is no such folder"):
        catalogue(root, uri).resolve("clock", "")


def test_unavailable_catalogue_is_not_reported_as_unknown_adapter(root: Path) -> None:
    def away(adapter_id: str) -> Adapter:
        raise UnavailableError("connection refused")

    with pytest.raises(UnavailableError):
        CatalogueResolver(away, AdapterRoots([root])).resolve("clock", "")


@pytest.mark.parametrize("uri", ["../outside", "/etc", "apps/../../outside", "link", "linked"])
def test_nothing_outside_roots_is_opened(root: Path, uri: str) -> None:
    outside = write(root.parent / "outside")
    (root / "link").symlink_to(outside)
    (root / "linked").mkdir()
    for path in outside.iterdir():
        (root / "linked" / path.name).symlink_to(path)
    with pytest.raises(CheckpointError, match=r"outside the folders.*--adapter-roots"):
        catalogue(root, uri).resolve("clock", "")


def test_links_within_roots_are_followed(root: Path) -> None:
    (root / "alias").symlink_to(root / "apps" / "clock")
    assert FolderResolver(AdapterRoots([root])).resolve("alias", "").folder == root / "apps" / "clock"


def test_base_models_are_compared_by_last_path_component(root: Path) -> None:
    source = FolderResolver(AdapterRoots([root])).resolve("clock", "")
    check_base_model(source, ["Tiny"])
    check_base_model(source, ["other", "tiny"])
    with pytest.raises(BaseModelMismatchError, match="'clock' was trained on tiny; this server runs other"):
        check_base_model(source, ["other"])


def uncached(resolver: AdapterResolver) -> HostCache:
    """Return a host cache that keeps no weights, so that every call reads them."""

    def read(source: AdapterSource) -> AdapterWeights:
        return read_checkpoint(source.folder, {"layer": (4, 4)}, str, expected_revision=source.content)

    return HostCache(resolver, read, ["tiny"], max_bytes=0)


def test_registered_revision_with_changed_files_conflicts(root: Path) -> None:
    revision = "r7"
    sources = CatalogueResolver(lambda name: Adapter(name, "tiny", "clock", revision=revision), AdapterRoots([root]))
    host_cache = uncached(sources)
    first = host_cache.weights(host_cache.resolve("clock", ""))
    assert host_cache.weights(host_cache.resolve("clock", "r7")).revision == first.revision
    write(root / "clock", seed=2)
    for _ in range(2):
        with pytest.raises(ConflictError, match=r"'clock'.*'r7'.*register the adapter again") as caught:
            host_cache.weights(host_cache.resolve("clock", "r7"))
        assert caught.value.metadata == {"adapter_id": "clock", "revision": "r7"}
    revision = "r8"
    assert host_cache.weights(host_cache.resolve("clock", "")).revision != first.revision
    with pytest.raises(NotFoundError, match=r"'r7'.*'r8'"):
        host_cache.resolve("clock", "r7")


def test_replaced_folder_conflicts_once_and_its_old_revision_is_then_not_found(root: Path) -> None:
    host_cache = uncached(FolderResolver(AdapterRoots([root])))
    old = host_cache.resolve("clock", "")
    write(root / "clock", seed=2)
    assert host_cache.resolve("clock", old.revision) == old
    with pytest.raises(ConflictError, match="retry"):
        host_cache.weights(old)
    with pytest.raises(NotFoundError, match=old.revision):
        host_cache.resolve("clock", old.revision)
    assert host_cache.weights(host_cache.resolve("clock", "")).revision != old.content
