"""Modules that read the same input: how they are grouped, and that they share one product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from generation_service.lora.bank import AdapterBank
from generation_service.lora.ranks import RankRange
from generation_service.lora.routed_lora import RoutedLora
from generation_service.lora.weight_group import ModuleSlot, group_targets
from generation_service.lora.weights import AdapterWeights, LoraPair


def test_modules_with_same_input_form_one_group() -> None:
    names = ["l.0.q_proj", "l.0.o_proj", "l.0.v_proj", "l.1.q_proj", "l.0.gate_proj", "l.0.up_proj", "l.0.k_proj"]
    targets = dict.fromkeys(names, (8, 6)) | {"l.1.k_proj": (4, 6)}
    assert group_targets(targets) == [
        ("l.0.q_proj", "l.0.k_proj", "l.0.v_proj"),
        ("l.0.o_proj",),
        ("l.1.q_proj",),
        ("l.0.gate_proj", "l.0.up_proj"),
        ("l.1.k_proj",),
    ]


SIBLINGS = {"q_proj": (8, 6), "k_proj": (8, 4), "v_proj": (8, 4)}


def write_adapter(bank: AdapterBank, weights: AdapterWeights) -> RankRange:
    owned = bank.acquire(weights.rank)
    bank.write(owned, weights)
    return owned


@pytest.fixture
def siblings() -> tuple[nn.ModuleDict, AdapterBank, RankRange, dict[str, LoraPair]]:
    model = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in SIBLINGS.items()}).requires_grad_(False)
    bank = AdapterBank(SIBLINGS, 8, torch.float32, "cpu")
    bank.install(model)
    pairs = {name: LoraPair(torch.randn(2, 8), torch.randn(out, 2)) for name, (_, out) in SIBLINGS.items()}
    return model, bank, write_adapter(bank, AdapterWeights.of(pairs)), pairs


def base_output(linear: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(linear, nn.Linear)
    return nn.functional.linear(x, linear.weight, linear.bias)


def delta(pair: LoraPair, x: Tensor) -> Tensor:
    return x @ (pair.b @ pair.a).t()


def test_siblings_share_one_product_per_input(
    siblings: tuple[nn.ModuleDict, AdapterBank, RankRange, dict[str, LoraPair]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bank, owned, pairs = siblings
    shrink = RoutedLora.shrink
    calls: list[Tensor] = []

    def counted(rows: RoutedLora, x: Tensor, slot: ModuleSlot) -> list[Tensor]:
        calls.append(x)
        return shrink(rows, x, slot)

    monkeypatch.setattr(RoutedLora, "shrink", counted)
    for given in ("xxx", "xyx", "xxy", "xyz", "xx"):
        calls.clear()
        inputs = {letter: torch.randn(1, 3, 8) for letter in "xyz"}
        with bank.routing.step([{owned: 1.0}]):
            for (name, linear), letter in zip(model.items(), given, strict=False):
                x = inputs[letter]
                base = base_output(linear, x)
                torch.testing.assert_close(linear(x), base + delta(pairs[name], x))
        assert len(calls) == len([1 for index, letter in enumerate(given) if given[:index][-1:] != letter])


def test_shared_product_ends_with_step(
    siblings: tuple[nn.ModuleDict, AdapterBank, RankRange, dict[str, LoraPair]],
) -> None:
    model, bank, owned, pairs = siblings
    x = torch.randn(2, 1, 8)
    q_proj = model["q_proj"]
    for rows in ([{owned: 1.0}, {}], [{owned: 0.5}, {}], [{}, {owned: 1.0}]):
        with bank.routing.step(rows):
            out = q_proj(x)
        expected = base_output(q_proj, x)
        for n, row in enumerate(rows):
            expected[n] += row.get(owned, 0.0) * delta(pairs["q_proj"], x[n])
        torch.testing.assert_close(out, expected)
