"""sentence-transformers folders: the vectors of the transformer with its pooling written out, and what is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from infra.contract.errors import CheckpointError, ConfigurationError, InvalidArgumentError
from infra.contract.prompt import Prompt
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.batcher import BatchedEmbedder
from retrieval_service.embedders.sentence_transformers import SentenceOptions, SentenceTransformersEmbedder
from tests.support.checkpoints.sentence_transformers import DENSE, HIDDEN, write_sentence_model
from tests.support.harness.images import png_part

pytest.importorskip("sentence_transformers", reason="the extra sentence-transformers is not installed")

TEXTS = ("open the shop", "a", "set an alarm for 7, then wait", "x " * 40)


def expected(folder: Path, texts: tuple[str, ...], pooling: str, prompt: str = "") -> FloatArray:
    """Return the vectors by transformers alone, one text at a time. Words of the prompt are read but not pooled."""
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    for text in texts:
        ids = tokenizer(prompt + text, truncation=True, max_length=48, return_tensors="pt")
        with torch.inference_mode():
            hidden = bert(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0]
        skipped = len(tokenizer(prompt)["input_ids"]) - 1 if prompt else 0
        rows.append({"mean": hidden[skipped:].mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[pooling])
    stacked = torch.stack(rows)
    if (folder / "2_Dense").exists():
        dense = load_file(folder / "2_Dense" / "model.safetensors")
        stacked = torch.tanh(stacked @ dense["linear.weight"].T + dense["linear.bias"])
    vectors: FloatArray = F.normalize(stacked, dim=-1).numpy()
    return vectors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sentence_model(tmp_path_factory.mktemp("mean"))


@pytest.fixture(scope="module")
def embedder(folder: Path) -> SentenceTransformersEmbedder:
    return SentenceTransformersEmbedder(folder, SentenceOptions())


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
@pytest.mark.parametrize("dense", [False, True])
def test_pooling_follows_folder(tmp_path: Path, pooling: str, dense: bool) -> None:
    folder = write_sentence_model(tmp_path, pooling=pooling, dense=dense)
    vectors = SentenceTransformersEmbedder(folder, SentenceOptions(batch_size=3)).embed_texts(TEXTS)
    assert vectors.shape == (len(TEXTS), DENSE if dense else HIDDEN)
    np.testing.assert_allclose(vectors, expected(folder, TEXTS, pooling), atol=2e-6)


def test_prompts_of_folder_are_used_for_queries_and_passages(tmp_path: Path) -> None:
    folder = write_sentence_model(tmp_path, prompts={"query": "query: ", "document": "doc: "})
    for options, prompt in (
        (SentenceOptions(), "query: "),
        (SentenceOptions(prefix="passage"), "doc: "),
        (SentenceOptions(prompt="say: "), "say: "),
        (SentenceOptions(prompt=""), ""),
    ):
        vectors = SentenceTransformersEmbedder(folder, options).embed_texts(TEXTS[:2])
        np.testing.assert_allclose(vectors, expected(folder, TEXTS[:2], "mean", prompt), atol=2e-6)


def test_vectors_are_truncated_and_normalised(folder: Path, embedder: SentenceTransformersEmbedder) -> None:
    short = SentenceTransformersEmbedder(folder, SentenceOptions(dim=5)).embed_texts(TEXTS)
    start = embedder.embed_texts(TEXTS)[:, :5]
    np.testing.assert_allclose(short, start / np.linalg.norm(start, axis=1, keepdims=True), atol=1e-6)
    with pytest.raises(ConfigurationError, match="truncate_dim 99 is more than this model's 16"):
        SentenceTransformersEmbedder(folder, SentenceOptions(dim=99))


def test_long_texts_are_truncated(folder: Path, embedder: SentenceTransformersEmbedder) -> None:
    short = SentenceTransformersEmbedder(folder, SentenceOptions(max_text_tokens=6))
    np.testing.assert_allclose(short.embed_texts(["a b c d e f g"]), embedder.embed_texts(["a b c d"]), atol=1e-6)


def test_vector_does_not_depend_on_what_it_is_batched_with(embedder: SentenceTransformersEmbedder) -> None:
    alone = np.concatenate([embedder.embed([Prompt.of(text)]) for text in TEXTS])
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), alone, atol=2e-6)
    with closing(BatchedEmbedder(embedder)) as batched, ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda index: batched.embed([Prompt.of(TEXTS[index % 4])])[0], range(16)))
    np.testing.assert_allclose(together, np.tile(alone, (4, 1)), atol=2e-6)


def test_images_are_ignored_and_refused_alone(embedder: SentenceTransformersEmbedder) -> None:
    with_image = embedder.embed([Prompt.of("<image>a", [png_part(30, 30)])])
    np.testing.assert_allclose(with_image, embedder.embed([Prompt.of("a")]), atol=1e-6)
    with pytest.raises(InvalidArgumentError, match="only images"):
        embedder.embed([Prompt.of("<image>", [png_part(30, 30)])])


def test_fingerprint_names_weights_and_settings(
    folder: Path, embedder: SentenceTransformersEmbedder, tmp_path: Path
) -> None:
    def fingerprint(where: Path, options: SentenceOptions) -> str:
        return SentenceTransformersEmbedder(where, options).fingerprint

    assert fingerprint(write_sentence_model(tmp_path / "same"), SentenceOptions(batch_size=2)) == embedder.fingerprint
    others = {
        fingerprint(folder, SentenceOptions(dim=5)),
        fingerprint(folder, SentenceOptions(prompt="q: ")),
        fingerprint(write_sentence_model(tmp_path / "other", seed=1), SentenceOptions()),
        fingerprint(write_sentence_model(tmp_path / "cls", pooling="cls"), SentenceOptions()),
    }
    assert embedder.fingerprint not in others
    assert len(others) == 4


def test_bfloat16_is_close_to_float32(folder: Path, embedder: SentenceTransformersEmbedder) -> None:
    half = SentenceTransformersEmbedder(folder, SentenceOptions(dtype="bfloat16")).embed_texts(TEXTS)
    assert (half * embedder.embed_texts(TEXTS)).sum(-1).min() > 0.99


def changed(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def _without_a_layer(folder: Path) -> None:
    changed(folder / "model.safetensors", lambda all_: {k: v for k, v in all_.items() if "layer.1.output" not in k})


def _of_another_size(folder: Path) -> None:
    changed(folder / "model.safetensors", lambda all_: {k: v[:3] if "word_emb" in k else v for k, v in all_.items()})


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _half_written(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])


def _modules(change: Callable[[list[dict[str, str]]], object]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        modules = json.loads((folder / "modules.json").read_text())
        change(modules)
        (folder / "modules.json").write_text(json.dumps(modules))

    return write


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (_without_a_layer, r"4 tensor\(s\) are missing: encoder.layer.1.output.* download the model again"),
        (_of_another_size, "does not load as a transformer"),
        (_pickled, r"pytorch_model.bin is a pickle, .* save the model as safetensors"),
        (_half_written, "does not load as a transformer"),
        (lambda folder: (folder / "modules.json").unlink(), r"'modules.json' is missing; download the model again"),
        (lambda folder: (folder / "modules.json").write_text("{"), "modules.json cannot be read"),
        (lambda folder: (folder / "modules.json").write_text("[]"), "must list the modules"),
        (_modules(lambda all_: all_[0].update(type="custom_st.Transformer")), "not code in the folder"),
        (
            _modules(lambda all_: all_[1].update(type="sentence_transformers.models.Router")),
            "module 'sentence_.*Router'",
        ),
        (_modules(lambda all_: all_[1].update(path="../elsewhere")), "points outside the folder"),
    ],
)
def test_incomplete_or_unsafe_folder_is_refused(tmp_path: Path, spoil: Callable[[Path], object], expected: str) -> None:
    folder = write_sentence_model(tmp_path / "model")
    (tmp_path / "elsewhere").mkdir()
    (folder / "custom_st.py").write_text("raise SystemExit('this code must never run')")
    spoil(folder)
    with pytest.raises(CheckpointError, match=expected):
        SentenceTransformersEmbedder(folder, SentenceOptions())


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder .*nowhere'; point --embedder-path"):
        SentenceTransformersEmbedder(tmp_path / "nowhere", SentenceOptions())


def test_missing_library_error_names_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'loraretriever\[sentence-transformers\]'"):
        SentenceTransformersEmbedder(folder, SentenceOptions())
