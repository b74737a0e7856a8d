"""Safetensors views over memory, compared with the library."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from generation_service.adapters.checkpoint.tensor_file import tensors_in

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensor(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def file_of(**tensors: Tensor) -> bytes:
    data: bytes = save(tensors, metadata={"format": "pt"})
    return data


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype is theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and torch.equal(ours[name].double(), theirs[name].double())
        for name in theirs
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_read_as_by_library(dtype: torch.dtype) -> None:
    data = file_of(
        a=tensor(dtype, (3, 5)), b=tensor(torch.float32, (2,)), empty=tensor(dtype, (0, 4)), one=tensor(dtype, ())
    )
    assert same(tensors_in(bytearray(data)), load(data))


GOOD = file_of(a=tensor(torch.float32, (2, 3)), b=tensor(torch.bfloat16, (5,)))


def read_by_the_library(data: bytes) -> dict[str, Tensor] | None:
    try:
        found: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError):
        return None
    return found


@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_file_with_one_byte_changed_is_read_as_by_library_or_refused(place: int, value: int) -> None:
    data = bytearray(GOOD)
    data[place] = value
    theirs = read_by_the_library(bytes(data))
    try:
        ours = tensors_in(data)
    except ValueError:
        return
    assert theirs is not None
    assert same(ours, theirs)


def test_file_truncated_anywhere_is_refused() -> None:
    for length in range(len(GOOD)):
        with pytest.raises(ValueError, match="it"):
            tensors_in(bytearray(GOOD[:length]))


def described(**entries: object) -> bytearray:
    header = json.dumps(entries).encode()
    return bytearray(len(header).to_bytes(8, "little") + header + bytes(16))


F32 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (described(a=F32 | {"dtype": "F4"}), "describes a as"),
        (described(a=F32 | {"shape": [-4]}), "describes a as"),
        (described(a=F32 | {"shape": [2**40, 2**40]}), "describes a as"),
        (described(a=F32 | {"shape": [True, 4]}), "describes a as"),
        (described(a=F32 | {"data_offsets": [-16, 0]}), "describes a as"),
        (described(a=F32 | {"data_offsets": [0, 32], "shape": [8]}), "describes"),
        (described(a=F32, b=F32), "does not start where the previous tensor ends"),
        (described(a=F32 | {"data_offsets": [8, 16], "shape": [2]}), "does not start where"),
        (described(a=[]), "describes a as"),
        (bytearray((2).to_bytes(8, "little") + b"[]"), "not a JSON object"),
        (bytearray((2**63).to_bytes(8, "little") + b"{}"), "ends within its header"),
    ],
)
def test_inconsistent_header_is_refused(data: bytearray, words: str) -> None:
    assert read_by_the_library(bytes(data)) is None
    with pytest.raises(ValueError, match=words):
        tensors_in(data)


def file_with(shape: str) -> bytearray:
    header = f'{{"a": {{"dtype": "F32", "shape": [{shape}], "data_offsets": [0, 0]}}}}'.encode()
    return bytearray(len(header).to_bytes(8, "little") + header)


@pytest.mark.parametrize(
    "shape",
    [", ".join(["9" * 4000] * 2000), ", ".join([*["1"] * 8, "0"]), "0, 1000"],
    ids=["huge sizes", "nine dimensions", "a size beyond the file"],
)
def test_impossible_shape_is_refused_before_its_sizes_are_multiplied(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "generation_service.adapters.checkpoint.tensor_file.math.prod", lambda _: pytest.fail("multiplied")
    )
    with pytest.raises(ValueError, match="its header describes a as"):
        tensors_in(file_with(shape))
