"""Compile the Triton kernels for a GPU without having one, with the specialisations of a real launch."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from generation_service.lora.kernels import triton_kernels
from generation_service.lora.kernels.triton_ops import TritonCapturableOps
from tests.parity.lora_ops_case import Case, Sizes

HOPPER = GPUTarget("cuda", 90, 32)
SHARED_MEMORY_BYTES = 99 * 1024
_POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int32: "*i32"}


def compile_for_gpu(dtype: torch.dtype, sizes: Sizes) -> dict[str, str]:
    """Return the PTX of each kernel that TritonCapturableOps launches for a product of `sizes` in `dtype`.

    Fails if a kernel does not compile, or needs more shared memory than small GPUs have.
    """
    compiled: dict[str, str] = {}

    def recorder(name: str) -> Any:
        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
                return lambda *given, **constants: compiled.update({name: _compiled(name, given, constants)})

        return Kernel()

    kernels: Any = SimpleNamespace(**{name: recorder(name) for name in ("shrink", "finish", "expand")})
    case = Case(sizes, dtype, seed=0)
    case.expand(TritonCapturableOps(kernels), case.shrink(TritonCapturableOps(kernels)))
    return compiled


def _compiled(name: str, given: tuple[Any, ...], constants: dict[str, Any]) -> str:
    function = getattr(triton_kernels, name)
    names = function.arg_names
    options = {"num_stages": constants.pop("num_stages", 3)}
    arguments = dict(zip(names, given, strict=False))
    constants |= {key: 1 for key, value in arguments.items() if isinstance(value, int) and value == 1}
    signature = {key: "constexpr" if key in constants else _type(arguments[key]) for key in names}
    aligned = [key for key, value in arguments.items() if not isinstance(value, int) or value % 16 == 0]
    source = ASTSource(
        function,
        signature,
        {(names.index(key),): value for key, value in constants.items()},
        {(names.index(key),): [["tt.divisibility", 16]] for key in aligned},
    )
    compiled = triton.compile(source, target=HOPPER, options=options)
    assert compiled.metadata.shared <= SHARED_MEMORY_BYTES, (
        f"{name} needs {compiled.metadata.shared} bytes of shared memory"
    )
    ptx: str = compiled.asm["ptx"]
    return ptx


def _type(argument: Any) -> str:
    return "i32" if isinstance(argument, int) else _POINTERS[argument.dtype]
