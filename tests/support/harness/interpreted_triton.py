"""The Triton kernels run by Triton's interpreter on a CPU."""

from __future__ import annotations

import importlib.util
import os
from functools import cache
from types import ModuleType
from typing import Any
from unittest.mock import patch

from triton import language as tl
from triton.runtime.interpreter import InterpreterBuilder

MODULE = "generation_service.lora.kernels.triton_kernels"


@cache
def interpreted_kernels() -> ModuleType:
    """Return a copy of the kernels' module whose functions are interpreted; the original is not changed."""
    spec = importlib.util.find_spec(MODULE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(os.environ, TRITON_INTERPRET="1"):
        spec.loader.exec_module(module)
    _multiply_bfloat16_as_numbers()
    return module


def _multiply_bfloat16_as_numbers() -> None:
    """Widen bfloat16 before a dot product, because the interpreter would multiply its raw bits."""
    dot = InterpreterBuilder.create_dot

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        wide = [self.cast_impl(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)]
        return dot(self, *wide, *others)

    InterpreterBuilder.create_dot = create_dot
