"""Packed weights against the plain product, their slow truth."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from generation_service.lora import packed
from generation_service.lora.bank import AdapterBank
from generation_service.lora.linear import LoraLinear
from generation_service.lora.packed import MIN_VALUES, PackedLinear, PackedWeight, can_pack, is_packable
from generation_service.lora.weights import AdapterWeights, LoraPair

pytestmark = pytest.mark.skipif(not is_packable(torch.zeros(1, 1)), reason="this build of torch packs no weights")
SHAPES = ((5, 3), (64, 48), (192, 576), (33, 257))
ROWS = ((1,), (2,), (8, 1), (4, 1), (1, 32), (3, 11), (2, 64))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_product_equals_plain_product(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(shape[1], shape[0], bias=bias).requires_grad_(False)
    weight = PackedWeight(layer.weight)
    for rows in ROWS:
        x = torch.randn(*rows, shape[1])
        sliced = torch.randn(*rows, 2 * shape[1])[..., ::2]
        for given in (x, sliced):
            torch.testing.assert_close(
                weight.linear(given, layer.bias), F.linear(given, layer.weight, layer.bias), rtol=1e-5, atol=1e-5
            )


def test_packed_layer_shares_parameters_of_its_base() -> None:
    base = nn.Linear(16, 8).requires_grad_(False)
    layer = PackedLinear(base)
    assert layer.weight is base.weight
    assert list(layer.state_dict()) == ["weight", "bias"]
    with torch.inference_mode():
        x = torch.randn(8, 16)
        torch.testing.assert_close(layer(x), base(x))


def test_only_large_float32_weights_on_a_cpu_are_packed() -> None:
    large = (MIN_VALUES // 64, 64)
    assert can_pack(torch.zeros(large))
    assert not can_pack(torch.zeros(large[0] - 1, 64))
    assert not can_pack(torch.zeros(large, dtype=torch.bfloat16))
    assert not can_pack(torch.zeros(large, device="meta"))


@pytest.mark.parametrize("threads", [1, 2])
def test_one_row_of_large_weight_equals_plain_product(threads: int) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(512, 2**21 // 512, bias=False).requires_grad_(False)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        weight = PackedWeight(layer.weight)
        for rows in (1, 2, 70):
            x = torch.randn(rows, 512)
            torch.testing.assert_close(weight.linear(x, None), layer(x), rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_adapters_add_to_packed_layers_as_to_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "MIN_VALUES", 0)
    torch.manual_seed(2)
    outputs = []
    x = torch.randn(6, 1, 12)
    for pack in (False, True):
        model = nn.ModuleDict({"layer": nn.Linear(12, 20).requires_grad_(False)})
        nn.init.constant_(model["layer"].weight, 0.25)
        nn.init.constant_(model["layer"].bias, 0.5)
        bank = AdapterBank({"layer": (12, 20)}, 8, torch.float32, "cpu")
        bank.install(model, pack)
        assert isinstance(model["layer"], LoraLinear)
        owned = bank.acquire(4)
        values = torch.Generator().manual_seed(3)
        pair = LoraPair(torch.randn(4, 12, generator=values), torch.randn(20, 4, generator=values))
        bank.write(owned, AdapterWeights.of({"layer": pair}))
        with bank.routing.step([{owned: 0.1 * number} for number in range(6)]):
            outputs.append(model["layer"](x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-5, atol=1e-5)
