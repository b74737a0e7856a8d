"""The Triton kernels, interpreted, against the formula in float64 and against PyTorch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_service.lora.kernels import triton_ops
from generation_service.lora.kernels.capturable_ops import TorchCapturableOps
from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from tests.parity.lora_ops_case import TOLERANCE, Case, Sizes, assert_close

pytest.importorskip("triton", reason="Triton supports Linux on x86-64 only")

from tests.support.harness.compiled_triton import compile_for_gpu
from tests.support.harness.interpreted_triton import interpreted_kernels

PLAIN = Sizes(rows=5, ranks=40, used=23, members=3)


@pytest.fixture(scope="module")
def kernels() -> TritonCapturableOps:
    return TritonCapturableOps(interpreted_kernels())


@st.composite
def cases(draw: st.DrawFn) -> Case:
    ranks = draw(st.integers(1, 70))
    sizes = Sizes(
        rows=draw(st.integers(1, 33)),
        ranks=ranks,
        used=draw(st.one_of(st.integers(0, ranks), st.just(ranks))),
        members=draw(st.integers(1, 3)),
        inputs=draw(st.integers(1, 140)),
        outputs=draw(st.integers(1, 80)),
    )
    return Case(sizes, draw(st.sampled_from(list(TOLERANCE))), draw(st.integers(0, 2**31)))


@settings(deadline=None, max_examples=20)
@given(cases(), st.sampled_from([64, 4096]))
def test_any_ranks_of_any_rows_match_weighted_sum(case: Case, longest_split: int) -> None:
    with patch.object(triton_ops, "LONGEST_SPLIT", longest_split):
        case.check(TritonCapturableOps(interpreted_kernels()))


@pytest.mark.parametrize("rank", range(1, 65, 9))
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_single_adapter_of_every_rank(kernels: TritonCapturableOps, rank: int, dtype: torch.dtype) -> None:
    Case(Sizes(rows=1, ranks=64, used=rank), dtype, rank).check(kernels)


def test_more_rows_than_one_program_handles(kernels: TritonCapturableOps) -> None:
    Case(Sizes(rows=70, ranks=20, used=20), torch.float32, 1).check(kernels)


@pytest.mark.parametrize("longest_split", [64, 4096])
def test_empty_rank_set_changes_nothing(kernels: TritonCapturableOps, longest_split: int) -> None:
    case = Case(replace(PLAIN, used=0, inputs=100), torch.float16, 2)
    with patch.object(triton_ops, "LONGEST_SPLIT", longest_split):
        shrunk = case.shrink(kernels)
    assert not shrunk.any()
    assert torch.equal(case.expand(kernels, shrunk.fill_(torch.nan)), case.out)


def test_row_without_ranks_is_bitwise_unchanged(kernels: TritonCapturableOps) -> None:
    case = Case(PLAIN, torch.bfloat16, 3)
    case.weights[2] = 0
    out = case.expand(kernels, case.shrink(kernels))
    assert torch.equal(out[2], case.out[2])
    assert not torch.equal(out[1], case.out[1])


def test_overflow_affects_only_rows_that_use_it(kernels: TritonCapturableOps) -> None:
    case = Case(PLAIN, torch.float16, 4)
    case.weights[1, 7], case.weights[3, 7] = 0, 1
    case.a[case.columns[7], :, :2] = torch.inf
    out = case.expand(kernels, case.shrink(kernels))
    assert out[1].isfinite().all()
    assert not out[3].isfinite().any()


def test_rank_may_be_listed_twice(kernels: TritonCapturableOps) -> None:
    case = Case(PLAIN, torch.float32, 5)
    case.columns[9] = case.columns[3]
    case.check(kernels)


def test_row_is_the_same_alone_and_in_any_batch(kernels: TritonCapturableOps) -> None:
    case = Case(replace(PLAIN, rows=33, inputs=130), torch.float32, 6)
    with patch.object(triton_ops, "LONGEST_SPLIT", 64):
        together = case.expand(kernels, case.shrink(kernels))
        case.x, case.out, case.weights = case.x[32:], case.out[32:], case.weights[32:]
        alone = case.expand(kernels, case.shrink(kernels))
    torch.testing.assert_close(alone[0], together[32], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_pytorch_ops_match_reference(kernels: TritonCapturableOps, dtype: torch.dtype) -> None:
    case = Case(PLAIN, dtype, 7, beyond=0)
    case.a.nan_to_num_(0)
    case.b.nan_to_num_(0)
    case.check(TorchCapturableOps())
    shrunk = case.shrink(kernels)
    assert_close(shrunk, case.shrink(TorchCapturableOps()).double(), dtype)
    assert_close(case.expand(kernels, shrunk), case.expand(TorchCapturableOps(), shrunk).double(), dtype)


LONG = Sizes(rows=8, ranks=256, used=48, members=2, inputs=9472, outputs=512)


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [
        *((dtype, LONG) for dtype in TOLERANCE),
        (torch.float32, replace(LONG, rows=64)),
        (torch.bfloat16, replace(LONG, rows=1, members=1)),
        (torch.bfloat16, Sizes(rows=1, ranks=1, used=1, members=1, inputs=1, outputs=1)),
    ],
    ids=str,
)
def test_every_kernel_compiles_for_gpu(
    dtype: torch.dtype, sizes: Sizes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    compiled = compile_for_gpu(dtype, sizes)
    assert ("finish" in compiled) == (sizes.inputs > triton_ops.LONGEST_SPLIT)
    for name in ("shrink", "expand"):
        assert ("mma.sync" in compiled[name]) == (dtype != torch.float32), "float32 is not rounded to tensor cores"


def test_missing_triton_is_reported_on_first_use() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from generation_service.lora.kernels.triton_ops import TritonCapturableOps\n"
        "from infra.contract.errors import ConfigurationError\n"
        "try:\n    TritonCapturableOps()\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install it, or use TorchCapturableOps" in done.stdout
