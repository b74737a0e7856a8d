"""GenerationService over loopback gRPC: the answers of each method, and the error for each kind of mistake."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import grpc.aio
import pytest
from loraretriever.v1 import adapter_pb2, prompt_pb2
from loraretriever.v1 import generation_service_pb2 as pb
from torch import Tensor

from generation_service.app import generation_stack
from generation_service.execution.inputs import DecodeRow
from generation_service.execution.runner import Runner
from generation_service.models.folder import folder_revision
from infra.contract.errors import CheckpointError, InvalidArgumentError, LoraRetrieverError
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.error_table import from_rpc_error
from infra.runtime.wire import prompt_to_proto
from tests.support.harness.generation_stack import (
    ModelFixture,
    Served,
    served,
    settings_for,
    tiny_adapter,
    write_model_fixture,
)
from tests.support.harness.images import png_part

USER = prompt_pb2.ROLE_USER


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFixture:
    return write_model_fixture(tmp_path_factory.mktemp("world"))


def shares(*adapters: tuple[str, float]) -> list[adapter_pb2.WeightedAdapter]:
    return [adapter_pb2.WeightedAdapter(adapter_id=name, weight=weight) for name, weight in adapters]


def mixture(*adapters: tuple[str, float]) -> pb.Composition:
    return pb.Composition(mixture=pb.Mixture(adapters=shares(*adapters)))


def fusion(*adapters: tuple[str, float], method: pb.FusionMethod = pb.FUSION_METHOD_CONCAT) -> pb.Composition:
    return pb.Composition(fusion=pb.Fusion(adapters=shares(*adapters), method=method))


def request(
    text: str = "What is on the screen?",
    composition: pb.Composition | None = None,
    images: tuple[ImagePart, ...] = (),
    **decoding: object,
) -> pb.GenerateRequest:
    plain = {"max_new_tokens": 8} | decoding
    return pb.GenerateRequest(
        prompt=prompt_to_proto(Prompt.of(text, images)),
        composition=composition,
        decoding=pb.Decoding(**plain),  # type: ignore[arg-type]
    )


async def refused(call: Awaitable[object]) -> tuple[grpc.StatusCode, LoraRetrieverError]:
    """Return the status and the contract's error that a call ends in."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), from_rpc_error(caught.value)


async def still_works(service: Served) -> None:
    """Assert that the next request is answered and that nothing is still held."""
    assert (await service.stub.Generate(request(composition=mixture(("a0", 1.0))))).usage.completion_tokens > 0
    assert service.stack.engine.running == service.stack.engine.waiting == 0
    assert service.stack.residency.leased_ranks == 0


async def test_generate_returns_usage_timings_and_applied_adapters(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots])) as service:
        answer = await service.stub.Generate(
            request(composition=mixture(("a1", 0.7), ("a0", 0.3)), images=(png_part(100, 150),))
        )
        assert answer.finish_reason in (pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH)
        assert answer.usage.image_tokens == 4 * 5
        assert answer.usage.prompt_tokens > 20
        assert 0 < answer.usage.completion_tokens <= 8
        assert answer.timings.prefill.ToNanoseconds() > 0
        applied = [(share.adapter_id, share.weight) for share in answer.applied]
        assert applied == [("a1", 0.7), ("a0", 0.3)]
        residents = (await service.stub.GetModel(pb.GetModelRequest())).residents
        assert {share.adapter_id: share.revision for share in answer.applied} == {
            resident.adapter_id: resident.revision for resident in residents
        }


async def test_base_model_answers_without_composition(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base)) as service:
        answer = await service.stub.Generate(request())
        assert answer.usage.completion_tokens > 0
        assert not answer.applied


