"""Settings -> the running service: its parts built, started and stopped in order, then served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

import torch

from generation_service import metrics
from generation_service.adapters.admission import Admission
from generation_service.adapters.checking import AdapterCheck, CheckpointReader
from generation_service.adapters.host_cache import HostCache
from generation_service.adapters.residency import Residency
from generation_service.adapters.source import (
    AdapterResolver,
    AdapterRoots,
    CatalogueResolver,
    FolderResolver,
)
from generation_service.answers import GenerationService, ServedModel
from generation_service.engine.engine import Engine
from generation_service.engine.limits import EngineLimits, default_prefill_tokens
from generation_service.engine.memory_plan import (
    MemoryPlan,
    available_bytes,
    check_sequence_tokens,
    packed_copy_fits,
    plan_memory,
)
from generation_service.execution.devices import resolve_device, resolve_dtype
from generation_service.execution.kv_cache import SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.lora.bank import AdapterBank
from generation_service.lora.h2d_copy import HostPacker
from generation_service.models.base import BaseModel, LoadOptions, ModelDescription
from generation_service.models.folder import default_model_name, folder_revision
from generation_service.models.quantised.gguf_folder import model_folder
from generation_service.models.registry import family_of, load_base_model
from generation_service.server import GenerationServicer, add_to
from generation_service.settings import GenerationSettings
from infra.runtime.logs import get_logger
from infra.runtime.server import GrpcServer

log = get_logger(__name__)


@dataclass(frozen=True)
class GenerationStack:
    """The parts of a running service."""

    model: BaseModel
    bank: AdapterBank
    admission: Admission
    residency: Residency
    engine: Engine
    service: GenerationService


@contextmanager
def generation_stack(settings: GenerationSettings) -> Iterator[GenerationStack]:
    """Load the model and start the engine; stop them on exit. Raises CheckpointError or ConfigurationError."""
    device = resolve_device(settings.device)
    settings = settings.model_copy(update={"model_path": model_folder(settings.model_path)})
    name = settings.model_name or default_model_name(settings.model_path)
    log.info("loading_model", model=name, path=str(settings.model_path), device=str(device))
    model = _load_model(settings, device)
    description = model.description
    plan = plan_memory(
        description,
        ranks=settings.bank_ranks,
        slots=settings.max_running,
        sequence_tokens=settings.max_sequence_tokens,
        available=available_bytes(description, settings.bank_ranks),
    )
    _log_plan(model, plan)
    bank = AdapterBank(
        description.targets, settings.bank_ranks, description.dtype, description.device, by_image=description.by_image
    )
    cache = SlotKVCache(plan.cache, description.dtype, description.device)
    runner = Runner(model, bank, cache, graphs=settings.decode_graphs, pack=_packs_weights(settings, description))
    with ExitStack() as stack:
        names = (name, *settings.model_aliases)
        reader = CheckpointReader(description.targets, model.canonical, bank.ranks, bank.dtype)
        host_cache = HostCache(
            _resolver(settings, stack),
            reader,
            names,
            settings.host_adapter_bytes,
            host_form=HostPacker(bank.dtype, pinned=bank.device.type == "cuda"),
        )
        residency = Residency(bank, host_cache)
        stack.callback(residency.close)
        admission = Admission(host_cache, bank.ranks, residency.pinned_ranks, settings.max_adapters)
        engine = Engine(model, runner, residency, _limits(settings, plan, device))
        metrics.watch(engine, residency)
        engine.start()
        stack.callback(engine.close)
        served = _served_model(settings, name, engine.limits, description)
        check = AdapterCheck(AdapterRoots(settings.adapter_roots), reader, names)
        service = GenerationService(served, model, admission, residency, engine, check=check)
        stack.callback(service.close)
        yield GenerationStack(model, bank, admission, residency, engine, service)


def serve_forever(settings: GenerationSettings) -> None:
    """Serve until a stop signal."""
    asyncio.run(_serve(settings))


async def _serve(settings: GenerationSettings) -> None:
    server = GrpcServer(settings.server)
    await server.start()
    try:
        async with _stack_on_thread(settings) as stack:
            add_to(server, GenerationServicer(stack.service))
            await server.serve()
    except Exception:
        await server.stop()
        raise


@asynccontextmanager
async def _stack_on_thread(settings: GenerationSettings) -> AsyncIterator[GenerationStack]:
    """Build and stop the stack on a thread, so that the event loop answers health checks meanwhile."""
    manager = generation_stack(settings)
    async with AsyncExitStack() as cleanup:
        stack = await asyncio.to_thread(manager.__enter__)
        cleanup.push_async_callback(asyncio.to_thread, manager.__exit__, None, None, None)
        yield stack


def _load_model(settings: GenerationSettings, device: torch.device) -> BaseModel:
    if settings.max_sequence_tokens is not None:  # Checked before the weights are read, which can take minutes.
        architecture = family_of(settings.model_path).describe(settings.model_path)
        check_sequence_tokens(settings.max_sequence_tokens, architecture.max_positions)
    options = LoadOptions(
        device,
        resolve_dtype(settings.dtype, device),
        max_pixels=settings.max_pixels,
        max_tiles=settings.max_tiles,
        image_suffix=settings.image_suffix,
        chat_template=settings.chat_template,
    )
    return load_base_model(settings.model_path, options)


def _packs_weights(settings: GenerationSettings, model: ModelDescription) -> bool:
    """Return whether linear layers keep a packed copy of their weights, which takes their memory a second time."""
    if not settings.cpu_packed_weights or model.device.type != "cpu" or model.dtype != torch.float32:
        return False
    if fits := packed_copy_fits(model):
        log.info("packing_weights", bytes=model.weight_bytes)
    else:
        log.warning("weights_not_packed", bytes=model.weight_bytes, reason="a second copy needs too much memory")
    return fits


def _served_model(
    settings: GenerationSettings, name: str, limits: EngineLimits, description: ModelDescription
) -> ServedModel:
    return ServedModel(
        name=name,
        revision=folder_revision(settings.model_path),
        description=description,
        limits=limits,
        image_limits=settings.image_limits,
        max_adapters=settings.max_adapters,
        bank_ranks=settings.bank_ranks,
    )


def _resolver(settings: GenerationSettings, stack: ExitStack) -> AdapterResolver:
    roots = AdapterRoots(settings.adapter_roots)
    if not settings.retrieval_target:
        return FolderResolver(roots)
    from generation_service.clients import CatalogueClient

    client = CatalogueClient.from_settings(settings)
    stack.callback(client.close)
    return CatalogueResolver(client.get_adapter, roots)


def _limits(settings: GenerationSettings, plan: MemoryPlan, device: torch.device) -> EngineLimits:
    return EngineLimits(
        max_running=settings.max_running,
        max_waiting=settings.max_waiting,
        max_sequence_tokens=plan.cache.length,
        default_max_new_tokens=settings.default_max_new_tokens,
        prefill_tokens=settings.prefill_tokens or default_prefill_tokens(device.type),
    )


def _log_plan(model: BaseModel, plan: MemoryPlan) -> None:
    log.info(
        "memory",
        device=str(model.description.device),
        dtype=str(model.description.dtype),
        weights_mib=plan.weight_bytes >> 20,
        bank_mib=plan.bank_bytes >> 20,
        cache_mib=plan.cache_bytes >> 20,
        slots=plan.cache.slots,
        max_sequence_tokens=plan.cache.length,
    )
