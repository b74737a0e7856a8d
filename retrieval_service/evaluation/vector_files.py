"""Reads example vectors from files: one array [n, dim] per adapter."""

from __future__ import annotations

import lzma
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from infra.contract.errors import InvalidArgumentError
from retrieval_service.embedders.base import FloatArray
from retrieval_service.strategies.examples import ExampleSet

# Everything that zipfile and numpy raise for damaged files, including numpy's header parser and unknown zip methods.
READ_ERRORS = (
    *(OSError, ValueError, EOFError, KeyError, RuntimeError, NotImplementedError, SyntaxError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError),
)


def read_npz(file: Path) -> ExampleSet:
    """Return the vectors of a .npz file. Raises InvalidArgumentError that names the invalid array and the problem."""
    try:
        loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, NpzFile):
            raise ValueError("it holds a single array")
        with loaded as content:
            arrays = {name: _checked(file, name, content[name]) for name in content.files}
    except FileNotFoundError as error:
        raise InvalidArgumentError("vectors", f"there is no file {file}") from error
    except READ_ERRORS as error:
        raise InvalidArgumentError("vectors", f"{file} is not a .npz file of numbers: {error}") from error
    if not arrays:
        raise InvalidArgumentError("vectors", f"{file} holds no array; give one [n, dim] per adapter")
    dims = {array.shape[1] for array in arrays.values()}
    if len(dims) > 1:
        raise InvalidArgumentError("vectors", f"{file} mixes dimensions {sorted(dims)}; use vectors of one embedder")
    return ExampleSet.of(arrays)


def _checked(file: Path, name: str, array: FloatArray) -> FloatArray:
    where = f"array {name!r} of {file}"
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind not in "fiu":
        raise InvalidArgumentError("vectors", f"{where} is {array.dtype} {array.shape}; give numbers [n, dim]")
    array = np.atleast_2d(array).astype(np.float32)
    if not np.isfinite(array).all():
        raise InvalidArgumentError("vectors", f"{where} contains NaN or infinite values")
    if not array.any(axis=1).all():
        raise InvalidArgumentError("vectors", f"{where} contains a vector of zeros, which has no direction to compare")
    return array