async def test_stream_is_deltas_and_then_the_same_final_answer(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots])) as service:
        asked = request(composition=fusion(("a0", 0.5), ("a1", 0.5)), max_new_tokens=20)
        whole = await service.stub.Generate(asked)
        streamed = service.stub.StreamGenerate(
            pb.StreamGenerateRequest(prompt=asked.prompt, composition=asked.composition, decoding=asked.decoding)
        )
        events = [event async for event in streamed]
        deltas, final = events[:-1], events[-1].final
        assert len(deltas) > 1
        assert all(event.WhichOneof("event") == "delta" and event.delta for event in deltas)
        assert "".join(event.delta for event in deltas) == final.text == whole.text
        assert final.applied == whole.applied
        assert final.usage == whole.usage


async def test_get_model_returns_model_and_its_limits(tiny_model: ModelFixture) -> None:
    settings = settings_for(
        tiny_model.base, [tiny_model.roots], max_running=3, max_waiting=5, max_adapters=2, max_images=4
    )
    async with served(settings) as service:
        model = await service.stub.GetModel(pb.GetModelRequest())
        assert (model.base_model, model.family, model.device, model.dtype) == (
            "Qwen2-VL-tiny",
            "qwen2_vl",
            "cpu",
            "float32",
        )
        assert model.revision == folder_revision(tiny_model.base)
        assert model.limits == pb.ModelLimits(
            max_sequence_tokens=512,
            max_images=4,
            max_image_bytes=settings.max_image_bytes,
            max_image_pixels=settings.max_image_pixels,
            max_adapters=2,
            bank_ranks=256,
            max_running=3,
            max_waiting=5,
        )
        assert not model.residents


async def test_loaded_adapter_is_pinned_until_it_is_unloaded(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots])) as service:
        loaded = (await service.stub.LoadAdapter(pb.LoadAdapterRequest(adapter_id="a2"))).adapter
        assert (loaded.adapter_id, loaded.rank, loaded.pinned) == ("a2", 8, True)
        assert loaded.byte_size > 0
        assert (await service.stub.GetModel(pb.GetModelRequest())).residents == [loaded]
        await service.stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter_id="a2"))
        residents = (await service.stub.GetModel(pb.GetModelRequest())).residents
        assert [resident.pinned for resident in residents] == [False]


async def test_loading_unknown_adapter_is_not_found(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots])) as service:
        code, error = await refused(service.stub.LoadAdapter(pb.LoadAdapterRequest(adapter_id="unknown")))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "'unknown'" in error.message
        code, error = await refused(service.stub.LoadAdapter(pb.LoadAdapterRequest()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        await still_works(service)


async def test_unloading_adapter_that_is_not_loaded_is_not_found(tiny_model: ModelFixture) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots])) as service:
        code, error = await refused(service.stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter_id="a2")))
        assert code is grpc.StatusCode.NOT_FOUND
        assert "'a2'" in error.message
        await still_works(service)


