"""Decode steps captured with one composition and replayed with others, against steps run as written."""

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
from tests.parity.decode_world import language_adapter
from tests.support.checkpoints.qwen2_vl import TinyShape, write_qwen2_vl
from tests.support.harness.recorded_graph import record

SLOTS = 6


class Bench:
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

    def hold(self, rank: int, seed: int, only: str = "") -> RankRange:
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
        """Return the logits of the captured step, then of the step run as written, on the same cache."""
        captured = self.graphs.decode(rows).clone()
        written = self.runner.decode(rows)
        for row in rows:
            self.lengths[row.slot] += 1
        return captured, written


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    write_qwen2_vl(tmp_path, TinyShape())
    return Bench(tmp_path)


def test_step_captured_with_one_adapter_serves_all_others(bench: Bench) -> None:
    first, second, third = bench.hold(4, 1), bench.hold(7, 2), bench.hold(16, 3)
    for slot, text in enumerate(["one", "a second prompt", "three", "and the fourth of them"]):
        bench.prefill(slot, text, {})
    steps: list[list[dict[RankRange, float]]] = [
        [{first: 1.0}] * 4,
        [{first: 1.0}, {second: 0.5, third: 0.5}, {}, {third: 1.0}],
        [{}, {}, {second: 0.3, first: 0.7}, {third: 0.2}],
        [{third: 1.0}, {second: 0.0, third: 0.25}, {first: 1.0}, {second: 2.0}],
    ]
    for number, compositions in enumerate(steps):
        rows = [bench.row(slot, 20 + 7 * slot + number, ranges) for slot, ranges in enumerate(compositions)]
        captured, written = bench.both(rows)
        torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
    assert bench.captures == 1


def test_captured_step_leaves_idle_and_prefilling_slots_unchanged(bench: Bench) -> None:
    owned = bench.hold(4, 1)
    for slot, text in enumerate(["one", "a second prompt", "three", "four", "five of six"]):
        bench.prefill(slot, text, {owned: 1.0})
    held = [store[1].clone() for store in (*bench.cache.keys, *bench.cache.values)]
    for step in range(3):
        rows = [bench.row(slot, 30 + step, {owned: 1.0} if slot else {}) for slot in (4, 0, 3)]
        captured, written = bench.both(rows)
        torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
    kept = [store[1] for store in (*bench.cache.keys, *bench.cache.values)]
    assert all(torch.equal(now[:, :-1], before[:, :-1]) for now, before in zip(kept, held, strict=True))


def test_each_rank_bucket_has_its_own_graph(bench: Bench) -> None:
    small, large = bench.hold(4, 1), bench.hold(80, 2)
    bench.prefill(0, "one", {})
    for ranges, captures in (({}, 1), ({small: 1.0}, 2), ({large: 1.0}, 3), ({}, 3), ({small: 0.5}, 3)):
        captured, written = bench.both([bench.row(0, 40, ranges)])
        torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
        assert bench.captures == captures


def test_newly_adapted_module_triggers_new_capture(bench: Bench) -> None:
    attention = bench.hold(4, 1, only="q_proj")
    bench.prefill(0, "one", {})
    bench.both([bench.row(0, 40, {attention: 1.0})])
    everything = bench.hold(4, 2)
    captured, written = bench.both([bench.row(0, 41, {everything: 1.0})])
    torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
    assert bench.captures == 2


def test_captured_step_reads_new_owner_of_reused_range(bench: Bench) -> None:
    owned = bench.hold(8, 1)
    bench.prefill(0, "one", {})
    bench.both([bench.row(0, 40, {owned: 1.0})])
    bench.bank.release(owned)
    successor = bench.hold(8, 2)
    assert successor.start == owned.start
    captured, written = bench.both([bench.row(0, 41, {successor: 1.0})])
    torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="holds no adapter"):
        bench.graphs.decode([bench.row(0, 42, {owned: 1.0})])
    assert bench.captures == 1


def test_longer_sequence_moves_to_next_span_bucket(bench: Bench) -> None:
    owned = bench.hold(4, 1)
    bench.prefill(0, "word " * 50, {owned: 1.0})
    bench.prefill(1, "short", {})
    assert bench.lengths[0] < 256
    bench.lengths[0] = 254
    spans = []
    for step in range(4):
        captured, written = bench.both([bench.row(0, 40 + step, {owned: 1.0}), bench.row(1, 50 + step, {owned: 0.5})])
        torch.testing.assert_close(captured, written, rtol=1e-5, atol=1e-5)
        spans.append(bench.captures)
    assert spans == [1, 1, 2, 2]


def test_uncapturable_model_decodes_eagerly(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    owned = bench.hold(4, 1)
    bench.prefill(0, "one", {owned: 1.0})
    expected = bench.runner.decode([bench.row(0, 40, {owned: 1.0})])

    def refuse(forward: Forward) -> Forward:
        raise CaptureError("a value was read on the host")

    graphs = CapturedDecode(StaticDecode(bench.model, bench.bank, bench.cache, TorchCapturableOps()), refuse)
    monkeypatch.setattr(bench.runner, "captured", graphs)
    torch.testing.assert_close(bench.runner.decode([bench.row(0, 40, {owned: 1.0})]), expected)
    torch.testing.assert_close(bench.runner.decode([bench.row(0, 40, {owned: 1.0})]), expected)
