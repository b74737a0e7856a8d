"""RetrievalService over gRPC: decode, call, encode."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from loraretriever.v1 import prompt_pb2, retrieval_service_pb2, retrieval_service_pb2_grpc

from infra.contract.adapter import check_adapter_id
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import Prompt
from infra.contract.retrieval import CatalogueInfo
from infra.runtime import wire
from infra.runtime.images import ImageLimits, check_images
from infra.runtime.server import GrpcServer
from retrieval_service.catalogue.catalogue import Catalogue
from retrieval_service.catalogue.points import AdapterFilter
from retrieval_service.embedders.base import Embedder
from retrieval_service.indexing import ExamplePrompts, Examples, ExampleVectors, Indexer
from retrieval_service.retriever import Retriever

SERVICE_NAME = "loraretriever.v1.RetrievalService"
_DEFAULT_PAGE_SIZE = 100
_MAX_PAGE_SIZE = 1000  # documented in the contract


@dataclass(frozen=True)
class RequestLimits:
    """Limits on what one request may contain."""

    max_prompts: int
    images: ImageLimits


class RetrievalServicer(retrieval_service_pb2_grpc.RetrievalServiceServicer):
    """Translates between protobuf messages and calls of the retrieval tier. Called on: threads of the executor."""

    def __init__(
        self, embedder: Embedder, catalogue: Catalogue, retriever: Retriever, indexer: Indexer, limits: RequestLimits
    ) -> None:
        self._embedder = embedder
        self._catalogue = catalogue
        self._retriever = retriever
        self._indexer = indexer
        self._limits = limits

    def RetrieveAdapters(  # noqa: N802
        self, request: retrieval_service_pb2.RetrieveAdaptersRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.RetrieveAdaptersResponse:
        """Return each prompt's adapters."""
        prompts = self._prompts(request.prompts)
        with field_path("options"):
            options = wire.retrieval_options_from_proto(request.options)
            query = self._retriever.query(options)
        result = self._retriever.retrieve(prompts, query)
        return retrieval_service_pb2.RetrieveAdaptersResponse(
            selections=[wire.selection_to_proto(selection) for selection in result.selections],
            catalogue_revision=result.catalogue_revision,
            stale=result.stale,
            timings=wire.retrieval_timings_to_proto(result.timings),
        )

    def EmbedPrompts(  # noqa: N802
        self, request: retrieval_service_pb2.EmbedPromptsRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.EmbedPromptsResponse:
        """Return each prompt's vector."""
        prompts = self._prompts(request.prompts)
        with field_path("prompts"):
            vectors = self._embedder.embed(prompts)
        return retrieval_service_pb2.EmbedPromptsResponse(
            vectors=[wire.vector_to_proto(vector.astype("<f4").tobytes()) for vector in vectors],
            embedder_fingerprint=self._embedder.fingerprint,
        )

    def CreateAdapter(  # noqa: N802
        self, request: retrieval_service_pb2.CreateAdapterRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.CreateAdapterResponse:
        """Register an adapter."""
        with field_path("adapter"):
            adapter = wire.adapter_from_proto(request.adapter)
        examples = self._examples(request)
        if examples is None:
            raise InvalidArgumentError("source", "is not set; send training examples or their vectors")
        created = self._indexer.create(adapter, examples)
        return retrieval_service_pb2.CreateAdapterResponse(adapter=wire.adapter_to_proto(created))

    def UpdateAdapter(  # noqa: N802
        self, request: retrieval_service_pb2.UpdateAdapterRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.UpdateAdapterResponse:
        """Change an adapter."""
        with field_path("adapter"):
            adapter = wire.adapter_from_proto(request.adapter)
        updated = self._indexer.update(
            adapter, list(request.update_mask.paths), self._examples(request), request.expected_revision
        )
        return retrieval_service_pb2.UpdateAdapterResponse(adapter=wire.adapter_to_proto(updated))

    def GetAdapter(  # noqa: N802
        self, request: retrieval_service_pb2.GetAdapterRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.GetAdapterResponse:
        """Return an adapter."""
        result = self._catalogue.look_up(request.adapter_id, with_vectors=request.with_vectors)
        return retrieval_service_pb2.GetAdapterResponse(
            adapter=wire.adapter_to_proto(result.adapter),
            vectors=[wire.vector_to_proto(vector.astype("<f4").tobytes()) for vector in result.vectors],
            embedder_fingerprint=self._catalogue.fingerprint if request.with_vectors else "",
            stale=result.stale,
        )

    def GetCatalogue(  # noqa: N802
        self, request: retrieval_service_pb2.GetCatalogueRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.GetCatalogueResponse:
        """Describe the catalogue as a whole."""
        page = self._catalogue.page(AdapterFilter(), 0)
        return wire.catalogue_to_proto(
            CatalogueInfo(page.revision, self._embedder.fingerprint, self._embedder.dim, page.total, page.stale)
        )

    def ListAdapters(  # noqa: N802
        self, request: retrieval_service_pb2.ListAdaptersRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.ListAdaptersResponse:
        """Return a page of adapters."""
        adapter_filter = AdapterFilter(request.base_model, request.kind, tuple(request.tags))
        page = self._catalogue.page(adapter_filter, _page_size(request.page_size), _after(request.page_token))
        return retrieval_service_pb2.ListAdaptersResponse(
            adapters=[wire.adapter_to_proto(adapter) for adapter in page.adapters],
            next_page_token=_token(page.adapters[-1].adapter_id) if page.has_more else "",
            total_size=page.total,
            catalogue_revision=page.revision,
            stale=page.stale,
        )

    def DeleteAdapter(  # noqa: N802
        self, request: retrieval_service_pb2.DeleteAdapterRequest, context: grpc.ServicerContext
    ) -> retrieval_service_pb2.DeleteAdapterResponse:
        """Delete an adapter."""
        self._catalogue.delete(request.adapter_id)
        return retrieval_service_pb2.DeleteAdapterResponse()

    def _prompts(self, messages: Sequence[prompt_pb2.Prompt]) -> tuple[Prompt, ...]:
        if len(messages) > self._limits.max_prompts:
            raise InvalidArgumentError(
                "prompts", f"{len(messages)} prompts are too many; send at most {self._limits.max_prompts} per request"
            )
        return self._checked(wire.prompts_from_proto(messages))

    def _checked(self, prompts: Iterable[Prompt]) -> tuple[Prompt, ...]:
        checked = tuple(prompts)
        for index, prompt in enumerate(checked):
            with field_path(f"prompts[{index}]"):
                check_images(prompt, self._limits.images)
        return checked

    def _examples(self, request: Any) -> Examples | None:
        """Return the examples of a create or update request, or None."""
        match request.WhichOneof("source"):
            case "examples":
                with field_path("examples"):
                    return ExamplePrompts(self._checked(wire.prompts_from_proto(request.examples.prompts)))
            case "vectors":
                with field_path("vectors"):
                    vectors = [
                        np.frombuffer(wire.vector_from_proto(vector, f"vectors[{index}]"), dtype="<f4")
                        for index, vector in enumerate(request.vectors.vectors)
                    ]
                return ExampleVectors(tuple(vectors))
            case _:
                return None


def add_to(server: GrpcServer, servicer: RetrievalServicer, executor: Executor) -> None:
    """Add the service to `server`; its methods block, and run on the executor's threads."""
    server.add(servicer, retrieval_service_pb2_grpc.add_RetrievalServiceServicer_to_server, SERVICE_NAME, executor)


def _page_size(requested: int) -> int:
    if requested < 0:
        raise InvalidArgumentError("page_size", f"must not be negative, got {requested}")
    return min(requested or _DEFAULT_PAGE_SIZE, _MAX_PAGE_SIZE)


def _token(adapter_id: str) -> str:
    return base64.urlsafe_b64encode(adapter_id.encode()).decode()


def _after(token: str) -> str:
    if not token:
        return ""
    try:
        return check_adapter_id(base64.urlsafe_b64decode(token.encode()).decode())
    except (InvalidArgumentError, binascii.Error, UnicodeError) as error:
        raise InvalidArgumentError("page_token", "was not issued by this server; start again without one") from error
