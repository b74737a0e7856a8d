"""Image limits from the server's settings: oversized images are resized; excess or broken ones are refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from generation_service.app import GenerationStack, generation_stack
from infra.contract.composition import Base
from infra.contract.errors import InvalidArgumentError
from infra.contract.generation import Decoding
from infra.contract.prompt import ImagePart, Prompt
from tests.support.checkpoints.internvl2 import TinyInternVL, write_internvl2
from tests.support.checkpoints.qwen2_5_vl import write_qwen2_5_vl
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl
from tests.support.harness.generation_stack import settings_for
from tests.support.harness.images import png_part

BROKEN = ImagePart(png_part(300, 300).data[:200], "image/png")


def image_tokens(stack: GenerationStack, images: list[ImagePart]) -> int:
    answered = stack.service.generate(Prompt.of("What?", images), Base(), Decoding(max_new_tokens=1))
    return asyncio.run(answered).usage.image_tokens


@pytest.mark.parametrize(
    ("write", "limit", "tokens"),
    [
        (write_qwen2_vl, {"max_pixels": 56 * 168}, 12),
        (write_qwen2_5_vl, {"max_pixels": 56 * 56}, 3),
        (write_internvl2, {"max_tiles": 3}, 4 * TinyInternVL().tile_tokens),
        (write_internvl2, {"max_tiles": 1}, TinyInternVL().tile_tokens),
    ],
    ids=["qwen2_vl", "qwen2_5_vl", "internvl2, three tiles and a thumbnail", "internvl2, one tile"],
)
def test_oversized_images_are_resized_to_limit(
    tmp_path: Path, write: Callable[[Path], Path], limit: dict[str, Any], tokens: int
) -> None:
    folder = write(tmp_path / "model")
    large = png_part(224, 672)
    with generation_stack(settings_for(folder, max_images=2, **limit)) as stack:
        assert image_tokens(stack, [large]) == tokens
        assert image_tokens(stack, [large, large]) == 2 * tokens
        with pytest.raises(InvalidArgumentError, match="3 images are too many; at most 2 a prompt"):
            image_tokens(stack, [large] * 3)
        with pytest.raises(InvalidArgumentError, match="broken or cut off") as caught:
            image_tokens(stack, [large, BROKEN])
        assert caught.value.field.startswith("prompt.messages[0].parts[1].image")
        assert image_tokens(stack, [large]) == tokens
