"""How images are decoded and counted: checks that all families share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from PIL.Image import Image

from generation_service.models.base import BaseModel
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Prompt
from tests.support.harness.images import picture


def check_stops_at_the_image_too_many(model: BaseModel, cut: Callable[[], int]) -> None:
    """Assert that of eight images, no more are decoded than the limit takes, and the last of those is not `cut`.

    `cut` returns how many images have been preprocessed.
    """
    decoded: list[int] = []

    def images() -> Iterator[Image]:
        for seed in range(8):
            decoded.append(seed)
            yield picture(100, 150, seed)

    prompt = Prompt.of("x", [ImagePart(b"decoded already")] * 8)
    whole = model.encode(prompt, images())
    each = whole.image_tokens // 8
    assert cut() == 8
    assert model.encode(prompt, images(), max_tokens=whole.length + 1).length == whole.length
    assert cut() == 16
    decoded.clear()
    with pytest.raises(InvalidArgumentError, match=r"tokens or more for its images alone.*fewer or smaller") as caught:
        model.encode(prompt, images(), max_tokens=3 * each)
    assert caught.value.metadata == {"tokens": str(3 * each), "limit": str(3 * each)}
    assert decoded == [0, 1, 2]
    assert cut() == 16 + 2


def check_one_image_is_held_at_a_time(model: BaseModel) -> None:
    """Assert that each decoded image is released before the next, and that a lazy sequence encodes as a list does."""
    held: list[weakref.ref[Image]] = []

    def decoded(seed: int) -> Image:
        assert not any(image() for image in held)
        image = picture(100, 150, seed)
        held.append(weakref.ref(image))
        return image

    question = Prompt.of("x", [ImagePart(b"decoded already")] * 3)
    expected = model.encode(question, [picture(100, 150, seed) for seed in range(3)])
    prompt = model.encode(question, (decoded(seed) for seed in range(3)))
    assert len(held) == 3
    assert prompt.pixels is not None
    assert expected.pixels is not None
    assert torch.equal(prompt.pixels, expected.pixels)
    assert torch.equal(prompt.tokens, expected.tokens)
