"""GenerationClient: answers of the base model with a composition of adapters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import generation_service_pb2_grpc as pb_grpc

from infra.contract.adapter import Adapter
from infra.contract.composition import Composition
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.runtime.deadline import LONG_TIMEOUT_S
from infra.runtime.wire import (
    adapter_to_proto,
    composition_to_proto,
    decoding_to_proto,
    generation_from_proto,
    prompt_to_proto,
)
from orchestrator.answering.model_info import ModelInfo, ModelLimits, ResidentAdapter
from orchestrator.clients.base import ServiceClient


class GenerationClient(ServiceClient):
    """Client of GenerationService."""

    stub_class = pb_grpc.GenerationServiceStub

    async def generate(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> Generation:
        """Return the answer to a prompt."""
        request = pb.GenerateRequest(**_generate_fields(prompt, composition, decoding))
        return generation_from_proto(await self.call("Generate", request, timeout_s, LONG_TIMEOUT_S))

    async def stream(
        self, prompt: Prompt, composition: Composition, decoding: Decoding, timeout_s: float | None = None
    ) -> AsyncIterator[str | Generation]:
        """Yield the answer's text piece by piece, then the complete Generation."""
        request = pb.StreamGenerateRequest(**_generate_fields(prompt, composition, decoding))
        async for message in self.stream_of("StreamGenerate", request, timeout_s):
            is_final = message.WhichOneof("event") == "final"
            yield generation_from_proto(message.final) if is_final else message.delta

    async def check_adapter(self, adapter: Adapter, timeout_s: float | None = None) -> str:
        """Return the running base model's name if it can be served with `adapter`, which need not be registered.

        Raises the error that a request for the adapter would get.
        """
        request = pb.CheckAdapterRequest(adapter=adapter_to_proto(adapter))
        response = await self.call("CheckAdapter", request, timeout_s, LONG_TIMEOUT_S)
        return str(response.base_model)

    async def get_model(self, timeout_s: float | None = None) -> ModelInfo:
        """Return the model that runs, its limits and its resident adapters."""
        return _model_from_proto(await self.call("GetModel", pb.GetModelRequest(), timeout_s))

    async def load_adapter(
        self, adapter_id: str, revision: str = "", timeout_s: float | None = None
    ) -> ResidentAdapter:
        """Load an adapter before the first request needs it, and pin it."""
        request = pb.LoadAdapterRequest(adapter_id=adapter_id, revision=revision)
        response = await self.call("LoadAdapter", request, timeout_s, LONG_TIMEOUT_S)
        return _resident_from_proto(response.adapter)

    async def unload_adapter(self, adapter_id: str, timeout_s: float | None = None) -> None:
        """Unpin an adapter."""
        await self.call("UnloadAdapter", pb.UnloadAdapterRequest(adapter_id=adapter_id), timeout_s)


def _generate_fields(prompt: Prompt, composition: Composition, decoding: Decoding) -> dict[str, Any]:
    return {
        "prompt": prompt_to_proto(prompt),
        "composition": composition_to_proto(composition),
        "decoding": decoding_to_proto(decoding),
    }


def _model_from_proto(message: pb.GetModelResponse) -> ModelInfo:
    return ModelInfo(
        base_model=message.base_model,
        family=message.family,
        device=message.device,
        dtype=message.dtype,
        limits=ModelLimits(**{field.name: value for field, value in message.limits.ListFields()}),
        residents=tuple(_resident_from_proto(resident) for resident in message.residents),
        revision=message.revision,
    )


def _resident_from_proto(message: pb.ResidentAdapter) -> ResidentAdapter:
    return ResidentAdapter(message.adapter_id, message.revision, message.rank, message.byte_size, message.pinned)
