"""A CUDA graph emulated on a CPU: the operations of one run, repeated on the same tensors.

Sizes, addresses, values read on the host and branches taken are those of the capture, as on a GPU; reading a value on
the host during the capture is an error, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("a value was read on the host while capturing")
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


def record(forward: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Run `forward` once; return a function that repeats its operations."""
    recorder = _Recorder()
    with recorder:
        result = forward()

    def replay() -> Tensor:
        with torch.inference_mode():
            for func, args, kwargs, out in recorder.calls:
                again = func(*args, **kwargs)
                if not func._schema.is_mutable:
                    for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():  # Else a view.
                            old.copy_(new)
        return result

    return replay
