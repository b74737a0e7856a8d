"""Both services as small real gRPC servers whose answers follow from the request alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from loraretriever.v1 import (
    generation_service_pb2,
    generation_service_pb2_grpc,
    retrieval_service_pb2,
    retrieval_service_pb2_grpc,
)

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, WeightedAdapter
from infra.contract.errors import LoraRetrieverError, NotFoundError, field_path
from infra.contract.generation import FinishReason, Generation, Timings, Usage
from infra.contract.prompt import Prompt
from infra.contract.retrieval import (
    CatalogueInfo,
    Match,
    RetrievalOptions,
    RetrievalTimings,
    Selection,
    SelectionReason,
)
from infra.runtime.server import GrpcServer
from infra.runtime.settings import ServerOptions
from infra.runtime.wire import (
    adapter_to_proto,
    catalogue_to_proto,
    composition_from_proto,
    generation_to_proto,
    prompt_from_proto,
    prompts_from_proto,
    retrieval_options_from_proto,
    retrieval_timings_to_proto,
    selection_to_proto,
)

BASE_MODEL = "tiny-vlm"
ADAPTERS = tuple(
    Adapter(name, BASE_MODEL, f"adapters/{name}", kind=kind, revision=f"{name}-1", rank=8)
    for name, kind in (("gmail", "app"), ("ebay", "app"), ("clock", "app"), ("shopping", "category"))
)

RETRIEVAL_TIMINGS = RetrievalTimings(embed_s=0.02, search_s=0.001)

Hook = Callable[[Prompt, str], Awaitable[None]]


async def nothing(_prompt: Prompt, _peer: str) -> None:
    """Answer at once."""


def similarity(adapter: Adapter, prompt: Prompt) -> float:
    """Return 0.9 for an adapter that the prompt names, else something below 0.6 that is always the same."""
    if adapter.adapter_id in prompt.user_text.lower():
        return 0.9
    digest = hashlib.sha256(f"{adapter.adapter_id}{prompt.user_text}".encode()).digest()
    return digest[0] / 256 * 0.6


def select(prompt: Prompt, options: RetrievalOptions) -> Selection:
    """Return the best of ADAPTERS that the options allow, uniformly weighted."""
    of_model = [adapter for adapter in ADAPTERS if options.base_model in ("", adapter.base_model)]
    if not of_model:
        return Selection(reason=SelectionReason.NO_ADAPTERS_OF_MODEL)
    allowed = [
        adapter
        for adapter in of_model
        if adapter.adapter_id not in options.exclude
        and (not options.include or adapter.adapter_id in options.include)
        and options.kind in ("", adapter.kind)
    ]
    if not allowed:
        return Selection(reason=SelectionReason.NO_ADAPTERS_ALLOWED)
    minimum = -1 if options.min_similarity is None else options.min_similarity
    similar = [adapter for adapter in allowed if similarity(adapter, prompt) >= minimum]
    if not similar:
        return Selection(reason=SelectionReason.BELOW_MINIMUM_SIMILARITY)
    best = sorted(similar, key=lambda adapter: -similarity(adapter, prompt))[: options.top_k or 3]
    return Selection(tuple(Match(adapter, similarity(adapter, prompt), 1 / len(best)) for adapter in best))


def answer_text(prompt: Prompt, composition: Composition) -> str:
    """Return the fake model's answer: the composition, the number of images, and the last line of the prompt."""
    kind = type(composition).__name__.lower()
    shares: tuple[WeightedAdapter, ...] = () if isinstance(composition, Base) else composition.adapters
    shares_text = "+".join(f"{share.adapter_id}*{share.weight:.2f}" for share in shares)
    return f"{kind}({shares_text}) saw {len(prompt.images)}: {prompt.user_text.splitlines()[-1]}"


