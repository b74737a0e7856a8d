"""A retrieval service in this process: a real server and catalogue, and an embedder that counts words."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from loraretriever.v1 import retrieval_service_pb2_grpc
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.contract.prompt import Prompt
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.images import ImageLimits
from infra.runtime.server import GrpcServer
from retrieval_service.app import loaded
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.indexing import Indexer
from retrieval_service.retriever import Retriever
from retrieval_service.server import SERVICE_NAME, RequestLimits, RetrievalServicer
from retrieval_service.settings import RetrievalDefaults, RetrievalSettings
from tests.support.servers.background import on_event_loop, serving_blocking

DIM = 16


@dataclass
class WordEmbedder:
    """A prompt's vector counts its words, each in a dimension of its own as far as there are any."""

    dim: int = DIM
    name: str = "words"
    embedded: int = 0

    @property
    def fingerprint(self) -> str:
        return f"{self.name} {self.dim}"

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        self.embedded += len(prompts)
        vectors = np.full((len(prompts), self.dim), 0.05)
        for row, prompt in enumerate(prompts):
            for word in prompt.user_text.split():
                vectors[row, zlib.crc32(f"{self.name}{word}".encode()) % self.dim] += 1
        return normalise(vectors)


@dataclass(frozen=True)
class Service:
    """Where the service listens, and what it is made of."""

    address: str
    stub: RetrievalServiceStub
    catalogue: Catalogue
    embedder: WordEmbedder


@contextmanager
def serving_retrieval(servicer: RetrievalServicer) -> Iterator[GrpcServer]:
    """Serve a servicer without a grace period."""
    adder = retrieval_service_pb2_grpc.add_RetrievalServiceServicer_to_server
    with serving_blocking(servicer, adder, SERVICE_NAME) as server:
        yield server


@contextmanager
def serving_settings(settings: RetrievalSettings) -> Iterator[GrpcServer]:
    """Serve what the settings name, as `python -m retrieval_service` does."""

    @asynccontextmanager
    async def serve() -> AsyncIterator[GrpcServer]:
        server = GrpcServer(settings.server)
        async with loaded(server, settings), server:
            yield server

    with on_event_loop(serve) as server:
        yield server


@contextmanager
def retrieval_service(
    place: Path | QdrantServer, embedder: WordEmbedder | None = None, *, stale_reads: bool = False
) -> Iterator[Service]:
    """Serve a catalogue in a folder or on a Qdrant server."""
    embedder = embedder or WordEmbedder()
    where = QdrantFolder(place) if isinstance(place, Path) else place
    with closing(Qdrant(where)) as qdrant:
        catalogue = Catalogue(
            qdrant, "adapters", dim=embedder.dim, fingerprint=embedder.fingerprint, stale_reads=stale_reads
        )
        limits = RequestLimits(64, ImageLimits(16, 1_000_000, 1_000_000))
        retriever = Retriever(embedder, catalogue, RetrievalDefaults())
        servicer = RetrievalServicer(embedder, catalogue, retriever, Indexer(embedder, catalogue, 64), limits)
        with serving_retrieval(servicer) as server, sync_channel(ChannelOptions(server.address)) as channel:
            stub = RetrievalServiceStub(channel)  # type: ignore[no-untyped-call]
            yield Service(server.address, stub, catalogue, embedder)
