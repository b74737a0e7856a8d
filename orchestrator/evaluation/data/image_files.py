"""The images of samples, read when they are needed: long after their rows were, so that anything may lie there now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.contract.errors import InvalidArgumentError, NotFoundError

MAX_IMAGE_BYTES = 64 << 20
"""An image of more bytes fits no message to the services: its row is bad, and it is never read."""


def read_image(path: Path, allowed: Sequence[Path]) -> bytes:
    """Return the bytes of an image below one of `allowed`, which are resolved already.

    Raises NotFoundError for what is no file (a pipe would be waited for without end), InvalidArgumentError for a file
    that is not below `allowed` or has more than MAX_IMAGE_BYTES.
    """
    try:
        found = path.resolve(strict=True)
        if not any(found.is_relative_to(root) for root in allowed):
            raise InvalidArgumentError("images", f"{path} is not below this worker's dataset roots")
        if not found.is_file():
            raise NotFoundError(f"image {path} is no file", image=str(path))
        with found.open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"image {path} cannot be read: {error.strerror}", image=str(path)) from error
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidArgumentError("images", f"{path} has more than {MAX_IMAGE_BYTES >> 20} MiB, too many to be sent")
    return content
