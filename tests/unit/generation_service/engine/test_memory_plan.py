"""How memory is divided, and which settings are refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from generation_service.app import generation_stack
from generation_service.engine.memory_plan import available_bytes, bank_bytes, plan_memory
from generation_service.execution.kv_cache import CacheShape, SlotKVCache
from generation_service.settings import GenerationSettings
from infra.contract.errors import ConfigurationError
from infra.runtime.settings import load_settings
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.scripted_engine import DESCRIPTION

MODEL = dataclasses.replace(DESCRIPTION, layers=2, kv_heads=3, head_dim=5, max_positions=4096, targets={"a": (7, 9)})
PER_TOKEN = 2 * 2 * 3 * 5 * 4


def test_default_sequence_length_is_what_memory_allows() -> None:
    plan = plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=None, available=4 * PER_TOKEN * 1001)
    assert plan.cache == CacheShape(2, 4, 3, 1000, 5)
    assert plan.cache_bytes == 4 * PER_TOKEN * 1001
    assert plan.bank_bytes == bank_bytes(MODEL, 8) == 8 * (7 + 9) * 4


def test_default_sequence_length_is_at_most_model_limit() -> None:
    assert plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=None, available=2**40).cache.length == 4096


def test_too_little_memory_names_settings_to_change() -> None:
    with pytest.raises(ConfigurationError, match="max_running or bank_ranks"):
        plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=None, available=4 * PER_TOKEN * 100)


def test_sequence_length_beyond_model_limit_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="4096"):
        plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=5000, available=2**40)


def test_explicit_sequence_length_must_fit_gpu_memory() -> None:
    model = dataclasses.replace(MODEL, device=torch.device("cuda"))
    available = 4 * PER_TOKEN * 101
    plan = plan_memory(model, ranks=8, slots=4, sequence_tokens=100, available=available)
    assert plan.cache_bytes == available
    with pytest.raises(ConfigurationError) as caught:
        plan_memory(model, ranks=8, slots=4, sequence_tokens=101, available=available)
    for expected in (
        "max_sequence_tokens is 101",
        f"take {4 * PER_TOKEN * 102} bytes",
        f"{available} are available",
        "room for 100 tokens",
        "smaller max_sequence_tokens, max_running or bank_ranks",
    ):
        assert expected in caught.value.message


def test_explicit_sequence_length_on_cpu_is_bounded_by_physical_memory() -> None:
    assert plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=2000, available=0).cache.length == 2000
    endless = dataclasses.replace(MODEL, max_positions=2**50)
    with pytest.raises(ConfigurationError, match=f"max_sequence_tokens is {2**50}"):
        plan_memory(endless, ranks=8, slots=4, sequence_tokens=2**50, available=2**60)


def test_cache_takes_planned_bytes() -> None:
    plan = plan_memory(MODEL, ranks=8, slots=4, sequence_tokens=64, available=available_bytes(MODEL, 8))
    cache = SlotKVCache(plan.cache, torch.float32, torch.device("cpu"))
    assert sum(tensor.nbytes for tensor in (*cache.keys, *cache.values)) == plan.cache_bytes == cache.bytes


@pytest.mark.parametrize(("old", "name"), [("MAX_PIXELS", "max_pixels"), ("MAX_NUM", "max_tiles")])
def test_image_bounds_are_read_under_their_old_names(monkeypatch: pytest.MonkeyPatch, old: str, name: str) -> None:
    monkeypatch.setenv(old, "602112")
    assert getattr(load_settings(GenerationSettings, ["--model-path", "x"]), name) == 602112
    flag = f"--{name.replace('_', '-')}"
    assert getattr(load_settings(GenerationSettings, ["--model-path", "x", flag, "5000"]), name) == 5000


def test_unknown_device_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="'toaster'"),
        generation_stack(settings_for(tmp_path, device="toaster")),
    ):
        pass


def test_model_path_is_required() -> None:
    with pytest.raises(ConfigurationError, match="--model-path"):
        load_settings(GenerationSettings, [])
