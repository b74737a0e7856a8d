"""Read the images of samples. A file may have changed or disappeared since its row was read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.contract.errors import InvalidArgumentError, NotFoundError

MAX_IMAGE_BYTES = 64 << 20
"""A larger image does not fit into a message to the services; its row is bad and the image is never read."""


def read_image(path: Path, allowed: Sequence[Path]) -> bytes:
    """Return the bytes of an image below one of the `allowed` folders, which must be resolved already.

    Raises:
        NotFoundError: it is missing or not a regular file (reading a pipe would block forever).
        InvalidArgumentError: it is not below `allowed`, or has more than MAX_IMAGE_BYTES.
    """
    try:
        resolved = path.resolve(strict=True)
        if not any(resolved.is_relative_to(root) for root in allowed):
            raise InvalidArgumentError("images", f"{path} is not below this worker's dataset roots")
        if not resolved.is_file():
            raise NotFoundError(f"image {path} is not a file", image=str(path))
        with resolved.open("rb") as file:
            content = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"image {path} cannot be read: {error.strerror}", image=str(path)) from error
    if len(content) > MAX_IMAGE_BYTES:
        raise InvalidArgumentError("images", f"{path} has more than {MAX_IMAGE_BYTES >> 20} MiB and cannot be sent")
    return content
