"""Where records and reports go: a local folder, or any URI that fsspec knows."""

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
    """Return a URI that means the same in every process of this machine: local folders become absolute."""
    return uri if "://" in uri else str(Path(uri).absolute())


def check_uri(uri: str) -> None:
    """Raise ConfigurationError for a folder that can never be written to from this process. Connects to nothing."""
    if "\0" in uri or not uri.strip():
        raise ConfigurationError(f"{uri!r} is no folder")
    _check_protocols(uri)
    if "://" not in uri:
        nearest = next(each for each in (Path(uri).absolute(), *Path(uri).absolute().parents) if os.path.lexists(each))
        if not nearest.is_dir():
            raise ConfigurationError(f"{uri} cannot be a folder: {nearest} is none")


def write_text(folder: str, name: str, text: str) -> None:
    """Write a file of a folder, made when missing. A reader sees the old content or the new one, never half of it.

    A local file is on the disk when this returns. Raises UnavailableError where it cannot be written now,
    ConfigurationError where it never can.
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
    """Return what a file of a folder holds.

    Raises NotFoundError, FailedPreconditionError for what is not UTF-8, UnavailableError where it cannot be read now,
    ConfigurationError where it never can.
    """
    with _named_errors(f"{folder}/{name} cannot be read"):
        try:
            files, path = _open(folder)
            content: bytes = files.cat_file(f"{path}/{name}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFoundError(
                f"{folder}/{name} is not there; was it moved, or does this server see the folder?"
            ) from error
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FailedPreconditionError(f"{folder}/{name} is not UTF-8; is it the file of a job?") from error


@contextmanager
def _named_errors(what: str) -> Iterator[None]:
    """Turn whatever a file system raises into an error of ours; those of object stores are of any class."""
    try:
        yield
    except LoraRetrieverError:
        raise
    except (NotImplementedError, ValueError) as error:
        raise ConfigurationError(f"{what}: {str(error) or 'storage of this kind does not do that'}") from error
    except Exception as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise UnavailableError(f"{what}: {reason}") from error


def _write_to_disk(folder: Path, name: str, content: bytes) -> None:
    made = [each for each in (folder, *folder.parents) if not each.exists()]
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
    for changed in (folder, *(each.parent for each in made)):
        _sync_folder(changed)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, where its file system can be told to."""
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
    """Raise ConfigurationError for a protocol of a URI, or of the links of a chain such as "simplecache::s3://x", that
    is not known, or whose library is missing.
    """
    for link in uri.split("::") if "://" in uri else ():
        protocol = link.partition("://")[0]
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            raise ConfigurationError(
                f"{uri}: {protocol!r} is no kind of storage that is known here; give a folder, or a URI such as "
                "s3://bucket/evaluations"
            ) from error
        except ImportError as error:
            raise ConfigurationError(f"{uri}: the library for {protocol}:// is missing: {error}") from error


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