@dataclass
class FakeRetrieval(retrieval_service_pb2_grpc.RetrievalServiceServicer):
    """Retrieves with `select`. `asked` holds the options of every call; every method raises `failure` if it is set."""

    failure: LoraRetrieverError | None = None
    catalogue_revision: str = "catalogue-1"
    stale: bool = False
    asked: list[RetrievalOptions] = field(default_factory=list)

    async def RetrieveAdapters(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Select for each prompt."""
        prompts = prompts_from_proto(request.prompts)
        with field_path("options"):
            options = retrieval_options_from_proto(request.options)
        self.asked.append(options)
        self._fail()
        return retrieval_service_pb2.RetrieveAdaptersResponse(
            selections=[selection_to_proto(select(prompt, options)) for prompt in prompts],
            catalogue_revision=self.catalogue_revision,
            stale=self.stale,
            timings=retrieval_timings_to_proto(RETRIEVAL_TIMINGS),
        )

    async def GetCatalogue(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Describe the catalogue that holds ADAPTERS."""
        self._fail()
        return catalogue_to_proto(
            CatalogueInfo(self.catalogue_revision, "embedder-1", dimension=16, adapter_count=len(ADAPTERS))
        )

    async def ListAdapters(self, request: Any, context: Any) -> Any:  # noqa: N802
        """List those of ADAPTERS that the request asks for, on one page."""
        self._fail()
        listed = [
            adapter
            for adapter in ADAPTERS
            if request.base_model in ("", adapter.base_model) and request.kind in ("", adapter.kind)
        ]
        return retrieval_service_pb2.ListAdaptersResponse(
            adapters=[adapter_to_proto(adapter) for adapter in listed], catalogue_revision=self.catalogue_revision
        )

    async def GetAdapter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Return one of ADAPTERS."""
        self._fail()
        for adapter in ADAPTERS:
            if adapter.adapter_id == request.adapter_id:
                return retrieval_service_pb2.GetAdapterResponse(adapter=adapter_to_proto(adapter))
        raise NotFoundError(f"no adapter {request.adapter_id!r}")

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass
class FakeGeneration(generation_service_pb2_grpc.GenerationServiceServicer):
    """Answers with `answer_text`. `before` is awaited first; `failures` are raised by a word of the prompt.

    A stream waits after its first word while `waits_after_text` is an unset event, and then raises `fails_after_text`.
    """

    before: Hook = nothing
    failures: dict[str, LoraRetrieverError] = field(default_factory=dict)
    peers: set[str] = field(default_factory=set)
    calls: int = 0
    model_calls: int = 0
    check_failure: LoraRetrieverError | None = None
    fails_after_text: LoraRetrieverError | None = None
    waits_after_text: asyncio.Event | None = None
    stream_ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Name the base model."""
        self.model_calls += 1
        return generation_service_pb2.GetModelResponse(
            base_model=BASE_MODEL,
            revision="weights-1",
            family="fake",
            device="cpu",
            dtype="float32",
            limits=generation_service_pb2.ModelLimits(max_images=16, bank_ranks=64),
        )

    async def CheckAdapter(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Accept an adapter of any checkpoint."""
        if self.check_failure is not None:
            raise self.check_failure
        return generation_service_pb2.CheckAdapterResponse(base_model=BASE_MODEL)

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Answer at once."""
        return generation_to_proto(await self._answer(request, context))

    async def StreamGenerate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Answer word by word."""
        generation = await self._answer(request, context)
        try:
            for word in generation.text.split(" "):
                yield generation_service_pb2.StreamGenerateResponse(delta=word)
                if self.waits_after_text is not None:
                    await self.waits_after_text.wait()
                if self.fails_after_text is not None:
                    raise self.fails_after_text
            yield generation_service_pb2.StreamGenerateResponse(final=generation_to_proto(generation))
        finally:
            self.stream_ended.set()

    async def _answer(self, request: Any, context: Any) -> Generation:
        with field_path("prompt"):
            prompt = prompt_from_proto(request.prompt)
        composition = composition_from_proto(request.composition)
        self.calls += 1
        self.peers.add(context.peer())
        await self.before(prompt, context.peer())
        for word, error in self.failures.items():
            if word in prompt.user_text:
                raise error
        applied = () if isinstance(composition, Base) else composition.adapters
        text = answer_text(prompt, composition)
        usage = Usage(len(prompt.user_text.split()), 0, len(text.split()))
        return Generation(text, FinishReason.STOP, usage, Timings(0.001, 0.002, 0.003), applied)


@dataclass(frozen=True)
class FakeTiers:
    """Both services and their addresses."""

    retrieval: FakeRetrieval
    generation: FakeGeneration
    retrieval_target: str
    generation_target: str


@asynccontextmanager
async def fake_tiers() -> AsyncIterator[FakeTiers]:
    """Serve both on free ports of the running loop."""
    retrieval, generation = FakeRetrieval(), FakeGeneration()
    async with AsyncExitStack() as stack:
        options = ServerOptions(shutdown_grace_s=0)
        first, second = GrpcServer(options), GrpcServer(options)
        first.add(
            retrieval,
            retrieval_service_pb2_grpc.add_RetrievalServiceServicer_to_server,
            "loraretriever.v1.RetrievalService",
        )
        second.add(
            generation,
            generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
            "loraretriever.v1.GenerationService",
        )
        await stack.enter_async_context(first)
        await stack.enter_async_context(second)
        yield FakeTiers(retrieval, generation, first.address, second.address)
