"""The assembled service under many callers: embedder, batching and catalogue, while adapters come and go."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from loraretriever.v1 import retrieval_service_pb2
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from benchmarks.retrieval_load import run_load
from infra.contract.prompt import Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.settings import ServerOptions
from infra.runtime.wire import prompt_to_proto
from retrieval_service.embedders.jina_v4 import JinaV4Embedder, JinaV4Options
from retrieval_service.settings import EmbedderSettings, QdrantSettings, RetrievalSettings
from tests.support.checkpoints.jina_v4 import tiny_jina
from tests.support.harness.images import png_part
from tests.support.servers.retrieval_server import serving_settings

SECONDS = 3.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_jina().write(tmp_path_factory.mktemp("jina"))


@pytest.fixture
def address(folder: Path, tmp_path: Path) -> Iterator[str]:
    settings = RetrievalSettings(
        embedder=EmbedderSettings(path=folder),
        qdrant=QdrantSettings(path=tmp_path / "qdrant"),
        server=ServerOptions(shutdown_grace_s=0),
    )
    with serving_settings(settings) as server:
        yield server.address


@pytest.mark.slow
def test_sixteen_callers_never_meet_error_or_deleted_adapter(address: str) -> None:
    result = run_load(address, callers=16, seconds=SECONDS)
    assert result.wrong == []
    assert result.calls > 16
    assert result.deleted > 2


def test_sixteen_callers_get_vectors_that_each_would_get_alone(address: str, folder: Path) -> None:
    bare = JinaV4Embedder(folder, JinaV4Options())
    image = png_part(140, 90)
    prompts = [Prompt.of("x " * (1 + 7 * index % 60), [image] if index % 4 == 0 else []) for index in range(48)]
    expected = bare.embed(prompts)

    def embed(index: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        with sync_channel(ChannelOptions(address)) as channel:
            stub = RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
            request = retrieval_service_pb2.EmbedPromptsRequest(prompts=[prompt_to_proto(prompts[index])])
            return np.frombuffer(stub.EmbedPrompts(request).vectors[0].float32, "<f4")

    with ThreadPoolExecutor(16) as pool:
        np.testing.assert_allclose(list(pool.map(embed, range(48))), expected, atol=2e-6)
