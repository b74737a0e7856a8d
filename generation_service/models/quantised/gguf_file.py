"""Read a GGUF file: its metadata, and its tensors dequantised one by one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infra.contract.errors import CheckpointError, ConfigurationError

SUFFIX = ".gguf"
_MAGIC = b"GGUF"
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of a file: its shape as torch counts dimensions, and the name of its quantisation."""

    shape: tuple[int, ...]
    quantisation: str
    data: Any
    kind: Any

    def read(self) -> Tensor:
        """Return the values in float32."""
        from gguf import dequantize

        return torch.from_numpy(np.array(dequantize(self.data, self.kind), dtype=np.float32).reshape(self.shape))


@dataclass(frozen=True)
class GgufFile:
    """The contents of a GGUF file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def architecture(self) -> str:
        """The name that llama.cpp gives the architecture."""
        return str(self.metadata.get("general.architecture"))

    def of_architecture(self, key: str) -> Any:
        """Return a setting of the architecture, such as `block_count`; None if the file does not state it."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def quantisations(self) -> str:
        """The quantisations of the tensors, those of most values first."""
        values: Counter[str] = Counter()
        for tensor in self.tensors.values():
            values[tensor.quantisation] += int(np.prod(tensor.shape))
        return ", ".join(name for name, _ in values.most_common())


def gguf_path(path: Path) -> Path | None:
    """Return the GGUF file that `path` is, or that the folder `path` has its weights in; None if there is none.

    Raises CheckpointError for a folder with several of them.
    """
    if path.is_file():
        return path if path.suffix == SUFFIX else None
    if not path.is_dir() or any(any(path.glob(name)) for name in _WEIGHTS):
        return None
    files = sorted(path.glob(f"*{SUFFIX}"))
    if len(files) > 1 and not _PART.search(files[0].name):
        raise CheckpointError(
            f"{path} holds several GGUF files: give the path of one of them: {', '.join(file.name for file in files)}",
            path=str(path),
        )
    return files[0] if files else None


def read_gguf(path: Path) -> GgufFile:
    """Return the contents of the file. Nothing is read twice in a process.

    Raises CheckpointError naming what is wrong with the file, and ConfigurationError if `gguf` is not installed.
    """
    if find_spec("gguf") is None:
        raise ConfigurationError(f"{path} needs the package gguf: pip install 'loraretriever[gguf]'")
    _check_head(path)
    stat = path.stat()
    return _read(path, stat.st_size, stat.st_mtime_ns)


def _check_head(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != _MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file (it does not start with GGUF): download it again")
    if part := _PART.search(path.name):
        raise CheckpointError(
            f"{path} is part {int(part[1])} of {int(part[2])} of a split GGUF: merge the parts with "
            "`llama-gguf-split --merge FIRST_PART OUTPUT` and give the result",
            path=str(path),
        )


@lru_cache(maxsize=2)
def _read(path: Path, size: int, modified: int) -> GgufFile:
    del size, modified  # They are part of the key: a file that changed is read again.
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
        file = GgufFile(path, metadata, dict(_tensors(reader)))
    except Exception as error:  # The reader indexes into the mapped file without checks.
        raise CheckpointError(
            f"{path} is not a complete GGUF file ({type(error).__name__}: {error}): download it again", path=str(path)
        ) from error
    if int(metadata.get("split.count") or 1) > 1:
        raise CheckpointError(f"{path} is one part of a split GGUF: merge them with `llama-gguf-split --merge`")
    _check_quantisations(file)
    return file


def _tensors(reader: Any) -> Iterator[tuple[str, GgufTensor]]:
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        yield tensor.name, GgufTensor(shape, tensor.tensor_type.name, tensor.data, tensor.tensor_type)


def _check_quantisations(file: GgufFile) -> None:
    from gguf import dequantize

    unknown = set()
    for kind, sample in {tensor.kind: tensor for tensor in file.tensors.values()}.items():
        try:
            dequantize(sample.data[:1], kind)
        except NotImplementedError:
            unknown.add(kind.name)
    if unknown:
        raise CheckpointError(
            f"{file.path} has tensors of type {', '.join(sorted(unknown))}, which the package gguf cannot dequantise: "
            "take a file of another quantisation, such as Q4_K_M or Q8_0",
            path=str(file.path),
        )
