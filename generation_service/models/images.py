"""The images of a prompt: checked against the limits, then decoded one by one."""

from __future__ import annotations

from collections.abc import Iterator

from PIL.Image import Image

from infra.contract.errors import field_path
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.images import ImageLimits, check_images, decode_image


def image_field_paths(prompt: Prompt) -> list[str]:
    """Return the field path of every image, in reading order."""
    return [
        f"messages[{turn}].parts[{index}]"
        for turn, message in enumerate(prompt.messages)
        for index, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]


def decode_images(prompt: Prompt, limits: ImageLimits) -> Iterator[Image]:
    """Check the images of `prompt`, then return an iterator that decodes them to RGB lazily, in reading order.

    Raises InvalidArgumentError naming the image, both here and from the iterator.
    """
    check_images(prompt, limits)
    return (_decoded(path, image, limits) for path, image in zip(image_field_paths(prompt), prompt.images, strict=True))


def _decoded(path: str, image: ImagePart, limits: ImageLimits) -> Image:
    with field_path(path):
        return decode_image(image, limits)
