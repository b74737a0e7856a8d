"""Read PEFT folders: configs, headers and content hashes, and the bound weights of every module."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from stat import S_ISREG
from typing import Any

import torch
from torch import Tensor

from generation_service.adapters.checkpoint.binding import Rename, bind
from generation_service.adapters.checkpoint.folder_files import WEIGHTS_FILE, check_files, missing_file
from generation_service.adapters.checkpoint.peft_config import CONFIG_FILE, PeftConfig, parse_config, read_content
from generation_service.adapters.checkpoint.tensor_file import tensors_in
from generation_service.adapters.checkpoint.tensor_headers import BROKEN, TensorHeader, file_headers
from generation_service.lora.weights import AdapterWeights, Shapes
from infra.contract.errors import CapacityError, CheckpointError, ConflictError

_MAX_CONFIG_BYTES = 4 * 2**20
"""A rank of its own for every layer of a large model takes about 100 KB."""
_HEADER_ROOM_BYTES = 16 * 2**20
"""Allowance for the safetensors header in the bound of a weights file: about 200 bytes a tensor."""
_MAX_ITEM_BYTES = 8
"""float64, the widest type."""


def read_checkpoint(
    folder: Path,
    targets: Shapes,
    rename: Rename,
    *,
    max_rank: int | None = None,
    expected_revision: str = "",
    dtype: torch.dtype = torch.float32,
) -> AdapterWeights:
    """Read the PEFT folder's LoRA for a base model whose adaptable modules are `targets`, in `dtype` on the host.

    `rename` maps a module name as in the checkpoint (without "base_model.model.") to its canonical path, or to the
    slices of a fused module.

    Raises:
        CheckpointError: the folder is incomplete, broken or not supported, or a tensor does not bind.
        CapacityError: a rank is beyond `max_rank`.
        ConflictError: the content is not that of `expected_revision` (see `content_revision`).
    """
    config_data = _read(folder, CONFIG_FILE, _MAX_CONFIG_BYTES)
    config = parse_config(config_data, str(folder / CONFIG_FILE))
    if max_rank is not None and config.largest_rank > max_rank:
        raise CapacityError(
            f"{folder} has rank {config.largest_rank}, and the adapter bank takes {max_rank} at most: "
            "start the server with a larger bank",
            rank=str(config.largest_rank),
            limit=str(max_rank),
        )
    check_files(folder)
    data = _read(folder, WEIGHTS_FILE, _largest_weights(targets, config))
    revision = _revision(config_data, data)
    if expected_revision and revision != expected_revision:
        raise ConflictError(f"{folder} changed before it was loaded: its revision is {revision} now; retry")
    where = str(folder / WEIGHTS_FILE)
    modules = bind(_tensors(data, where), config, targets, rename, where=where, dtype=dtype)
    return AdapterWeights.of(modules, revision)


def read_config(folder: Path) -> PeftConfig:
    """Return the folder's config: ranks, scaling and base model. Raises CheckpointError."""
    return parse_config(_read(folder, CONFIG_FILE, _MAX_CONFIG_BYTES), str(folder / CONFIG_FILE))


def read_config_content(folder: Path) -> dict[str, Any]:
    """Return the folder's raw config, supported or not. Raises CheckpointError if it is not a JSON object."""
    return read_content(_read(folder, CONFIG_FILE, _MAX_CONFIG_BYTES), str(folder / CONFIG_FILE))


def content_revision(folder: Path) -> str:
    """Return the SHA-256 (hex) of the hashes of the folder's config and weights: the adapter's identity.

    Raises CheckpointError if either file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        with _opened(folder, name) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def tensor_headers(folder: Path) -> dict[str, TensorHeader]:
    """Return the headers of the folder's tensors by name. Raises CheckpointError if the file is not complete."""
    with _opened(folder, WEIGHTS_FILE):
        pass
    path = folder / WEIGHTS_FILE
    try:
        return file_headers(path)
    except BROKEN as error:
        raise _not_whole(path, error) from error


def _revision(config: bytearray, weights: bytearray) -> str:
    return hashlib.sha256(hashlib.sha256(config).digest() + hashlib.sha256(weights).digest()).hexdigest()


def _largest_weights(targets: Shapes, config: PeftConfig) -> int:
    values = sum(inputs + outputs for inputs, outputs in targets.values()) * config.largest_rank
    return values * _MAX_ITEM_BYTES + _HEADER_ROOM_BYTES


def _read(folder: Path, name: str, limit: int) -> bytearray:
    with _opened(folder, name, limit) as file:
        data = bytearray(min(limit, os.fstat(file.fileno()).st_size))
        filled = 0
        with memoryview(data) as buffer:
            while count := file.readinto(buffer[filled:]):
                filled += count
        del data[filled:]
        return data


@contextmanager
def _opened(folder: Path, name: str, limit: int | None = None) -> Iterator[FileIO]:
    """Open a file of the folder of at most `limit` bytes. Raises CheckpointError with its path and the reason."""
    path = folder / name
    try:
        status = path.stat()
        if not S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a file")
        if limit is not None and status.st_size > limit:
            raise CheckpointError(f"{path} has {status.st_size} bytes; a LoRA for this base model has at most {limit}")
        with path.open("rb", buffering=0) as file:
            yield file
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(missing_file(folder, name)) from error
    except PermissionError as error:
        raise CheckpointError(
            f"{path} cannot be read: {error.strerror}; libraries save adapters readable only by their owner (mode "
            "0600): make it readable by the user that runs this server"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _not_whole(path: Path | str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a complete safetensors file ({error}): save or copy it again")


def _tensors(data: bytearray, where: str) -> Mapping[str, Tensor]:
    try:
        return tensors_in(data)
    except ValueError as error:
        raise _not_whole(where, error) from error
