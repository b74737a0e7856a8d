"""The images of a prompt: checked against the limits before a pixel is decoded, then decoded."""

from __future__ import annotations

from PIL.Image import Image

from infra.contract.errors import field
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.images import ImageLimits, check_images, decode_image


def image_paths(prompt: Prompt) -> list[str]:
    """Return the field path of every image, in reading order."""
    return [
        f"messages[{turn}].parts[{place}]"
        for turn, message in enumerate(prompt.messages)
        for place, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]


def decode_images(prompt: Prompt, limits: ImageLimits) -> list[Image]:
    """Return the images of `prompt` as RGB, in reading order. Raises InvalidArgumentError naming the one at fault."""
    check_images(prompt, limits)
    decoded = []
    for path, image in zip(image_paths(prompt), prompt.images, strict=True):
        with field(path):
            decoded.append(decode_image(image, limits))
    return decoded
