"""Decode steps captured once a bucket and replayed: on a GPU the launches of a step cost more than its work."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from generation_service.execution.decode_row import DecodeRow
from generation_service.execution.static_inputs import Bucket, FixedDecode

Forward = Callable[[], Tensor]
Capture = Callable[[Forward], Forward]
"""Runs a forward pass once; returns what repeats the very same operations at the same addresses."""


class CaptureError(RuntimeError):
    """A forward pass cannot be captured: it reads values on the host, or (not `lasting`) memory ran short just now."""

    def __init__(self, message: str, lasting: bool = True) -> None:
        super().__init__(message)
        self.lasting = lasting


MAX_GRAPHS = 128
WARM_UP = 2


class DecodeGraphs:
    """At most MAX_GRAPHS captured steps, the least recently used one dropped first."""

    def __init__(self, fixed: FixedDecode, capture: Capture) -> None:
        self._fixed = fixed
        self._capture = capture
        self._graphs: OrderedDict[Bucket, Forward] = OrderedDict()

    @property
    def captured(self) -> int:
        """Graphs that are kept."""
        return len(self._graphs)

    def decode(self, rows: Sequence[DecodeRow]) -> Tensor:
        """Read the newest token of every row; return the logits [N, vocab] after each. Raises CaptureError."""
        bucket = self._fixed.fill(rows)
        replay = self._graphs.get(bucket)
        if replay is None:
            replay = self._graphs[bucket] = self._capture(lambda: self._fixed.forward(bucket))
            while len(self._graphs) > MAX_GRAPHS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(bucket)
        return replay()[[row.slot for row in rows]]


class CudaCapture:
    """Captures into one pool of memory: only the newest replay's result is valid.

    The mode is thread-local, since loader threads may allocate while a step is captured.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, forward: Forward) -> Forward:
        """Warm `forward` up on a stream of its own, then capture it. Raises CaptureError."""
        current = torch.cuda.current_stream(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            self._warm_up(forward, current)
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                logits = forward()
        except Exception as error:
            torch.cuda.set_stream(current)  # A capture that failed may leave its own stream current.
            short = isinstance(error, torch.cuda.OutOfMemoryError)
            raise CaptureError(f"{type(error).__name__}: {error}", lasting=not short) from error

        def replay() -> Tensor:
            graph.replay()
            return logits

        return replay

    def _warm_up(self, forward: Forward, current: torch.cuda.Stream) -> None:
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                forward()
        current.wait_stream(stream)
