"""Typed clients of the services that answer: plain dataclasses in and out, errors as infra.contract.errors, a deadline
always. (Jobs have theirs in evaluation_client.py.)

async with RetrievalClient("localhost:50051") as retrieval:
    retrieved = await retrieval.retrieve(prompt, RetrievalOptions(top_k=3))

Calls that found no server are retried by the channel (its service config) within their deadline.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from loraretriever.v1 import (
    generation_service_pb2,
    generation_service_pb2_grpc,
    orchestrator_service_pb2,
    orchestrator_service_pb2_grpc,
    retrieval_service_pb2,
    retrieval_service_pb2_grpc,
)

from infra.contract.adapter import Adapter
from infra.contract.composition import Composition
from infra.contract.errors import AlreadyExistsError, InternalError
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.contract.retrieval import CatalogueInfo, RetrievalOptions, Selection
from infra.runtime.wire import (
    adapter_from_proto,
    adapter_to_proto,
    catalogue_from_proto,
    composition_to_proto,
    decoding_to_proto,
    generation_from_proto,
    prompt_to_proto,
    retrieval_options_to_proto,
    retrieval_timings_from_proto,
    selection_from_proto,
    vector_from_proto,
    vector_to_proto,
)
from orchestrator.answering.model_info import ModelInfo, ResidentAdapter
from orchestrator.answering.pipeline import Answer, Question, Retrieved
from orchestrator.clients import wire
from orchestrator.clients.base import ServiceClient
from orchestrator.registration.adapter_list import ListedAdapter

QUICK_TIMEOUT_S = 30.0
LONG_TIMEOUT_S = 300.0
REPLACED = ("display_name", "description", "base_model", "kind", "tags", "checkpoint_uri", "rank", "targets")


class RetrievalClient(ServiceClient):
    """RetrievalService: which adapters fit a prompt, and the catalogue."""

    stub_class = retrieval_service_pb2_grpc.RetrievalServiceStub

    async def retrieve(self, prompt: Prompt, options: RetrievalOptions, timeout_s: float | None = None) -> Retrieved:
        """Return the adapters that fit one prompt."""
        return (await self.retrieve_many([prompt], options, timeout_s))[0]

    async def retrieve_many(
        self, prompts: Sequence[Prompt], options: RetrievalOptions, timeout_s: float | None = None
    ) -> list[Retrieved]:
        """Return the adapters that fit each prompt."""
        request = retrieval_service_pb2.RetrieveAdaptersRequest(
            prompts=[prompt_to_proto(prompt) for prompt in prompts], options=retrieval_options_to_proto(options)
        )
        response = await self.call("RetrieveAdapters", request, timeout_s or QUICK_TIMEOUT_S)
        if len(response.selections) != len(prompts):
            raise InternalError(f"{self.target} gave {len(response.selections)} selections for {len(prompts)} prompts")
        timings = retrieval_timings_from_proto(response.timings) if response.HasField("timings") else None
        return [
            Retrieved(selection_from_proto(each), response.catalogue_revision, timings, response.stale)
            for each in response.selections
        ]

    async def create_adapter(
        self, adapter: Adapter, prompts: Sequence[Prompt], timeout_s: float | None = None
    ) -> Adapter:
        """Register an adapter by training examples; return it as stored."""
        return await self._create(adapter, {"examples": _example_prompts(prompts)}, timeout_s or LONG_TIMEOUT_S)

    async def create_adapter_from_vectors(
        self, adapter: Adapter, vectors: Iterable[bytes], timeout_s: float | None = None
    ) -> Adapter:
        """Register an adapter by vectors made before, each little-endian float32; return it as stored."""
        return await self._create(adapter, {"vectors": _example_vectors(vectors)}, timeout_s or QUICK_TIMEOUT_S)

    async def replace_adapter(
        self,
        adapter: Adapter,
        prompts: Sequence[Prompt] = (),
        vectors: Sequence[bytes] = (),
        timeout_s: float | None = None,
    ) -> Adapter:
        """Register an adapter by prompts or by vectors, in the place of the one of its id if there is one."""
        source = {"vectors": _example_vectors(vectors)} if vectors else {"examples": _example_prompts(prompts)}
        try:
            return await self._create(adapter, source, timeout_s or LONG_TIMEOUT_S)
        except AlreadyExistsError:
            request = retrieval_service_pb2.UpdateAdapterRequest(
                adapter=adapter_to_proto(adapter), update_mask=FieldMask(paths=REPLACED), **source
            )
            response = await self.call("UpdateAdapter", request, timeout_s or LONG_TIMEOUT_S)
            return adapter_from_proto(response.adapter)

    async def _create(self, adapter: Adapter, source: dict[str, Any], timeout_s: float) -> Adapter:
        request = retrieval_service_pb2.CreateAdapterRequest(adapter=adapter_to_proto(adapter), **source)
        response = await self.call("CreateAdapter", request, timeout_s)
        return adapter_from_proto(response.adapter)

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        """Return the catalogue's revision, its size, and the embedder that makes its vectors."""
        request = retrieval_service_pb2.GetCatalogueRequest()
        return catalogue_from_proto(await self.call("GetCatalogue", request, timeout_s or QUICK_TIMEOUT_S))

    async def get_vectors(self, adapter_id: str, timeout_s: float | None = None) -> ListedAdapter:
        """Return one adapter with the vectors of its examples. Raises NotFoundError."""
        request = retrieval_service_pb2.GetAdapterRequest(adapter_id=adapter_id, with_vectors=True)
        response = await self.call("GetAdapter", request, timeout_s or QUICK_TIMEOUT_S)
        vectors = tuple(vector_from_proto(each, "vectors") for each in response.vectors)
        return ListedAdapter(adapter_from_proto(response.adapter), vectors, response.embedder_fingerprint)

    async def get_adapter(self, adapter_id: str, timeout_s: float | None = None) -> Adapter:
        """Return one adapter. Raises NotFoundError."""
        request = retrieval_service_pb2.GetAdapterRequest(adapter_id=adapter_id)
        response = await self.call("GetAdapter", request, timeout_s or QUICK_TIMEOUT_S)
        return adapter_from_proto(response.adapter)

    async def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> list[Adapter]:
        """Return the adapters of all pages, ordered by id."""
        adapters: list[Adapter] = []
        token = ""
        while True:
            request = retrieval_service_pb2.ListAdaptersRequest(
                page_token=token, base_model=base_model, kind=kind, tags=tags
            )
            response = await self.call("ListAdapters", request, timeout_s or QUICK_TIMEOUT_S)
            adapters += [adapter_from_proto(each) for each in response.adapters]
            token = response.next_page_token
            if not token:
                return adapters

    async def delete_adapter(self, adapter_id: str, timeout_s: float | None = None) -> None:
        """Remove an adapter from the catalogue. Raises NotFoundError."""
        request = retrieval_service_pb2.DeleteAdapterRequest(adapter_id=adapter_id)
        await self.call("DeleteAdapter", request, timeout_s or QUICK_TIMEOUT_S)


