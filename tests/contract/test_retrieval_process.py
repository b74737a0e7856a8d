"""`python -m retrieval_service` as a process: it starts, loses nothing when killed, and reports why it cannot start."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from loraretriever.v1 import adapter_pb2, retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.wire import adapter_to_proto
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder
from tests.support.checkpoints.jina_v4 import HIDDEN, tiny_jina

pb = retrieval_service_pb2
START_TIMEOUT_S = 120


@pytest.fixture(scope="module")
def jina(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jina().write(tmp_path_factory.mktemp("jina"))


def command(jina: Path, work: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "retrieval_service", "--embedder-path", str(jina), "--address", "127.0.0.1:0"),
        *("--qdrant-path", str(work / "qdrant"), "--ready-file", str(work / "ready.json"), *flags),
    ]


@contextmanager
def running(jina: Path, work: Path) -> Iterator[tuple[subprocess.Popen[str], RetrievalServiceStub]]:
    ready = work / "ready.json"
    ready.unlink(missing_ok=True)
    with subprocess.Popen(command(jina, work), stderr=subprocess.PIPE, text=True) as process:
        try:
            give_up = time.monotonic() + START_TIMEOUT_S
            while not ready.exists() and process.poll() is None and time.monotonic() < give_up:
                time.sleep(0.05)
            with sync_channel(ChannelOptions(json.loads(ready.read_text())["address"])) as channel:
                yield process, RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
        finally:
            process.kill()


def finished(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False)


@pytest.mark.slow
@pytest.mark.timeout(2 * START_TIMEOUT_S)
def test_killed_service_leaves_its_catalogue_whole_and_free_for_next(jina: Path, tmp_path: Path) -> None:
    vector = pb.Vector(float32=np.eye(HIDDEN, dtype="<f4")[0].tobytes())
    card = adapter_pb2.Adapter(adapter_id="kept", base_model="tiny")
    request = pb.CreateAdapterRequest(adapter=card, vectors=pb.ExampleVectors(vectors=[vector]))
    with running(jina, tmp_path) as (process, stub):
        kept = stub.CreateAdapter(request).adapter
        fingerprint = stub.GetCatalogue(pb.GetCatalogueRequest()).embedder_fingerprint
        second = finished(*command(jina, tmp_path))
        assert second.returncode == 2
        assert "in use by another process" in second.stderr
        assert "Traceback" not in second.stderr
        process.kill()
        process.wait()
    with closing(Qdrant(QdrantFolder(tmp_path / "qdrant"))) as qdrant:
        catalogue = Catalogue(qdrant, "adapters", dim=HIDDEN, fingerprint=fingerprint)
        assert [adapter_to_proto(adapter) for adapter in catalogue.page(AdapterFilter(), 10).adapters] == [kept]
        found = catalogue.search(np.eye(HIDDEN, dtype=np.float32)[:1], AdapterFilter(), 1).matches[0]
        assert found[0].similarity == pytest.approx(1)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--embedder-path", "nowhere"], "there is no folder 'nowhere'"),
        (["--text-weight", "0", "--image-weight", "0"], "not both 0"),
        (["--top-q", "3"], "did you mean --top-k"),
    ],
)
def test_service_that_cannot_start_says_why_in_one_line(
    jina: Path, tmp_path: Path, flags: list[str], expected: str
) -> None:
    failed = finished(*command(jina, tmp_path, "--log-level", "error", *flags))
    assert failed.returncode == 2
    assert expected in failed.stderr
    assert len(failed.stderr.strip().splitlines()) == 1


def test_help_names_every_setting_with_its_environment_variable() -> None:
    shown = finished(sys.executable, "-m", "retrieval_service", "--help")
    assert shown.returncode == 0
    for name in ("embedder-path", "qdrant-url", "max-image-pixels", "truncate-dim", "min-similarity"):
        assert f"--{name}" in shown.stdout
        assert f"LORARETRIEVER_RETRIEVAL_{name.upper().replace('-', '_')}" in shown.stdout
