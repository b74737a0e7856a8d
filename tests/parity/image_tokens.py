"""Images that alone exceed the token limit, a check that all families share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
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
