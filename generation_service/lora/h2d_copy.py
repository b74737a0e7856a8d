"""Host memory -> device, beside the running steps."""

from __future__ import annotations

import torch
from torch import Tensor


class Upload:
    """Copies tensors to `device` on a CUDA stream of its own; on a CPU, plainly. For one thread at a time.

        upload.copy(source, destination)   # for every tensor
        upload.finish()                    # now any stream may read the destinations

    A copy from page-locked memory in the destination's dtype and layout is one transfer that no thread waits for but
    `finish`, and that without holding the interpreter. Copies start after the work that this thread's current stream
    was given before, such as clearing the destination.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._under_way: list[Tensor] = []

    def copy(self, source: Tensor, destination: Tensor) -> None:
        """Copy `source` into `destination`, of one shape; both are kept until `finish`.

        Raises ValueError for unlike shapes: nothing is broadcast.
        """
        if source.shape != destination.shape:
            raise ValueError(f"a {list(source.shape)} does not fill a {list(destination.shape)}")
        if self._stream is None:
            destination.copy_(source)
            return
        if not self._under_way:
            self._stream.wait_stream(torch.cuda.current_stream(destination.device))
        self._under_way += (source, destination)
        with torch.cuda.stream(self._stream):
            destination.copy_(source, non_blocking=True)

    def finish(self) -> None:
        """Wait until everything copied so far is on the device."""
        if self._stream is not None:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(self._stream)
            event.synchronize()
        self._under_way.clear()
