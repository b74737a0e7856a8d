"""Requests that can never be served are refused with field and limit, before anything is queued or read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import grpc
import grpc.aio
import pytest
from loraretriever.v1 import adapter_pb2
from loraretriever.v1 import generation_service_pb2 as pb

from infra.contract.errors import InvalidArgumentError, LoraRetrieverError
from infra.contract.prompt import Prompt
from infra.runtime.error_table import from_rpc_error
from infra.runtime.wire import prompt_to_proto
from tests.support.harness.generation_stack import ModelFixture, served, settings_for, tiny_adapter, write_model_fixture

BANK_RANKS = 64


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelFixture:
    tiny_model = write_model_fixture(tmp_path_factory.mktemp("world"))
    tiny_adapter(tiny_model.shape, 1, rank=65).write(tiny_model.roots / "wide")
    tiny_adapter(tiny_model.shape, 1, rank=40).write(tiny_model.roots / "large")
    tiny_adapter(tiny_model.shape, 2, rank=40).write(tiny_model.roots / "other")
    foreign = shutil.copytree(tiny_model.roots / "a0", tiny_model.roots / "foreign") / "adapter_config.json"
    foreign.write_text(json.dumps(json.loads(foreign.read_text()) | {"base_model_name_or_path": "Qwen/Qwen2-VL-7B"}))
    return tiny_model


def shares(*weights: float, names: str = "a0 a1 a2 a3 a4") -> list[adapter_pb2.WeightedAdapter]:
    pairs = zip(names.split(), weights, strict=False)
    return [adapter_pb2.WeightedAdapter(adapter_id=name, weight=weight) for name, weight in pairs]


@dataclass(frozen=True)
class Refused:
    """A composition or text, and its refusal: status, field path, and metadata with the value and the limit."""

    code: grpc.StatusCode
    field: str
    metadata: Mapping[str, str]
    composition: pb.Composition | None = None
    text: str = "Go back."


def mixture(*weights: float, names: str = "a0 a1 a2 a3 a4") -> pb.Composition:
    return pb.Composition(mixture=pb.Mixture(adapters=shares(*weights, names=names)))


def fusion(method: pb.FusionMethod, *weights: float, names: str = "a0 a1 a2 a3 a4") -> pb.Composition:
    return pb.Composition(fusion=pb.Fusion(adapters=shares(*weights, names=names), method=method))


INVALID, NOT_FOUND, FAILED = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)
CASES = {
    "unknown adapter": Refused(
        NOT_FOUND,
        "composition.mixture.adapters[1].adapter_id",
        {"adapter_id": "unknown"},
        mixture(0.5, 0.5, names="a0 unknown"),
    ),
    "adapter of another base model": Refused(
        FAILED,
        "composition.fusion.adapters[0].adapter_id",
        {"adapter_base_model": "Qwen2-VL-7B", "server_base_model": "Qwen2-VL-tiny"},
        fusion(pb.FUSION_METHOD_SVD, 1.0, names="foreign"),
    ),
    "rank beyond the bank": Refused(
        FAILED,
        "composition.mixture.adapters[0].adapter_id",
        {"rank": "65", "limit": "64"},
        mixture(1.0, names="wide"),
    ),
    "ranks that together are beyond the bank": Refused(
        FAILED,
        "composition.mixture.adapters",
        {"need": "80", "limit": "64"},
        mixture(0.5, 0.5, names="large other"),
    ),
    "unequal ranks fused linearly": Refused(
        FAILED, "composition.fusion.method", {}, fusion(pb.FUSION_METHOD_LINEAR, 0.5, 0.5)
    ),
    "too many adapters": Refused(
        INVALID, "composition.fusion.adapters", {"limit": "4"}, fusion(pb.FUSION_METHOD_CONCAT, *[0.2] * 5)
    ),
    "negative weight": Refused(INVALID, "composition.mixture.adapters[1].weight", {}, mixture(0.5, -0.5)),
    "NaN weight": Refused(INVALID, "composition.mixture.adapters[0].weight", {}, mixture(math.nan)),
    "infinite weight": Refused(INVALID, "composition.mixture.adapters[0].weight", {}, mixture(math.inf)),
    "prompt longer than a slot": Refused(INVALID, "prompt", {"limit": "512"}, text="word " * 400),
    "text longer than any slot": Refused(INVALID, "prompt", {}, text="word " * 20_000),
}


def field_of(error: LoraRetrieverError) -> str:
    return error.field if isinstance(error, InvalidArgumentError) else error.metadata["field"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_refusal_names_field_and_limit_before_anything_is_queued_or_read(
    tiny_model: ModelFixture, case: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unexpected(*_: object) -> NoReturn:
        raise AssertionError("a refused request was queued")

    settings = settings_for(tiny_model.base, [tiny_model.roots], bank_ranks=BANK_RANKS, max_adapters=4)
    async with served(settings) as service:
        monkeypatch.setattr(service.stack.residency, "request", unexpected)
        request = pb.GenerateRequest(prompt=prompt_to_proto(Prompt.of(case.text)), composition=case.composition)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await service.stub.Generate(request)
        error = from_rpc_error(caught.value)
        assert caught.value.code() is case.code
        assert field_of(error) == case.field
        assert case.metadata.items() <= error.metadata.items()
