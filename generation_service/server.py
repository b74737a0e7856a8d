"""GenerationService over gRPC: decode, call, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypedDict

import grpc.aio
from loraretriever.v1 import generation_service_pb2 as pb
from loraretriever.v1 import generation_service_pb2_grpc

from generation_service.adapters.leases import ResidentAdapter
from generation_service.answers import GenerationService
from generation_service.engine.sequence import Delta
from infra.contract.adapter import check_adapter_id
from infra.contract.composition import Composition
from infra.contract.errors import field_path
from infra.contract.generation import Decoding
from infra.contract.prompt import Prompt
from infra.runtime.server import GrpcServer
from infra.runtime.wire import (
    adapter_from_proto,
    composition_from_proto,
    decoding_from_proto,
    generation_to_proto,
    prompt_from_proto,
)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["GenerationService"].full_name

Context = grpc.aio.ServicerContext[Any, Any]


class GenerationServicer(generation_service_pb2_grpc.GenerationServiceServicer):
    """Translates between the contract's messages and the service."""

    def __init__(self, service: GenerationService) -> None:
        self._service = service

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> pb.GenerateResponse:  # noqa: N802
        """Answer one prompt."""
        return generation_to_proto(await self._service.generate(**_arguments(request, context)))

    async def StreamGenerate(  # noqa: N802
        self, request: pb.StreamGenerateRequest, context: Context
    ) -> AsyncIterator[pb.StreamGenerateResponse]:
        """Answer one prompt piece by piece."""
        async for event in self._service.stream(**_arguments(request, context)):
            if isinstance(event, Delta):
                yield pb.StreamGenerateResponse(delta=event.text)
            else:
                yield pb.StreamGenerateResponse(final=generation_to_proto(event))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:  # noqa: N802
        """Return the base model, the limits and the resident adapters."""
        served = self._service.served
        limits, images = served.limits, served.image_limits
        return pb.GetModelResponse(
            base_model=served.name,
            family=served.description.family,
            device=str(served.description.device),
            dtype=str(served.description.dtype).removeprefix("torch."),
            limits=pb.ModelLimits(
                max_sequence_tokens=limits.max_sequence_tokens,
                max_images=images.max_images,
                max_image_bytes=images.max_bytes,
                max_image_pixels=images.max_pixels,
                max_adapters=served.max_adapters,
                bank_ranks=served.bank_ranks,
                max_running=limits.max_running,
                max_waiting=limits.max_waiting,
            ),
            residents=[_resident_to_proto(resident) for resident in self._service.residents()],
            revision=served.revision,
        )

    async def CheckAdapter(self, request: pb.CheckAdapterRequest, context: Context) -> pb.CheckAdapterResponse:  # noqa: N802
        """Check an adapter that may not be registered yet."""
        with field_path("adapter"):
            adapter = adapter_from_proto(request.adapter)
        await self._service.check_adapter(adapter)
        return pb.CheckAdapterResponse(base_model=self._service.served.name)

    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: Context) -> pb.LoadAdapterResponse:  # noqa: N802
        """Load an adapter and pin it."""
        adapter = await self._service.load_adapter(check_adapter_id(request.adapter_id), request.revision)
        return pb.LoadAdapterResponse(adapter=_resident_to_proto(adapter))

    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: Context) -> pb.UnloadAdapterResponse:  # noqa: N802
        """Unpin an adapter."""
        self._service.unload_adapter(check_adapter_id(request.adapter_id))
        return pb.UnloadAdapterResponse()


def add_to(server: GrpcServer, servicer: GenerationServicer) -> None:
    """Register `servicer` with `server`."""
    server.add(servicer, generation_service_pb2_grpc.add_GenerationServiceServicer_to_server, SERVICE_NAME)


class _Arguments(TypedDict):
    prompt: Prompt
    composition: Composition
    decoding: Decoding
    time_limit_s: float | None


def _arguments(request: pb.GenerateRequest | pb.StreamGenerateRequest, context: Context) -> _Arguments:
    with field_path("prompt"):
        prompt = prompt_from_proto(request.prompt)
    with field_path("composition"):
        composition = composition_from_proto(request.composition)
    with field_path("decoding"):
        decoding = decoding_from_proto(request.decoding)
    return _Arguments(prompt=prompt, composition=composition, decoding=decoding, time_limit_s=context.time_remaining())


def _resident_to_proto(resident: ResidentAdapter) -> pb.ResidentAdapter:
    return pb.ResidentAdapter(
        adapter_id=resident.adapter_id,
        revision=resident.revision,
        rank=resident.rank,
        byte_size=resident.byte_size,
        pinned=resident.pinned,
    )
