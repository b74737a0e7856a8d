"""Read and write records and reports in a local folder or at any URI that fsspec supports."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from infra.contract.errors import (
    ConfigurationError,
    FailedPreconditionError,
    LoraRetrieverError,
    NotFoundError,
    UnavailableError,
)


def absolute_uri(uri: str) -> str:
    """Make a local folder absolute, so that every process of this machine resolves it to the same folder."""
    return uri if "://" in uri else str(Path(uri).absolute())


def check_uri(uri: str) -> None:
    """Raise ConfigurationError for a folder that can never be written to from this process. Does not connect."""
    if "\0" in uri or not uri.strip():
        raise ConfigurationError(f"{uri!r} is not a folder")
    _check_protocols(uri)
    if "://" not in uri:
        folder = Path(uri).absolute()
        nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
        if not nearest.is_dir():
            raise ConfigurationError(f"{uri} cannot be a folder: {nearest} is not a folder")


def write_text(folder: str, name: str, text: str) -> None:
    """Write a file atomically, creating the folder if missing. A reader sees the old or the new content, never a part.

    A local file is synced to disk when this returns.

    Raises:
        UnavailableError: it cannot be written now.
        ConfigurationError: it can never be written.
    """
    content = text.encode(errors="backslashreplace")
    with _named_errors(f"{folder}/{name} cannot be written"):
        files, path = _open(folder)
        if "file" in _protocols(files):
            _write_to_disk(Path(path), name, content)
        else:
            files.makedirs(path, exist_ok=True)
            files.pipe_file(f"{path}/{name}", content)


def read_text(folder: str, name: str) -> str:
    """Return the content of a file.

    Raises:
        NotFoundError: the file does not exist.
        FailedPreconditionError: the file is not UTF-8.
        UnavailableError: it cannot be read now.
        ConfigurationError: it can never be read.
    """
    with _named_errors(f"{folder}/{name} cannot be read"):
        try:
            files, path = _open(folder)
            content: bytes = files.cat_file(f"{path}/{name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{folder}/{name} does not exist; was it moved, or is the folder not visible to this server?"
            ) from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{folder}/{name} is not UTF-8; was it written by a job?") from error


@contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Translate file system errors to LoraRetrieverError."""
    try:
        yield
    except LoraRetrieverError:
        raise
    except (NotImplementedError, ValueError) as error:
        raise ConfigurationError(f"{what}: {str(error) or 'this kind of storage does not support it'}") from error
    # Object stores raise exceptions of many unrelated classes.
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnavailableError(f"{what}: {reason}") from error


def _write_to_disk(folder: Path, name: str, content: bytes) -> None:
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / name)
    finally:
        unfinished.unlink(missing_ok=True)
    # A new name survives a crash only once its parent folder is synced too.
    for changed in (folder, *(path.parent for path in created)):
        _sync_folder(changed)


def _sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, on file systems that support it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def _open(folder: str) -> tuple[Any, str]:
    _check_protocols(folder)
    files, path = fsspec.core.url_to_fs(folder)
    return files, str(path).rstrip("/")


def _check_protocols(uri: str) -> None:
    """Raise ConfigurationError for a protocol of a URI that is unknown or whose library is missing.

    A chain such as "simplecache::s3://x" has several protocols.
    """
    for link in uri.split("::") if "://" in uri else ():
        protocol = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            raise ConfigurationError(
                f"{uri}: {protocol!r} is not a known kind of storage; give a folder, or a URI such as "
                "s3://bucket/evaluations"
            ) from error
        except ImportError as error:
            raise ConfigurationError(f"{uri}: the library for {protocol}:// is missing: {error}") from error


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
