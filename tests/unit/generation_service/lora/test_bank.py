"""The adapter bank: range ownership, routing of a step, and what writes and releases leave unchanged."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from generation_service.lora.active_ranks import ActiveRanks
from generation_service.lora.bank import AdapterBank
from generation_service.lora.linear import LoraLinear
from generation_service.lora.ranks import RankRange
from generation_service.lora.routed_lora import RoutedLora
from generation_service.lora.weights import AdapterWeights, LoraPair
from infra.contract.errors import CheckpointError

TARGETS = {"text": (8, 6), "vision.patch": (8, 6)}


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Linear(8, 6, bias=False)


class TwoLayers(nn.Module):
    """Two linear layers: one reads rows, the other patches."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Linear(8, 6)
        self.vision = Vision()


def adapter(rank: int, *paths: str, seed: int = 0) -> AdapterWeights:
    generator = torch.Generator().manual_seed(seed)
    return AdapterWeights.of(
        {
            path: LoraPair(torch.randn(rank, 8, generator=generator), torch.randn(6, rank, generator=generator))
            for path in paths or TARGETS
        }
    )


@pytest.fixture
def model() -> TwoLayers:
    return TwoLayers().requires_grad_(False)


@pytest.fixture
def bank(model: TwoLayers) -> AdapterBank:
    bank = AdapterBank(TARGETS, 16, torch.float32, "cpu", by_image=("vision",))
    bank.install(model)
    return bank


def written(bank: AdapterBank, weights: AdapterWeights) -> RankRange:
    owned = bank.acquire(weights.rank)
    bank.write(owned, weights)
    return owned


def test_installing_keeps_parameters_and_state_dict(model: TwoLayers) -> None:
    before = {key: tensor.data_ptr() for key, tensor in model.state_dict().items()}
    AdapterBank(TARGETS, 4, torch.float32, "cpu").install(model)
    assert isinstance(model.text, LoraLinear)
    assert {key: tensor.data_ptr() for key, tensor in model.state_dict().items()} == before
    assert not list(model.buffers())


def test_bank_is_installed_only_on_linear_layers_of_its_shapes(model: TwoLayers, bank: AdapterBank) -> None:
    with pytest.raises(ValueError, match="LoraLinear; a bank is installed once"):
        AdapterBank(TARGETS, 4, torch.float32, "cpu").install(model)
    with pytest.raises(ValueError, match="8 -> 6, not"):
        AdapterBank({"text": (8, 7)}, 4, torch.float32, "cpu").install(TwoLayers())
    with pytest.raises(ValueError, match="vision is a Vision"):
        AdapterBank({"vision": (8, 6)}, 4, torch.float32, "cpu").install(TwoLayers())


def test_idle_layer_matches_base_layer_bitwise(model: TwoLayers, bank: AdapterBank) -> None:
    x = torch.randn(2, 3, 8)
    expected = nn.functional.linear(x, model.text.weight, model.text.bias)
    owned = written(bank, adapter(4))
    assert torch.equal(model.text(x), expected)
    with bank.routing.step([{}, {}]):
        assert torch.equal(model.text(x), expected)
    with bank.routing.step([{owned: 0.0}, {}]):
        assert torch.equal(model.text(x), expected)
    with bank.routing.step([{owned: 1.0}, {}]):
        out = model.text(x)
    assert torch.equal(out[1], expected[1])
    assert not torch.allclose(out[0], expected[0])


def test_layer_without_active_adapter_is_base_layer(model: TwoLayers, bank: AdapterBank) -> None:
    owned = written(bank, adapter(4, "text"))
    x = torch.randn(2, 8)
    with bank.routing.step([{owned: 1.0}]):
        assert torch.equal(model.vision.patch(x), x @ model.vision.patch.weight.t())


def test_batch_without_vision_adapters_needs_no_image_index(model: TwoLayers, bank: AdapterBank) -> None:
    x = torch.randn(7, 8)
    with bank.routing.step([{written(bank, adapter(4, "text")): 1.0}, {}]):
        assert torch.equal(model.vision.patch(x), x @ model.vision.patch.weight.t())


def test_single_row_applies_to_all_of_any_input(model: TwoLayers, bank: AdapterBank) -> None:
    weights = adapter(4)
    owned = written(bank, weights)
    pair = weights.modules["vision.patch"]
    for shape in ((5, 8), (1, 5, 8), (3, 2, 8), (8,)):
        x = torch.randn(shape)
        with bank.routing.step([{owned: 0.5}]):
            out = model.vision.patch(x)
        torch.testing.assert_close(out, x @ (model.vision.patch.weight + 0.5 * pair.b @ pair.a).t())