def cut_off(part: ImagePart) -> ImagePart:
    return ImagePart(part.data[: len(part.data) // 2])


BAD_REQUESTS: dict[str, tuple[Callable[[], pb.GenerateRequest], str, str]] = {
    "no messages": (pb.GenerateRequest, "prompt.messages", "empty"),
    "no text": (
        lambda: pb.GenerateRequest(
            prompt=prompt_pb2.Prompt(
                messages=[prompt_pb2.Message(role=USER, parts=[prompt_pb2.Part(text="  ")])],
            )
        ),
        "prompt.messages[0].parts",
        "empty",
    ),
    "broken image": (
        lambda: request(images=(cut_off(png_part(200, 200)),)),
        "prompt.messages[0].parts[0].image.data",
        "broken or cut off",
    ),
    "no image": (
        lambda: request(images=(ImagePart(b"no image at all"),)),
        "prompt.messages[0].parts[0].image.data",
        "PNG",
    ),
    "too many pixels": (
        lambda: request(images=(png_part(300, 200),)),
        "prompt.messages[0].parts[0].image",
        "50000",
    ),
    "too many images": (lambda: request(images=(png_part(30, 30),) * 4), "prompt.messages", "at most 3"),
    "too long a prompt": (lambda: request("word " * 2000), "prompt", "512"),
    "more text than any tokens hold": (lambda: request("word " * 20_000), "prompt", "characters of text"),
    "too many adapters": (
        lambda: request(composition=mixture(*((f"a{index}", 0.1) for index in range(5)))),
        "composition.mixture.adapters",
        "at most 4",
    ),
    "no adapters": (lambda: request(composition=mixture()), "composition.mixture.adapters", "at least one"),
    "an adapter twice": (
        lambda: request(composition=fusion(("a0", 0.5), ("a0", 0.5))),
        "composition.fusion.adapters[1].adapter_id",
        "twice",
    ),
    "a weight that is not a number": (
        lambda: request(composition=mixture(("a0", 1.0), ("a1", math.nan))),
        "composition.mixture.adapters[1].weight",
        "finite",
    ),
    "a negative weight": (
        lambda: request(composition=fusion(("a0", -0.5))),
        "composition.fusion.adapters[0].weight",
        "negative",
    ),
    "an id that is none": (
        lambda: request(composition=mixture(("../a0", 1.0))),
        "composition.mixture.adapters[0].adapter_id",
        "adapter id",
    ),
    "a temperature below zero": (lambda: request(temperature=-1.0), "decoding.temperature", "negative"),
    "nine stop strings": (lambda: request(stop=["x"] * 9), "decoding.stop", "at most 8"),
}


@pytest.mark.parametrize(("make", "field", "words"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_invalid_request_names_its_field_and_affects_no_other(
    tiny_model: ModelFixture, make: Callable[[], pb.GenerateRequest], field: str, words: str
) -> None:
    settings = settings_for(tiny_model.base, [tiny_model.roots], max_adapters=4, max_images=3, max_image_pixels=50_000)
    async with served(settings) as service:
        code, error = await refused(service.stub.Generate(make()))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert isinstance(error, InvalidArgumentError)
        assert error.field.startswith(field)
        assert words in error.message
        await still_works(service)


def adapter_folder(tiny_model: ModelFixture, root: Path, name: str) -> Path:
    shutil.copytree(tiny_model.roots / "a0", root / "a0")
    shutil.copytree(tiny_model.roots / "a0", root / name)
    return root / name


def of_another_model(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    config = adapter_folder(tiny_model, root, "foreign") / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "Qwen/Qwen2-VL-7B"}))
    return mixture(("foreign", 1.0))


def that_does_not_bind(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "stray")
    stray = tiny_adapter(tiny_model.shape, 0)
    key = next(iter(stray.tensors))
    stray.tensors[key.replace("layers.0", "layers.7")] = stray.tensors.pop(key)
    stray.write(root / "stray")
    return mixture(("a0", 0.5), ("stray", 0.5))


def half_written(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    weights = adapter_folder(tiny_model, root, "half") / "adapter_model.safetensors"
    weights.chmod(0o600)
    os.truncate(weights, weights.stat().st_size // 2)
    return fusion(("a0", 0.5), ("half", 0.5))


def of_too_high_a_rank(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "wide")
    tiny_adapter(tiny_model.shape, 1, rank=300).write(root / "wide")
    return mixture(("wide", 1.0))


def out_of_the_roots(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    outside = root.parent / "outside"
    shutil.copytree(tiny_model.roots / "a0", outside)
    adapter_folder(tiny_model, root, "kept")
    (root / "link").symlink_to(outside)
    return mixture(("link", 1.0))


def unknown(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "kept")
    return mixture(("unknown", 1.0))


def of_a_revision_that_is_gone(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "kept")
    share = adapter_pb2.WeightedAdapter(adapter_id="a0", revision="0123456789ab", weight=1.0)
    return pb.Composition(mixture=pb.Mixture(adapters=[share]))


def fused_beyond_the_bank(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "b0")
    composition = fusion(("a0", 0.5), ("b0", 0.5), method=pb.FUSION_METHOD_TIES)
    composition.fusion.rank = 257
    return composition


def of_unequal_ranks_fused_linearly(tiny_model: ModelFixture, root: Path) -> pb.Composition:
    adapter_folder(tiny_model, root, "kept")
    shutil.copytree(tiny_model.roots / "a1", root / "a1")
    return fusion(("a0", 0.5), ("a1", 0.5), method=pb.FUSION_METHOD_LINEAR)


BAD_ADAPTERS: dict[str, tuple[Callable[[ModelFixture, Path], pb.Composition], grpc.StatusCode, str, list[str]]] = {
    "unknown": (unknown, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", ["'unknown'", "put its PEFT folder"]),
    "gone revision": (of_a_revision_that_is_gone, grpc.StatusCode.NOT_FOUND, "NOT_FOUND", ["'a0'", "0123456789ab"]),
    "another base model": (
        of_another_model,
        grpc.StatusCode.FAILED_PRECONDITION,
        "BASE_MODEL_MISMATCH",
        ["'foreign' was trained on Qwen2-VL-7B; this server runs Qwen2-VL-tiny"],
    ),
    "a tensor that does not bind": (
        that_does_not_bind,
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_INVALID",
        ["layers.7"],
    ),
    "half written": (half_written, grpc.StatusCode.FAILED_PRECONDITION, "CHECKPOINT_INVALID", ["half"]),
    "too high a rank": (
        of_too_high_a_rank,
        grpc.StatusCode.FAILED_PRECONDITION,
        "CAPACITY_EXCEEDED",
        ["300", "256"],
    ),
    "outside the roots": (
        out_of_the_roots,
        grpc.StatusCode.FAILED_PRECONDITION,
        "CHECKPOINT_INVALID",
        ["link", "--adapter-roots"],
    ),
    "a fusion of too high a rank": (
        fused_beyond_the_bank,
        grpc.StatusCode.FAILED_PRECONDITION,
        "CAPACITY_EXCEEDED",
        ["257", "256"],
    ),
    "linear fusion of unequal ranks": (
        of_unequal_ranks_fused_linearly,
        grpc.StatusCode.FAILED_PRECONDITION,
        "FAILED_PRECONDITION",
        ["equal ranks"],
    ),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS.values(), ids=BAD_ADAPTERS)
async def test_unusable_adapter_fails_only_its_requests(
    tiny_model: ModelFixture,
    tmp_path: Path,
    case: tuple[Callable[[ModelFixture, Path], pb.Composition], grpc.StatusCode, str, list[str]],
) -> None:
    make, code, reason, words = case
    root = tmp_path / "root"
    root.mkdir()
    composition = make(tiny_model, root)
    async with served(settings_for(tiny_model.base, [root])) as service:
        concurrent = asyncio.ensure_future(service.stub.Generate(request(composition=mixture(("a0", 1.0)))))
        found, error = await refused(service.stub.Generate(request(composition=composition)))
        assert found is code
        assert error.reason == reason
        for word in words:
            assert word in error.message
        assert (await concurrent).usage.completion_tokens > 0
        await still_works(service)


async def test_repaired_adapter_is_read_again(tiny_model: ModelFixture, tmp_path: Path) -> None:
    composition = half_written(tiny_model, tmp_path)
    async with served(settings_for(tiny_model.base, [tmp_path])) as service:
        await refused(service.stub.Generate(request(composition=composition)))
        shutil.copy(
            tiny_model.roots / "a0" / "adapter_model.safetensors", tmp_path / "half" / "adapter_model.safetensors"
        )
        assert (await service.stub.Generate(request(composition=composition))).applied


async def test_replaced_checkpoint_is_a_new_revision(tiny_model: ModelFixture, tmp_path: Path) -> None:
    folder = tiny_adapter(tiny_model.shape, 1).write(tmp_path / "changing")
    async with served(settings_for(tiny_model.base, [tmp_path])) as service:
        asked = request(composition=mixture(("changing", 1.0)), max_new_tokens=16)
        first = await service.stub.Generate(asked)
        tiny_adapter(tiny_model.shape, 2).write(folder)
        second = await service.stub.Generate(asked)
        assert first.applied[0].revision != second.applied[0].revision
        assert first.text != second.text
        old = adapter_pb2.WeightedAdapter(adapter_id="changing", revision=first.applied[0].revision, weight=1.0)
        asked.composition.CopyFrom(pb.Composition(mixture=pb.Mixture(adapters=[old])))
        assert (await service.stub.Generate(asked)).text == first.text


async def test_overflowing_adapter_fails_its_request_and_leaves_clean_slot(
    tiny_model: ModelFixture, tmp_path: Path
) -> None:
    huge = tiny_adapter(tiny_model.shape, 1)
    huge.tensors = {key: tensor * 1e30 for key, tensor in huge.tensors.items()}
    huge.write(tmp_path / "huge")
    shutil.copytree(tiny_model.roots / "a0", tmp_path / "a0")
    async with served(settings_for(tiny_model.base, [tmp_path], max_running=1)) as service:
        asked = request(composition=mixture(("a0", 1.0)), max_new_tokens=24)
        expected = (await service.stub.Generate(asked)).text
        code, error = await refused(
            service.stub.Generate(request("word " * 50, composition=mixture(("huge", 1.0)), max_new_tokens=24))
        )
        assert code is grpc.StatusCode.INTERNAL
        assert "huge" in error.message
        assert (await service.stub.Generate(asked)).text == expected
        await still_works(service)


@pytest.fixture
def decode_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold every decode step until the event is set, so that an answer cannot end before the test lets it."""
    gate, decode = threading.Event(), Runner.decode

    def gated(runner: Runner, rows: Sequence[DecodeRow]) -> Tensor:
        assert gate.wait(60)
        return decode(runner, rows)

    monkeypatch.setattr(Runner, "decode", gated)
    yield gate
    gate.set()


async def test_deadline_ends_request_and_frees_its_slot(tiny_model: ModelFixture, decode_gate: threading.Event) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots], max_running=1)) as service:
        code, _ = await refused(service.stub.Generate(request(max_new_tokens=450), timeout=0.15))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        decode_gate.set()
        assert (await service.stub.Generate(request())).usage.completion_tokens > 0
        assert service.stack.engine.running == 0


async def test_cancelled_stream_frees_its_slot(tiny_model: ModelFixture, decode_gate: threading.Event) -> None:
    async with served(settings_for(tiny_model.base, [tiny_model.roots], max_running=1)) as service:
        asked = request(composition=mixture(("a0", 1.0)), max_new_tokens=450)
        call = service.stub.StreamGenerate(
            pb.StreamGenerateRequest(prompt=asked.prompt, composition=asked.composition, decoding=asked.decoding)
        )
        async with asyncio.timeout(60):
            while not service.stack.residency.leased_ranks:
                await asyncio.sleep(0.01)
        call.cancel()
        decode_gate.set()
        assert (await service.stub.Generate(request())).usage.completion_tokens > 0
        assert service.stack.engine.running == 0
        assert service.stack.residency.leased_ranks == 0


async def test_full_queue_refuses_with_its_length(tiny_model: ModelFixture, decode_gate: threading.Event) -> None:
    async with served(settings_for(tiny_model.base, max_running=1, max_waiting=2)) as service:
        calls = [asyncio.ensure_future(refused_or_answered(service, request())) for _ in range(8)]
        await asyncio.wait(calls, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        decode_gate.set()
        outcomes = await asyncio.gather(*calls)
        refusals = [outcome for outcome in outcomes if isinstance(outcome, LoraRetrieverError)]
        assert refusals
        assert all(error.reason == "QUEUE_FULL" and "2" in error.message for error in refusals)
        assert len(outcomes) - len(refusals) >= 2
        assert (await service.stub.Generate(request())).usage.completion_tokens > 0


async def refused_or_answered(service: Served, asked: pb.GenerateRequest) -> object:
    try:
        return await service.stub.Generate(asked)
    except grpc.aio.AioRpcError as error:
        return from_rpc_error(error)


def test_missing_model_folder_is_named_at_start(tmp_path: Path) -> None:
    with (
        pytest.raises(CheckpointError, match=r"nowhere.*--model-path"),
        generation_stack(settings_for(tmp_path / "nowhere")),
    ):
        pass
