"""Where records and reports go: a local folder, or any URI that fsspec knows."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import fsspec

from infra.contract.errors import NotFoundError


def absolute_uri(uri: str) -> str:
    """Return a URI that means the same in every process of this machine: local folders become absolute."""
    return uri if "://" in uri else str(Path(uri).absolute())


def write_text(folder: str, name: str, text: str) -> None:
    """Write a file of a folder, made when missing. A reader sees the old content or the new one, never half of it."""
    files, path = _open(folder)
    files.makedirs(path, exist_ok=True)
    target = f"{path}/{name}"
    if "file" in _protocols(files):
        unfinished = f"{path}/.{name}.{uuid.uuid4().hex}"
        files.pipe_file(unfinished, text.encode())
        os.replace(unfinished, target)
    else:
        files.pipe_file(target, text.encode())


def read_text(folder: str, name: str) -> str:
    """Return what a file of a folder holds. Raises NotFoundError."""
    files, path = _open(folder)
    try:
        content: bytes = files.cat_file(f"{path}/{name}")
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{folder}/{name} is not there; was it moved, or does this server see the folder?"
        ) from error
    return content.decode()


def _open(folder: str) -> tuple[Any, str]:
    files, path = fsspec.core.url_to_fs(folder)
    return files, str(path).rstrip("/")


def _protocols(files: Any) -> tuple[str, ...]:
    protocol = files.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
