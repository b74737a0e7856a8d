"""A generation service over a tiny checkpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from loraretriever.v1.generation_service_pb2_grpc import (
    GenerationServiceStub,
    add_GenerationServiceServicer_to_server,
)

from generation_service.app import GenerationStack, generation_stack
from generation_service.server import SERVICE_NAME, GenerationServicer
from generation_service.settings import GenerationSettings
from infra.runtime.channel import ChannelOptions, aio_channel
from infra.runtime.server import GrpcServer
from tests.support.checkpoints.peft_adapters import TinyAdapter
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl

LANGUAGE_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VISION_LINEARS = ("qkv", "proj", "fc1", "fc2", "mlp.0", "mlp.2")


def settings_for(base: Path, roots: Sequence[Path] = (), **given: Any) -> GenerationSettings:
    """Return settings for the model in `base` with adapters below `roots`."""
    defaults: dict[str, Any] = {
        "address": "127.0.0.1:0",
        "device": "cpu",
        "max_sequence_tokens": 512,
        "bank_ranks": 256,
    }
    return GenerationSettings(model_path=base, adapter_roots=tuple(roots), **(defaults | given))


def language_shapes(shape: TinyShape) -> dict[str, tuple[int, int]]:
    """Return the language model's linear layers as transformers 5 names them: path -> (in, out)."""
    hidden, kv, wide = shape.hidden, shape.kv_heads * shape.head_dim, shape.intermediate
    shapes: dict[str, tuple[int, int]] = {}
    for layer in range(shape.layers):
        at = f"model.language_model.layers.{layer}"
        shapes |= {
            f"{at}.self_attn.q_proj": (hidden, hidden),
            f"{at}.self_attn.k_proj": (hidden, kv),
            f"{at}.self_attn.v_proj": (hidden, kv),
            f"{at}.self_attn.o_proj": (hidden, hidden),
            f"{at}.mlp.gate_proj": (hidden, wide),
            f"{at}.mlp.up_proj": (hidden, wide),
            f"{at}.mlp.down_proj": (wide, hidden),
        }
    return shapes


def vision_shapes(shape: TinyShape) -> dict[str, tuple[int, int]]:
    """Return the linear layers of the vision tower and the merger: path -> (in, out)."""
    width, merged = shape.vision_width, 4 * shape.vision_width
    shapes: dict[str, tuple[int, int]] = {}
    for block in range(shape.vision_depth):
        at = f"model.visual.blocks.{block}"
        shapes |= {
            f"{at}.attn.qkv": (width, 3 * width),
            f"{at}.attn.proj": (width, width),
            f"{at}.mlp.fc1": (width, merged),
            f"{at}.mlp.fc2": (merged, width),
        }
    return shapes | {
        "model.visual.merger.mlp.0": (merged, merged),
        "model.visual.merger.mlp.2": (merged, shape.hidden),
    }


def tiny_adapter(shape: TinyShape, seed: int, rank: int = 4, vision: bool = False, **config: Any) -> TinyAdapter:
    """Return a random LoRA strong enough to change greedy answers, on all linear layers."""
    shapes = language_shapes(shape) | (vision_shapes(shape) if vision else {})
    targets = [*LANGUAGE_LINEARS, *(VISION_LINEARS if vision else ())]
    defaults = {"target_modules": targets, "base_model_name_or_path": "Qwen/Qwen2-VL-tiny"}
    return TinyAdapter.random(shapes, rank, alpha=0.5 * rank, seed=1000 + seed, **(defaults | config))


@dataclass(frozen=True)
class ModelFixture:
    """A base model and adapters `a0`, `a1`, ... of different ranks in `roots`; the last two also adapt vision."""

    base: Path
    roots: Path
    shape: TinyShape
    adapters: tuple[str, ...]


def write_model_fixture(folder: Path, adapters: int = 5, shape: TinyShape | None = None) -> ModelFixture:
    """Write a base model and adapters below `folder`."""
    shape = shape or TinyShape()
    names = tuple(f"a{index}" for index in range(adapters))
    for index, name in enumerate(names):
        rank = (2, 4, 8, 4, 3)[index % 5]
        tiny_adapter(shape, index, rank, vision=index >= adapters - 2).write(folder / "adapters" / name)
    return ModelFixture(write_qwen2_vl(folder / "base", shape), folder / "adapters", shape, names)


@dataclass(frozen=True)
class Served:
    """A running service, and a stub of it."""

    stack: GenerationStack
    stub: GenerationServiceStub
    channel: grpc.aio.Channel
    address: str


@asynccontextmanager
async def served(settings: GenerationSettings) -> AsyncIterator[Served]:
    """Serve on a free loopback port within the running event loop."""
    with generation_stack(settings) as stack:
        server = GrpcServer(settings.server)
        server.add(GenerationServicer(stack.service), add_GenerationServiceServicer_to_server, SERVICE_NAME)
        async with server, aio_channel(ChannelOptions(server.address)) as channel:
            stub = GenerationServiceStub(channel)  # type: ignore[no-untyped-call]
            yield Served(stack, stub, channel, server.address)