class GenerationClient(ServiceClient):
    """GenerationService: answers of the base model with a composition of adapters."""

    stub_class = generation_service_pb2_grpc.GenerationServiceStub

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> Generation:
        """Return the answer to a prompt."""
        request = generation_service_pb2.GenerateRequest(**_generate_fields(prompt, composition, decoding))
        return generation_from_proto(await self.call("Generate", request, timeout_s or LONG_TIMEOUT_S))

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> AsyncIterator[str | Generation]:
        """Yield the answer piece by piece, then the whole of it."""
        request = generation_service_pb2.StreamGenerateRequest(**_generate_fields(prompt, composition, decoding))
        async for message in self.stream_of("StreamGenerate", request, timeout_s or LONG_TIMEOUT_S):
            final = message.WhichOneof("event") == "final"
            yield generation_from_proto(message.final) if final else message.delta

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return what runs."""
        request = generation_service_pb2.GetModelRequest()
        return wire.model_from_proto(await self.call("GetModel", request, timeout_s or QUICK_TIMEOUT_S))

    async def base_model(self, timeout_s: float | None = None) -> str:
        """Return the name of the base model that runs."""
        return (await self.get_model(timeout_s)).base_model

    async def load_adapter(
        self, adapter_id: str, revision: str = "", timeout_s: float | None = None
    ) -> ResidentAdapter:
        """Load an adapter before it is asked for, and keep it."""
        request = generation_service_pb2.LoadAdapterRequest(adapter_id=adapter_id, revision=revision)
        response = await self.call("LoadAdapter", request, timeout_s or LONG_TIMEOUT_S)
        return wire.resident_from_proto(response.adapter)

    async def unload_adapter(self, adapter_id: str, timeout_s: float | None = None) -> None:
        """Release an adapter that was kept."""
        request = generation_service_pb2.UnloadAdapterRequest(adapter_id=adapter_id)
        await self.call("UnloadAdapter", request, timeout_s or QUICK_TIMEOUT_S)


class AnswerClient(ServiceClient):
    """AnswerService: the whole pipeline in one call."""

    stub_class = orchestrator_service_pb2_grpc.AnswerServiceStub

    async def answer(self, question: Question, timeout_s: float | None = None) -> Answer:
        """Return the answer to a question."""
        start = time.monotonic()
        request = orchestrator_service_pb2.AnswerRequest(**wire.question_to_proto(question))
        response = await self.call("Answer", request, timeout_s or LONG_TIMEOUT_S)
        return wire.answer_from_proto(response, time.monotonic() - start)

    async def stream(
        self, question: Question, timeout_s: float | None = None
    ) -> AsyncIterator[Selection | str | Answer]:
        """Yield the selection, the answer piece by piece, then the whole Answer."""
        start = time.monotonic()
        request = orchestrator_service_pb2.StreamAnswerRequest(**wire.question_to_proto(question))
        async for message in self.stream_of("StreamAnswer", request, timeout_s or LONG_TIMEOUT_S):
            match message.WhichOneof("event"):
                case "selection":
                    yield selection_from_proto(message.selection)
                case "final":
                    yield wire.answer_from_proto(message.final, time.monotonic() - start)
                case _:
                    yield message.delta


def _example_prompts(prompts: Iterable[Prompt]) -> retrieval_service_pb2.ExamplePrompts:
    return retrieval_service_pb2.ExamplePrompts(prompts=[prompt_to_proto(prompt) for prompt in prompts])


def _example_vectors(vectors: Iterable[bytes]) -> retrieval_service_pb2.ExampleVectors:
    return retrieval_service_pb2.ExampleVectors(vectors=[vector_to_proto(vector) for vector in vectors])


def _generate_fields(prompt: Prompt, composition: Composition, decoding: Decoding) -> dict[str, Any]:
    return {
        "prompt": prompt_to_proto(prompt),
        "composition": composition_to_proto(composition),
        "decoding": decoding_to_proto(decoding),
    }
