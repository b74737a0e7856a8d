"""Settings select an embedder, or the error names what is missing."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import ConfigurationError
from infra.runtime.settings import load_settings
from retrieval_service.embedders.build import build_embedder, embedder_kind
from retrieval_service.settings import RetrievalSettings
from tests.support.checkpoints.jina_v4 import tiny_jina
from tests.support.servers.embeddings_server import EmbeddingsServer
from tests.support.servers.retrieval_server import serving_settings

URL = ["--embedder-url", "http://127.0.0.1:9/v1", "--embedder-model", "m"]


def settings(*flags: str) -> RetrievalSettings:
    return load_settings(RetrievalSettings, flags)


def folder_of(path: Path, *names: str, **config: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    for name in names:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("[]")
    return path


def test_embedder_kind_is_detected_from_folder(tmp_path: Path) -> None:
    jina = folder_of(tmp_path / "jina", "adapters/adapter_config.json", "modules.json")
    bare = folder_of(tmp_path / "bare", "modules.json", architectures=["JinaEmbeddingsV4Model"])
    sentence = folder_of(tmp_path / "st", "modules.json", architectures=["BertModel"])
    broken = folder_of(tmp_path / "broken", "modules.json")
    (broken / "config.json").write_text("{")
    for folder, kind in (
        (jina, "jina-v4"),
        (bare, "jina-v4"),
        (sentence, "sentence-transformers"),
        (broken, "sentence-transformers"),
        (tmp_path / "nowhere", "jina-v4"),
    ):
        assert embedder_kind(settings("--embedder-path", str(folder))) == kind
    assert embedder_kind(settings("--embedder-path", str(sentence), "--embedder", "jina-v4")) == "jina-v4"


def test_embedder_url_selects_http() -> None:
    assert embedder_kind(settings(*URL)) == "http"
    assert embedder_kind(settings(*URL, "--embedder", "http", "--embedder-path", "unused")) == "http"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "--embedder-path is missing; name the folder of a model, or an endpoint with --embedder-url"),
        (["--embedder", "jina-v4", *URL], "--embedder-path is missing"),
        (URL[:2], "an http embedder needs --embedder-url and --embedder-model"),
        (["--embedder", "http", "--embedder-path", "x"], "an http embedder needs --embedder-url"),
        ([*URL, "--embedder-path", "x"], "are both given; choose with --embedder"),
        (["--embedder", "word2vec"], "--embedder"),
        ([*URL, "--batch-wait-s", "5"], "--batch-wait-s"),
    ],
)
def test_settings_without_embedder_name_missing_option(flags: list[str], expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings(*flags)
    assert expected in str(caught.value)


def test_key_is_not_shown_in_errors_or_settings() -> None:
    shown = settings(*URL, "--embedder-api-key", "sk-secret")
    assert "sk-secret" not in repr(shown)
    with pytest.raises(ConfigurationError) as caught:
        settings(*URL, "--embedder-api-key", "sk-secret", "--batch-size", "0")
    assert "sk-secret" not in str(caught.value)


def test_help_lists_embedder_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings("--help")
    shown = capsys.readouterr().out
    for name in ("embedder", "embedder-url", "embedder-model", "embedder-api-key", "text-prompt", "cache-bytes"):
        assert f"--{name} " in shown
    assert "{auto,jina-v4,http,sentence-transformers}" in shown


def test_settings_reach_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    jina = tiny_jina().write(tmp_path / "jina")
    flags = ["--embedder-path", str(jina), "--batch-size", "3", "--batch-tokens", "77", "--truncate-dim", "8"]
    made = build_embedder(settings(*flags, "--embedder-task", "code", "--text-weight", "0.5"))
    assert (made.batch_size, made.batch_tokens, made.dim) == (3, 77, 8)
    assert "task=code" in made.fingerprint
    assert "text_weight=0.5" in made.fingerprint
    with EmbeddingsServer() as server:
        flags = ["--embedder-url", server.url, "--embedder-model", "m", "--text-prompt", "q: ", "--truncate-dim", "4"]
        made = build_embedder(settings(*flags, "--embedder-parallel", "2", "--embedder-encoding", "base64"))
        assert (made.dim, made.parallel, made.supports_images) == (4, 2, False)
        made.embed_texts(["x"])
        assert server.requests[0]["input"] == ["q: x"]
        assert server.requests[0]["encoding_format"] == "base64"


def test_start_logs_embedder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    jina = tiny_jina().write(tmp_path / "jina")
    flags = ["--embedder-path", str(jina), "--qdrant-path", str(tmp_path / "q"), "--address", "127.0.0.1:0"]
    chosen = settings(*flags, "--shutdown-grace-s", "0")
    caplog.set_level(logging.INFO)
    with serving_settings(chosen):
        pass
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "jina-embeddings-v4 weights=" in logged
    assert "texts and images" in logged


def test_password_in_embedder_url_is_refused_before_it_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--embedder-url", "http://me:hidden@127.0.0.1:9/v1", "--embedder-model", "m", "--address", "127.0.0.1:0"]
    chosen = settings(*flags, "--qdrant-path", str(tmp_path / "q"))
    caplog.set_level(logging.INFO)
    with pytest.raises(ConfigurationError, match="--embedder-url contains a password"), serving_settings(chosen):
        pass
    assert "hidden" not in caplog.text + "".join(capsys.readouterr())
