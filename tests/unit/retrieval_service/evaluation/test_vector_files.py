"""Files of vectors, valid and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.contract.errors import InvalidArgumentError
from retrieval_service.evaluation.outcomes import Outcome
from retrieval_service.evaluation.vector_files import read_npz


def one(truth: str, rank: int | None, first: str, weight: float) -> Outcome:
    return Outcome(truth, rank, (first, "other"), (weight, 1 - weight))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({}, "holds no array"),
        ({"a": np.ones((2, 4)), "b": np.ones((2, 3))}, r"mixes dimensions \[3, 4\]"),
        ({"a": np.array([[1, np.nan]])}, "array 'a' .* NaN"),
        ({"a": np.ones((2, 4)), "b": np.zeros((2, 4))}, "array 'b' .* zeros"),
        ({"a": np.array(["x"])}, "array 'a' .* give numbers"),
        ({"a": np.ones((2, 2, 2))}, "give numbers"),
        ({"a": np.ones((0, 4))}, "give numbers"),
        ({"a": np.array([{}], dtype=object)}, r"not a \.npz file of numbers"),
    ],
)
def test_invalid_vector_file_is_reported(tmp_path: Path, arrays: dict[str, Any], problem: str) -> None:
    file = tmp_path / "vectors.npz"
    np.savez(file, **arrays)
    with pytest.raises(InvalidArgumentError, match=problem):
        read_npz(file)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_damaged_vector_file_is_reported(tmp_path: Path, write: Any) -> None:
    file = tmp_path / "vectors.npz"
    write(file, a=np.random.default_rng(0).normal(size=(3, 8)))
    whole = file.read_bytes()
    refused: list[str] = []
    for place in range(len(whole)):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x5B]) + whole[place + 1 :])
        try:
            read_npz(file)
        except InvalidArgumentError as error:
            refused.append(str(error))
    assert len(refused) > len(whole) // 4
    assert all("vectors.npz" in message for message in refused)


def test_file_that_is_not_npz_is_reported(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="there is no file"):
        read_npz(tmp_path / "nowhere.npz")
    for content in (b"", b"words", b"PK\x03\x04broken"):
        (tmp_path / "file.npz").write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=r"not a \.npz file of numbers"):
            read_npz(tmp_path / "file.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(InvalidArgumentError, match=r"not a \.npz file of numbers"):
        read_npz(tmp_path / "one.npy")
