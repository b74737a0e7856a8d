"""The Triton kernels compiled for a GPU that need not be there: they are called with launches that only record."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from generation_service.kernels import triton_kernels
from generation_service.kernels.triton_ops import LONGEST_PART, TritonFixedKernels

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_MEMORY_BYTES = 99 * 1024
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


def compile_for_gpu(dtype: torch.dtype, rows: int) -> dict[str, str]:
    """Return the PTX of each kernel as TritonFixedKernels would launch it for `rows` rows of `dtype`.

    Fails when a kernel does not compile, or takes more shared memory than small GPUs have.
    """
    compiled: dict[str, str] = {}

    def recorder(name: str) -> Any:
        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                return lambda *given, **constants: compiled.update({name: _compiled(name, given, constants)})

        return Kernel()

    kernels: Any = SimpleNamespace(**{name: recorder(name) for name in ("shrink", "finish", "expand")})
    inputs = 2 * LONGEST_PART
    ops = TritonFixedKernels(kernels)
    x, a = torch.zeros(rows, inputs, dtype=dtype), torch.zeros(32, 2, inputs, dtype=dtype)
    columns, count = torch.zeros(32, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    shrunk = ops.shrink(x, a, columns, count, torch.zeros(rows, 32))
    ops.shrink(x[:, :64], a[..., :64], columns, count, torch.zeros(rows, 32))
    ops.expand_(torch.zeros(rows, 96, dtype=dtype), shrunk[0], torch.zeros(32, 96, dtype=dtype), columns, count)
    return compiled


def _compiled(name: str, given: tuple[Any, ...], constants: dict[str, Any]) -> str:
    function = getattr(triton_kernels, name)
    names = function.arg_names
    options = {"num_stages": constants.pop("num_stages", 3)}
    types = {
        key: _POINTERS[value.dtype] if hasattr(value, "dtype") else "i32"
        for key, value in zip(names, given, strict=False)
    }
    signature = {key: types.get(key, "constexpr") for key in names}
    aligned = {
        (n,): [["tt.divisibility", 16]] for n, value in enumerate(given) if hasattr(value, "dtype") or not value % 16
    }
    source = ASTSource(function, signature, {(names.index(key),): value for key, value in constants.items()}, aligned)
    made = triton.compile(source, target=HOPPER, options=options)
    assert made.metadata.shared <= SHARED_MEMORY_BYTES, f"{name} takes {made.metadata.shared} bytes of shared memory"
    text: str = made.asm["ptx"]
    return text
