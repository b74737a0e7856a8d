"""Atomic writes, and errors of local and remote storage."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from infra.contract.errors import ConfigurationError, FailedPreconditionError, NotFoundError, UnavailableError
from orchestrator.evaluation.storage import absolute_uri, check_uri, read_text, write_text


def test_folder_is_created_and_only_last_content_remains(tmp_path: Path) -> None:
    folder = str(tmp_path / "evaluations" / "job-1")
    write_text(folder, "summary.md", "first")
    write_text(folder, "summary.md", "zweite, schön")
    assert read_text(folder, "summary.md") == "zweite, schön"
    assert [file.name for file in Path(folder).iterdir()] == ["summary.md"]


def test_fsspec_uri_is_supported() -> None:
    write_text("memory://evaluations/job-1", "summary.md", "in memory")
    assert read_text("memory://evaluations/job-1", "summary.md") == "in memory"


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"job-1/summary\.md"):
        read_text(str(tmp_path / "job-1"), "summary.md")


def test_local_folder_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("evaluations") == str(tmp_path / "evaluations")
    assert absolute_uri("s3://bucket/evaluations") == "s3://bucket/evaluations"


def test_local_file_is_synced_before_rename_and_folder_before_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "evaluations" / "job-1"
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append((os.fstat(fd).st_ino, (folder / "summary.md").exists())))
    write_text(str(folder), "summary.md", "done")
    file, *folders = synced
    assert file == ((folder / "summary.md").stat().st_ino, False)
    assert set(folders) == {(path.stat().st_ino, True) for path in (folder, folder.parent, tmp_path)}
    synced.clear()
    write_text(f"file://{folder}", "summary.md", "again")
    assert [inode for inode, _ in synced[1:]] == [folder.stat().st_ino]


def test_file_system_without_folder_sync_is_supported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def for_files_only(descriptor: int) -> None:
        if os.path.isdir(f"/dev/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", for_files_only)
    write_text(str(tmp_path), "summary.md", "done")
    assert read_text(str(tmp_path), "summary.md") == "done"


def test_full_disk_leaves_only_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(str(tmp_path), "summary.md", "old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match=r"summary\.md cannot be written: No space left on device"):
        write_text(str(tmp_path), "summary.md", "new")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_folder_that_cannot_be_created_or_read_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnavailableError, match=r"file/job-1/summary\.md cannot be written"):
        write_text(str(tmp_path / "file" / "job-1"), "summary.md", "done")
    with pytest.raises(NotFoundError):
        read_text(str(tmp_path / "file" / "job-1"), "summary.md")
    (tmp_path / "summary.md").mkdir()
    with pytest.raises(UnavailableError, match=r"summary\.md cannot be read: Is a directory"):
        read_text(str(tmp_path), "summary.md")

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", forbidden)
    with pytest.raises(UnavailableError, match="cannot be written: Permission denied"):
        write_text(str(tmp_path / "theirs"), "summary.md", "done")


def test_object_store_errors_are_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoCredentialsError(Exception):
        pass

    def fail(*_: Any, **__: Any) -> None:
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", fail)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", fail)
    with pytest.raises(UnavailableError, match="x cannot be written: Unable to locate credentials"):
        write_text("memory://bucket", "x", "")
    with pytest.raises(UnavailableError, match="x cannot be read: Unable to locate credentials"):
        read_text("memory://bucket", "x")


def test_read_only_storage_is_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"data://x/summary\.md cannot be written: Read only"):
        write_text("data://x", "summary.md", "done")

    def unable(*_: Any, **__: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", unable)
    with pytest.raises(ConfigurationError, match="cannot be written: this kind of storage does not support it"):
        write_text("memory://x", "summary.md", "done")


def test_bytes_that_are_not_text_are_reported(tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_bytes(b"\xff")
    with pytest.raises(FailedPreconditionError, match="is not UTF-8"):
        read_text(str(tmp_path), "summary.md")


def test_unusable_uri_is_refused_before_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uri in ("memory://bucket/evaluations", "simplecache::memory://bucket", str(tmp_path / "new"), "evaluations"):
        check_uri(uri)
    for uri in ("foo://x", "simplecache::foo://x"):
        for use in (check_uri, lambda uri: write_text(uri, "x", ""), lambda uri: read_text(uri, "x")):
            with pytest.raises(ConfigurationError, match=f"{uri}: 'foo' is not a known kind of storage"):
                use(uri)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"file/new cannot be a folder: .*file is not a folder"):
        check_uri(str(tmp_path / "file" / "new"))
    for uri in ("", " ", "a\0b"):
        with pytest.raises(ConfigurationError, match="is not a folder"):
            check_uri(uri)

    def missing(_protocol: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(ConfigurationError, match="the library for s3:// is missing: Install s3fs"):
        check_uri("s3://bucket/evaluations")
