"""Reads example vectors from files: one array [n, dim] per adapter, named NAME or KIND/NAME."""

from __future__ import annotations

import json
import lzma
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
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


def read_npz(file: Path, kinds: Mapping[str, str] | None = None) -> ExampleSet:
    """Return the vectors of a .npz file.

    An adapter's kind is that of `kinds`, else the part of its array's name before the first slash. Its id is the whole
    name, so that two kinds may use one name. Raises InvalidArgumentError that names the invalid array and the problem,
    or an adapter of `kinds` that the file does not hold.
    """
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
    unknown = sorted(set(kinds or {}) - set(arrays))
    if unknown:
        raise InvalidArgumentError("kinds", f"names adapters that {file} does not hold: {', '.join(unknown[:3])}")
    by_name = {name: name.partition("/")[0] for name in arrays if "/" in name}
    return ExampleSet.of(arrays, by_name | dict(kinds or {}))


def read_kinds(file: Path) -> dict[str, str]:
    """Return the kind of each adapter in a JSON object {"adapter": "kind"}. Raises InvalidArgumentError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidArgumentError("kinds", f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(kind, str) for kind in content.values()):
        raise InvalidArgumentError("kinds", f'{file} must be an object {{"adapter": "kind"}}')
    return content


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
