"""RetrievalClient: which adapters fit a prompt, and the catalogue."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from loraretriever.v1 import retrieval_service_pb2 as pb
from loraretriever.v1 import retrieval_service_pb2_grpc as pb_grpc

from infra.contract.adapter import Adapter
from infra.contract.errors import AlreadyExistsError, InternalError
from infra.contract.prompt import Prompt
from infra.contract.retrieval import CatalogueInfo, RetrievalOptions
from infra.runtime.deadline import LONG_TIMEOUT_S
from infra.runtime.wire import (
    adapter_from_proto,
    adapter_to_proto,
    catalogue_from_proto,
    prompt_to_proto,
    retrieval_options_to_proto,
    retrieval_timings_from_proto,
    selection_from_proto,
    vector_from_proto,
    vector_to_proto,
)
from orchestrator.answering.question import RETRIEVE_PARAMETERS, RetrievalResult, RetrieveArguments
from orchestrator.clients.base import ServiceClient, renamed_fields
from orchestrator.registration.adapter_list import ListedAdapter

_REPLACED_FIELDS = ("display_name", "description", "base_model", "kind", "tags", "checkpoint_uri", "rank", "targets")


class RetrievalClient(ServiceClient):
    """Client of RetrievalService."""

    stub_class = pb_grpc.RetrievalServiceStub

    async def retrieve(
        self,
        prompt: Prompt,
        options: RetrievalOptions,
        timeout_s: float | None = None,
        arguments: RetrieveArguments = RETRIEVE_PARAMETERS,
    ) -> RetrievalResult:
        """Return the adapters that fit one prompt. An InvalidArgumentError names the field as `arguments` does."""
        with renamed_fields({"prompts[0]": arguments.prompt, "options": arguments.options}):
            return (await self.retrieve_many([prompt], options, timeout_s))[0]

    async def retrieve_many(
        self, prompts: Sequence[Prompt], options: RetrievalOptions, timeout_s: float | None = None
    ) -> list[RetrievalResult]:
        """Return the adapters that fit each prompt."""
        request = pb.RetrieveAdaptersRequest(
            prompts=[prompt_to_proto(prompt) for prompt in prompts], options=retrieval_options_to_proto(options)
        )
        response = await self.call("RetrieveAdapters", request, timeout_s)
        if len(response.selections) != len(prompts):
            raise InternalError(
                f"{self.target} returned {len(response.selections)} selections for {len(prompts)} prompts"
            )
        timings = retrieval_timings_from_proto(response.timings) if response.HasField("timings") else None
        return [
            RetrievalResult(selection_from_proto(selection), response.catalogue_revision, timings, response.stale)
            for selection in response.selections
        ]

    async def embed(self, prompts: Sequence[Prompt], timeout_s: float | None = None) -> list[bytes]:
        """Return each prompt's vector, of length 1, as little-endian float32 values."""
        request = pb.EmbedPromptsRequest(prompts=[prompt_to_proto(prompt) for prompt in prompts])
        response = await self.call("EmbedPrompts", request, timeout_s, LONG_TIMEOUT_S)
        return [vector_from_proto(vector, "vectors") for vector in response.vectors]

    async def create_adapter(
        self, adapter: Adapter, prompts: Sequence[Prompt], timeout_s: float | None = None
    ) -> Adapter:
        """Register an adapter by training examples and return it as stored. Raises AlreadyExistsError."""
        return await self._create(adapter, {"examples": _example_prompts(prompts)}, timeout_s)

    async def create_adapter_from_vectors(
        self, adapter: Adapter, vectors: Iterable[bytes], timeout_s: float | None = None
    ) -> Adapter:
        """Register an adapter by embeddings, each little-endian float32, and return it as stored."""
        return await self._create(adapter, {"vectors": _example_vectors(vectors)}, timeout_s)

    async def replace_adapter(
        self,
        adapter: Adapter,
        prompts: Sequence[Prompt] = (),
        vectors: Sequence[bytes] = (),
        timeout_s: float | None = None,
    ) -> Adapter:
        """Register an adapter by prompts or by vectors, replacing the one of the same id if there is one."""
        source = {"vectors": _example_vectors(vectors)} if vectors else {"examples": _example_prompts(prompts)}
        try:
            return await self._create(adapter, source, timeout_s)
        except AlreadyExistsError:
            return await self._update(adapter, _REPLACED_FIELDS, source, timeout_s)

    async def update_adapter(
        self,
        adapter: Adapter,
        fields: Sequence[str],
        prompts: Sequence[Prompt] = (),
        timeout_s: float | None = None,
    ) -> Adapter:
        """Change the named fields of an adapter, and its embedding if there are prompts.

        `adapter` was changed from the stored one, whose revision it has. Raises NotFoundError, or ConflictError if
        another caller has changed the adapter since.
        """
        source = {"examples": _example_prompts(prompts)} if prompts else {}
        return await self._update(adapter, fields, {**source, "expected_revision": adapter.revision}, timeout_s)

    async def _update(
        self, adapter: Adapter, fields: Sequence[str], others: dict[str, Any], timeout_s: float | None
    ) -> Adapter:
        described = replace(adapter, revision="", example_count=0, update_time=None)
        request = pb.UpdateAdapterRequest(
            adapter=adapter_to_proto(described), update_mask=FieldMask(paths=fields), **others
        )
        response = await self.call("UpdateAdapter", request, timeout_s, LONG_TIMEOUT_S)
        return adapter_from_proto(response.adapter)

    async def _create(self, adapter: Adapter, source: dict[str, Any], timeout_s: float | None) -> Adapter:
        request = pb.CreateAdapterRequest(adapter=adapter_to_proto(adapter), **source)
        response = await self.call("CreateAdapter", request, timeout_s, LONG_TIMEOUT_S)
        return adapter_from_proto(response.adapter)

    async def get_catalogue(self, timeout_s: float | None = None) -> CatalogueInfo:
        """Return the catalogue's revision, its size, and the fingerprint of the embedder that makes its vectors."""
        return catalogue_from_proto(await self.call("GetCatalogue", pb.GetCatalogueRequest(), timeout_s))

    async def get_vectors(self, adapter_id: str, timeout_s: float | None = None) -> ListedAdapter:
        """Return one adapter with the vectors of its examples. Raises NotFoundError."""
        request = pb.GetAdapterRequest(adapter_id=adapter_id, with_vectors=True)
        response = await self.call("GetAdapter", request, timeout_s)
        vectors = tuple(vector_from_proto(vector, "vectors") for vector in response.vectors)
        return ListedAdapter(adapter_from_proto(response.adapter), vectors, response.embedder_fingerprint)

    async def get_adapter(self, adapter_id: str, timeout_s: float | None = None) -> Adapter:
        """Return one adapter. Raises NotFoundError."""
        response = await self.call("GetAdapter", pb.GetAdapterRequest(adapter_id=adapter_id), timeout_s)
        return adapter_from_proto(response.adapter)

    async def list_adapters(
        self, base_model: str = "", kind: str = "", tags: Sequence[str] = (), timeout_s: float | None = None
    ) -> list[Adapter]:
        """Return the adapters of all pages, ordered by id."""
        adapters: list[Adapter] = []
        token = ""
        while True:
            request = pb.ListAdaptersRequest(page_token=token, base_model=base_model, kind=kind, tags=tags)
            response = await self.call("ListAdapters", request, timeout_s)
            adapters += [adapter_from_proto(adapter) for adapter in response.adapters]
            token = response.next_page_token
            if not token:
                return adapters

    async def delete_adapter(self, adapter_id: str, timeout_s: float | None = None) -> None:
        """Remove an adapter from the catalogue. Raises NotFoundError."""
        await self.call("DeleteAdapter", pb.DeleteAdapterRequest(adapter_id=adapter_id), timeout_s)


def _example_prompts(prompts: Iterable[Prompt]) -> pb.ExamplePrompts:
    return pb.ExamplePrompts(prompts=[prompt_to_proto(prompt) for prompt in prompts])


def _example_vectors(vectors: Iterable[bytes]) -> pb.ExampleVectors:
    return pb.ExampleVectors(vectors=[vector_to_proto(vector) for vector in vectors])
