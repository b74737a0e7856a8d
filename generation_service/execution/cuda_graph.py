"""Decode steps captured once per bucket and replayed.

On a GPU, launching the kernels of an eager decode step costs more than their work.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generation_service.execution.inputs import DecodeRow
from generation_service.execution.static_decode import Bucket, StaticDecode

Forward = Callable[[], Tensor]
Capture = Callable[[Forward], Forward]
"""Runs a forward pass once and returns a function that repeats exactly its operations at the same addresses."""

#: Graphs kept per runner, the least recently used dropped first. It bounds the memory of graph objects; a dropped
#: bucket costs one capture when it comes back. No measurement is recorded: a server of 16 slots and 4,096 tokens has 5
#: row and 5 span buckets, and each change of the adapted modules starts a new set.
_MAX_GRAPHS = 128

#: Forward passes before a capture. The first may initialise libraries and compile kernels, neither of which a capture
#: permits; the second shows that nothing is left to initialise.
_WARM_UP_PASSES = 2


class CaptureError(RuntimeError):
    """A forward pass cannot be captured.

    `lasting`: it never can, because it reads values on the host; otherwise memory was short at the moment.
    """

    def __init__(self, message: str, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


class CapturedDecode:
    """An LRU cache of captured decode steps, one per bucket. Called on: the engine thread."""

    def __init__(self, static: StaticDecode, capture: Capture) -> None:
        self._static = static
        self._capture = capture
        self._graphs: OrderedDict[Bucket, Forward] = OrderedDict()

    @property
    def captured(self) -> int:
        """Graphs in the cache."""
        return len(self._graphs)

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Run the newest token of every row; return the logits [N, vocab] after each. Raises CaptureError."""
        bucket = self._static.fill(rows)
        replay = self._graphs.get(bucket)
        if replay is None:
            replay = self._graphs[bucket] = self._capture(lambda: self._static.forward(bucket))
            while len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        return replay()[[row.slot for row in rows]]


class CudaGraphCapture:
    """Captures CUDA graphs into one shared memory pool, so only the result of the latest replay is valid."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """Warm `forward` up on a side stream, then capture it. Raises CaptureError."""
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            self._warm_up(forward, current)
            # thread_local: loader threads may allocate device memory during a capture.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = forward()
        except Exception as error:
            torch.cuda.set_stream(current)  # A failed capture may leave its own stream current.
            out_of_memory = isinstance(error, torch.cuda.OutOfMemoryError)
            raise CaptureError(f"{type(error).__name__}: {error}", lasting=not out_of_memory) from error

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _warm_up(self, forward: Forward, current: torch.cuda.Stream) -> None:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP_PASSES):
                forward()
        current.wait_stream(stream)