def test_patches_are_routed_by_row_index(model: TwoLayers, bank: AdapterBank) -> None:
    first, second = adapter(2, seed=1), adapter(3, seed=2)
    rows = [{written(bank, first): 1.0}, {written(bank, second): 1.0}, {}]
    weight = model.vision.patch.weight
    patches, merged = [1, 1, 0, 2, 0], [2, 0]
    with bank.routing.step(rows, {"vision": [patches, merged]}):
        for index in (patches, merged):
            x = torch.randn(len(index), 8)
            out = model.vision.patch(x)
            for place, row in enumerate(index):
                pair = (first, second, None)[row]
                delta = pair.modules["vision.patch"].b @ pair.modules["vision.patch"].a if pair else 0
                torch.testing.assert_close(out[place], (weight + delta) @ x[place])
        tiles = torch.randn(2, 7, 8)
        torch.testing.assert_close(model.vision.patch(tiles)[0], tiles[0] @ weight.t())


def test_inputs_without_row_assignment_are_refused(model: TwoLayers, bank: AdapterBank) -> None:
    owned = written(bank, adapter(2))
    with bank.routing.step([{owned: 1.0}, {}]):
        with pytest.raises(ValueError, match=r"shape \[3, 1, 8\] in a step of 2 rows"):
            model.text(torch.randn(3, 1, 8))
        with pytest.raises(ValueError, match=r"shape \[2, 8\] in a step of 2 rows"):
            model.text(torch.randn(2, 8))
        with pytest.raises(ValueError, match=r"vision\.patch got 2 patches or tiles of several rows' images"):
            model.vision.patch(torch.randn(2, 8))
    with (
        bank.routing.step([{owned: 1.0}, {}], {"vision": [[0, 1, 1]]}),
        pytest.raises(ValueError, match=r"lengths \[3\]"),
    ):
        model.vision.patch(torch.randn(2, 8))


@pytest.mark.parametrize(
    ("image_rows", "message"),
    [
        ({"visual": [[0]]}, "routes by image below"),
        ({"vision": [[0, 2]]}, "row numbers in"),
        ({"vision": [[0, -1]]}, "row numbers in"),
        ({"vision": [[0, 1], [1, 0]]}, "two indices of one length"),
    ],
)
def test_invalid_image_index_resets_routing(
    bank: AdapterBank, image_rows: dict[str, list[list[int]]], message: str
) -> None:
    owned = written(bank, adapter(2))
    with pytest.raises(ValueError, match=message):
        bank.routing.begin([{owned: 1.0}, {}], image_rows)
    assert bank.routing.active is None


def test_empty_range_cannot_be_applied(bank: AdapterBank) -> None:
    empty = bank.acquire(2)
    with pytest.raises(ValueError, match="holds no adapter of this bank"):
        bank.routing.begin([{empty: 1.0}])
    released = written(bank, adapter(2))
    bank.release(released)
    successor = written(bank, adapter(2))
    assert successor.start == released.start
    with pytest.raises(ValueError, match="holds no adapter of this bank"):
        bank.routing.begin([{released: 1.0}])


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_non_finite_weight_is_refused(bank: AdapterBank, weight: float) -> None:
    owned = written(bank, adapter(2))
    with pytest.raises(ValueError, match="not a finite number"):
        bank.routing.begin([{owned: weight}])


def test_unchanged_step_reuses_weights_and_changed_step_does_not(bank: AdapterBank) -> None:
    first, second = written(bank, adapter(2)), written(bank, adapter(2, seed=1))
    bank.routing.begin([{first: 0.5}, {second: 1.0}])
    before = active_ranks_of(bank)
    bank.routing.begin([{first: 0.5}, {second: 1.0}])
    assert active_ranks_of(bank) is before
    for rows in ([{first: 0.4}, {second: 1.0}], [{second: 1.0}, {first: 0.5}], [{first: 0.5}], []):
        bank.routing.begin(rows)
        assert active_ranks_of(bank) is not before


def test_failed_step_resets_routing(bank: AdapterBank) -> None:
    owned = written(bank, adapter(2))
    with pytest.raises(RuntimeError, match="broken"), bank.routing.step([{owned: 1.0}]):
        raise RuntimeError("broken")
    assert bank.routing.active is None


