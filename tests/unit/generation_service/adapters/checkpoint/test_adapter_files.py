"""The files of a PEFT folder: complete, truncated, linked or hostile, and the hash of their content."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generation_service.adapters.checkpoint.reader import content_revision, read_checkpoint, tensor_headers
from infra.contract.errors import CheckpointError, ConflictError
from tests.support.checkpoints.peft_adapters import LAYERS, PREFIX, TinyAdapter, same


def test_pickle_is_refused_with_conversion_command(tmp_path: Path) -> None:
    TinyAdapter.random(LAYERS).write(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin, a pickle.*convert it"):
        read_checkpoint(tmp_path, LAYERS, same)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_truncated_file_is_named(tmp_path: Path, name: str, kept: float) -> None:
    path = TinyAdapter.random(LAYERS).write(tmp_path) / name
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path, LAYERS, same)
    assert name in caught.value.message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_file_is_named(tmp_path: Path, name: str) -> None:
    (TinyAdapter.random(LAYERS).write(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path, LAYERS, same)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not a folder"):
        read_checkpoint(tmp_path / "absent", LAYERS, same)


def test_folder_of_adapters_lists_them(tmp_path: Path) -> None:
    TinyAdapter.random(LAYERS).write(tmp_path / "default")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json: give the folder of one adapter: default"):
        read_checkpoint(tmp_path, LAYERS, same)


def test_symbolic_links_to_files_are_followed(tmp_path: Path) -> None:
    TinyAdapter.random(LAYERS).write(tmp_path / "blobs")
    (tmp_path / "snapshot").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{name}")
    assert read_checkpoint(tmp_path / "snapshot", LAYERS, same).rank == 4
    (tmp_path / "blobs" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no adapter_model\.safetensors"):
        read_checkpoint(tmp_path / "snapshot", LAYERS, same)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_unreadable_file_error_names_remedy(tmp_path: Path) -> None:
    (TinyAdapter.random(LAYERS).write(tmp_path) / "adapter_model.safetensors").chmod(0)
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors cannot be read.*let the user"):
        read_checkpoint(tmp_path, LAYERS, same)


def safetensors_bytes(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def header(dtype: str = "F32", shape: tuple[int, ...] = (4, 8), offsets: tuple[int, int] = (0, 128)) -> bytes:
    return json.dumps({"a.lora_A.weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    "content",
    [
        safetensors_bytes(b"{}", length=2**63),
        safetensors_bytes(b"{}", length=2**30),
        safetensors_bytes(b"["),
        safetensors_bytes(header(), bytes(64)),
        safetensors_bytes(header(), bytes(256)),
        safetensors_bytes(header(shape=(2**40, 2**40)), bytes(128)),
        safetensors_bytes(header(offsets=(128, 0)), bytes(128)),
        safetensors_bytes(header(dtype="Q7"), bytes(128)),
    ],
    ids=["endless header", "long header", "no JSON", "cut", "left over", "vast shape", "backwards", "unknown type"],
)
def test_inconsistent_file_is_refused(tmp_path: Path, content: bytes) -> None:
    TinyAdapter.random(LAYERS).write(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    reads: list[Callable[[], Any]] = [
        lambda: read_checkpoint(tmp_path, LAYERS, same),
        lambda: tensor_headers(tmp_path),
    ]
    for read in reads:
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            read()


def test_headers_hold_names_shapes_and_dtypes(tmp_path: Path) -> None:
    adapter = TinyAdapter.random(LAYERS, rank=3)
    adapter.tensors = {key: tensor.half() for key, tensor in adapter.tensors.items()}
    headers = tensor_headers(adapter.write(tmp_path))
    assert headers.keys() == adapter.tensors.keys()
    assert {found.dtype for found in headers.values()} == {"float16"}
    assert headers[f"{PREFIX}model.layers.0.k_proj.lora_B.weight"].shape == (4, 3)


def test_fifo_is_refused_without_blocking(tmp_path: Path) -> None:
    path = TinyAdapter.random(LAYERS).write(tmp_path) / "adapter_model.safetensors"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path, LAYERS, same)


def test_file_far_larger_than_any_adapter_is_not_read(tmp_path: Path) -> None:
    TinyAdapter.random(LAYERS).write(tmp_path)
    with (tmp_path / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(2**34)
    with pytest.raises(CheckpointError, match="has 17179869184 bytes; a LoRA for this base model has at most"):
        read_checkpoint(tmp_path, LAYERS, same)


def test_revision_depends_on_content_only(tmp_path: Path) -> None:
    first = TinyAdapter.random(LAYERS, seed=1).write(tmp_path / "first")
    copy = TinyAdapter.random(LAYERS, seed=1).write(tmp_path / "copy")
    weights = TinyAdapter.random(LAYERS, seed=2).write(tmp_path / "weights")
    config = TinyAdapter.random(LAYERS, seed=1, alpha=9).write(tmp_path / "config")
    revision = content_revision(first)
    assert content_revision(copy) == revision
    assert len({revision, content_revision(weights), content_revision(config)}) == 3
    assert read_checkpoint(first, LAYERS, same).revision == revision


def test_checkpoint_replaced_before_reading_conflicts(tmp_path: Path) -> None:
    expected = content_revision(TinyAdapter.random(LAYERS, seed=1).write(tmp_path))
    assert read_checkpoint(tmp_path, LAYERS, same, expected_revision=expected).revision == expected
    TinyAdapter.random(LAYERS, seed=2).write(tmp_path)
    with pytest.raises(ConflictError, match="changed before it was loaded"):
        read_checkpoint(tmp_path, LAYERS, same, expected_revision=expected)
