"""Decode steps captured with one composition and replayed with others, against eager steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from generation_service.execution.cuda_graph import CapturedDecode, CaptureError, Forward
from generation_service.execution.inputs import DecodeRow, Prefill
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.execution.runner import Runner
from generation_service.execution.static_decode import StaticDecode
from generation_service.lora.bank import AdapterBank
from generation_service.lora.kernels.capturable_ops import TorchCapturableOps
from generation_service.lora.ranks import RankRange
from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model
from infra.contract.prompt import Prompt
from tests.parity.decode_fixture import language_adapter
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.recorded_graph import record

SLOTS = 6


class CaptureFixture:
    """A runner on a tiny model with prompts in its slots, and captured steps over the same bank and cache."""

    def __init__(self, folder: Path) -> None:
        self.model = load_base_model(folder, LoadOptions(torch.device("cpu"), torch.float32))
        about = self.model.description
        self.bank = AdapterBank(about.targets, 96, torch.float32, "cpu", by_image=about.by_image)
        shape = CacheShape(about.layers, SLOTS, about.kv_heads, 700, about.head_dim)
        self.cache = SlotKVCache(shape, torch.float32, torch.device("cpu"))
        self.runner = Runner(self.model, self.bank, self.cache)
        self.captures = 0
        static = StaticDecode(self.model, self.bank, self.cache, TorchCapturableOps())
        self.graphs = CapturedDecode(static, self._capture)
        self.lengths: dict[int, int] = {}

    def _capture(self, forward: Forward) -> Forward:
        self.captures += 1
        with torch.inference_mode():
            return record(forward)

    def write(self, rank: int, seed: int, only: str = "") -> RankRange:
        owned = self.bank.acquire(rank)
        self.bank.write(owned, language_adapter(self.model.description.targets, rank, seed, only))
        return owned

    def prefill(self, slot: int, text: str, ranges: dict[RankRange, float]) -> None:
        prompt = self.model.encode(Prompt.of(text), [])
        self.runner.prefill(Prefill(slot, prompt, ranges), prompt.length)
        self.lengths[slot] = prompt.length

    def row(self, slot: int, token: int, ranges: dict[RankRange, float]) -> DecodeRow:
        return DecodeRow(slot, token, self.lengths[slot], 0, ranges)

    def both(self, rows: list[DecodeRow]) -> tuple[Tensor, Tensor]:
        """Return the logits of the captured step, then of the eager step on the same cache."""
        captured = self.graphs.decode(rows).clone()
        eager = self.runner.decode(rows)
        for row in rows:
            self.lengths[row.slot] += 1
        return captured, eager


@pytest.fixture
def fixture(tmp_path: Path) -> CaptureFixture:
    write_qwen2_vl(tmp_path, TinyShape())
    return CaptureFixture(tmp_path)


def test_step_captured_with_one_adapter_serves_all_others(fixture: CaptureFixture) -> None:
    first, second, third = fixture.write(4, 1), fixture.write(7, 2), fixture.write(16, 3)
    for slot, text in enumerate(["one", "a second prompt", "three", "and the fourth of them"]):
        fixture.prefill(slot, text, {})
    steps: list[list[dict[RankRange, float]]] = [
        [{first: 1.0}] * 4,
        [{first: 1.0}, {second: 0.5, third: 0.5}, {}, {third: 1.0}],
        [{}, {}, {second: 0.3, first: 0.7}, {third: 0.2}],
        [{third: 1.0}, {second: 0.0, third: 0.25}, {first: 1.0}, {second: 2.0}],
    ]
    for number, compositions in enumerate(steps):
        rows = [fixture.row(slot, 20 + 7 * slot + number, ranges) for slot, ranges in enumerate(compositions)]
        captured, eager = fixture.both(rows)
        torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
    assert fixture.captures == 1


def test_captured_step_leaves_idle_and_prefilling_slots_unchanged(fixture: CaptureFixture) -> None:
    owned = fixture.write(4, 1)
    for slot, text in enumerate(["one", "a second prompt", "three", "four", "five of six"]):
        fixture.prefill(slot, text, {owned: 1.0})
    held = [store[1].clone() for store in (*fixture.cache.keys, *fixture.cache.values)]
    for step in range(3):
        rows = [fixture.row(slot, 30 + step, {owned: 1.0} if slot else {}) for slot in (4, 0, 3)]
        captured, eager = fixture.both(rows)
        torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
    current = [store[1] for store in (*fixture.cache.keys, *fixture.cache.values)]
    assert all(torch.equal(now[:, :-1], before[:, :-1]) for now, before in zip(current, held, strict=True))


def test_each_rank_bucket_has_its_own_graph(fixture: CaptureFixture) -> None:
    small, large = fixture.write(4, 1), fixture.write(80, 2)
    fixture.prefill(0, "one", {})
    for ranges, captures in (({}, 1), ({small: 1.0}, 2), ({large: 1.0}, 3), ({}, 3), ({small: 0.5}, 3)):
        captured, eager = fixture.both([fixture.row(0, 40, ranges)])
        torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
        assert fixture.captures == captures


def test_newly_adapted_module_triggers_new_capture(fixture: CaptureFixture) -> None:
    attention = fixture.write(4, 1, only="q_proj")
    fixture.prefill(0, "one", {})
    fixture.both([fixture.row(0, 40, {attention: 1.0})])
    everything = fixture.write(4, 2)
    captured, eager = fixture.both([fixture.row(0, 41, {everything: 1.0})])
    torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
    assert fixture.captures == 2


def test_captured_step_reads_new_owner_of_reused_range(fixture: CaptureFixture) -> None:
    owned = fixture.write(8, 1)
    fixture.prefill(0, "one", {})
    fixture.both([fixture.row(0, 40, {owned: 1.0})])
    fixture.bank.release(owned)
    successor = fixture.write(8, 2)
    assert successor.start == owned.start
    captured, eager = fixture.both([fixture.row(0, 41, {successor: 1.0})])
    torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="holds no adapter"):
        fixture.graphs.decode([fixture.row(0, 42, {owned: 1.0})])
    assert fixture.captures == 1


def test_longer_sequence_moves_to_next_span_bucket(fixture: CaptureFixture) -> None:
    owned = fixture.write(4, 1)
    fixture.prefill(0, "word " * 50, {owned: 1.0})
    fixture.prefill(1, "short", {})
    assert fixture.lengths[0] < 256
    fixture.lengths[0] = 254
    spans = []
    for step in range(4):
        captured, eager = fixture.both(
            [fixture.row(0, 40 + step, {owned: 1.0}), fixture.row(1, 50 + step, {owned: 0.5})]
        )
        torch.testing.assert_close(captured, eager, rtol=1e-5, atol=1e-5)
        spans.append(fixture.captures)
    assert spans == [1, 1, 2, 2]


def test_uncapturable_model_decodes_eagerly(fixture: CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = fixture.write(4, 1)
    fixture.prefill(0, "one", {owned: 1.0})
    expected = fixture.runner.decode([fixture.row(0, 40, {owned: 1.0})])

    def refuse(forward: Forward) -> Forward:
        raise CaptureError("a value was read on the host")

    graphs = CapturedDecode(StaticDecode(fixture.model, fixture.bank, fixture.cache, TorchCapturableOps()), refuse)
    monkeypatch.setattr(fixture.runner, "captured", graphs)
    torch.testing.assert_close(fixture.runner.decode([fixture.row(0, 40, {owned: 1.0})]), expected)
    torch.testing.assert_close(fixture.runner.decode([fixture.row(0, 40, {owned: 1.0})]), expected)