def test_published_range_is_never_rewritten(bank: AdapterBank) -> None:
    owned = written(bank, adapter(2))
    with pytest.raises(ValueError, match="holds an adapter already"):
        bank.write(owned, adapter(2, seed=1))


def test_adapter_larger_than_its_range_is_refused(bank: AdapterBank) -> None:
    with pytest.raises(ValueError, match="rank 3 does not fit"):
        bank.write(bank.acquire(2), adapter(3))


def test_unknown_modules_and_shapes_are_refused_before_writing(bank: AdapterBank) -> None:
    owned = bank.acquire(2)
    good = adapter(2).modules
    with pytest.raises(CheckpointError, match="'other'"):
        bank.write(owned, AdapterWeights.of({**good, "other": good["text"]}))
    with pytest.raises(CheckpointError, match="do not fit a layer of 8 -> 6"):
        bank.write(owned, AdapterWeights.of({**good, "vision.patch": LoraPair(torch.ones(2, 8), torch.ones(7, 2))}))
    assert all(bool((tensor == 0).all()) for tensor in contents(bank))
    bank.write(owned, adapter(2))


def test_values_too_large_for_bank_dtype_are_refused() -> None:
    bank = AdapterBank(TARGETS, 4, torch.float16, "cpu")
    large = LoraPair(torch.full((1, 8), 1e6), torch.ones(6, 1))
    with pytest.raises(CheckpointError, match=r"text: values of the adapter are not finite in torch\.float16"):
        bank.write(bank.acquire(1), AdapterWeights.of({"text": large}))


def test_released_range_is_zeroed_in_place(bank: AdapterBank) -> None:
    addresses = [tensor.data_ptr() for tensor in contents(bank)]
    kept = written(bank, adapter(3, seed=1))
    gone = written(bank, adapter(5, seed=2))
    bank.release(gone)
    for tensor in contents(bank):
        assert bool((tensor[gone.start : gone.stop] == 0).all())
        assert bool((tensor[kept.start : kept.stop] != 0).any())
    assert [tensor.data_ptr() for tensor in contents(bank)] == addresses
    assert bank.free == 13


def test_empty_adapter_takes_no_columns(model: TwoLayers, bank: AdapterBank) -> None:
    owned = written(bank, AdapterWeights.of({}))
    x = torch.randn(1, 2, 8)
    with bank.routing.step([{owned: 1.0}]):
        assert torch.equal(model.text(x), nn.functional.linear(x, model.text.weight, model.text.bias))
    assert bank.free == 16
    bank.release(owned)


def test_overflowing_adapter_affects_no_other_row() -> None:
    model = TwoLayers().requires_grad_(False)
    bank = AdapterBank(TARGETS, 8, torch.float32, "cpu")
    bank.install(model)
    wild = AdapterWeights.of({"text": LoraPair(torch.full((1, 8), 3e38), torch.ones(6, 1))})
    rows = [{written(bank, wild): 1.0}, {written(bank, adapter(2)): 1.0}, {}]
    x = torch.full((3, 1, 8), 10.0)
    base = model.text(x)
    with bank.routing.step(rows):
        out = model.text(x)
    assert not out[0].isfinite().all()
    assert out[1:].isfinite().all()
    assert torch.equal(out[2], base[2])


def test_bytes_count_all_modules_regardless_of_use(bank: AdapterBank) -> None:
    before = bank.bytes
    written(bank, adapter(4))
    assert bank.bytes == before == 2 * 16 * (8 + 6) * 4
    assert bank.bytes_per_rank * bank.ranks == bank.bytes


def test_adapters_are_written_during_steps(model: TwoLayers, bank: AdapterBank) -> None:
    steady = written(bank, adapter(4, seed=1))
    x = torch.randn(2, 1, 8)
    with bank.routing.step([{steady: 1.0}, {}]):
        expected = model.text(x)
    stop = threading.Event()

    def load() -> None:
        seed = 2
        while not stop.is_set():
            bank.release(written(bank, adapter(4, seed=seed)))
            seed += 1

    loader = threading.Thread(target=load)
    loader.start()
    try:
        for _ in range(300):
            with bank.routing.step([{steady: 1.0}, {}]):
                assert torch.equal(model.text(x), expected)
    finally:
        stop.set()
        loader.join()


def active_ranks_of(bank: AdapterBank) -> ActiveRanks | None:
    active = bank.routing.active
    return active.ranks if isinstance(active, RoutedLora) else None


def contents(bank: AdapterBank) -> list[Tensor]:
    return [tensor for group in bank.groups for tensor in (group.a, group.b)]
