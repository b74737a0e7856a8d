"""InternVL's tiles at their real size, bitwise equal to an independent tiling."""

from __future__ import annotations

import pytest
import torch

from generation_service.models.internvl.tiles import Tiling
from tests.support.harness.images import picture

pytest.importorskip("sentencepiece", reason="the reference module needs sentencepiece (extra dev)")
from tests.parity.internvl2_reference import tiles

SCREEN = (1080, 2400)


@pytest.mark.parametrize(
    ("size", "most", "count"),
    [
        (SCREEN, 12, 11),
        (SCREEN, 6, 3),
        (SCREEN, 1, 1),
        ((2400, 1080), 12, 9),
        ((448, 448), 12, 1),
        ((896, 896), 12, 5),
        ((1, 1), 12, 1),
        ((3, 700), 12, 13),
        ((800, 600), 12, 13),
        ((600, 400), 12, 7),
    ],
)
def test_tiles_match_independent_tiling(size: tuple[int, int], most: int, count: int) -> None:
    image = picture(*size)
    cut = Tiling(448, 1, most).tiles(image)
    assert Tiling(448, 1, most).count(*size) == count
    assert Tiling(448, 1, most, thumbnail=False).count(*size) == (count - 1 or 1)
    assert cut.shape == (count, 3, 448, 448)
    torch.testing.assert_close(cut, tiles(image, 448, most), rtol=0, atol=1e-6)
