"""Whole static decode steps with the interpreted Triton kernels, against eager steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from tests.parity.decode_fixture import STEPS, DecodeFixture

pytest.importorskip("triton", reason="Triton supports Linux on x86-64 only")

from tests.support.harness.interpreted_triton import interpreted_kernels


def test_triton_steps_match_eager_steps(tmp_path: Path) -> None:
    world = DecodeFixture(tmp_path, "cpu", torch.float32)
    static = world.static(TritonCapturableOps(interpreted_kernels()))
    buckets = set()
    for step, compositions in enumerate(STEPS[1::2]):
        rows = world.rows(step, compositions)
        bucket = static.fill(rows)
        buckets.add(bucket)
        torch.testing.assert_close(static.forward(bucket), world.decode_eagerly(rows), rtol=1e-5, atol=1e-5)
    assert len(buckets) == 1
    assert bucket.ranks == world.bank.ranks, "one captured step serves any number of ranks"
