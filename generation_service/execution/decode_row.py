"""One sequence's part of a decode step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from generation_service.lora.ranks import RankRange


@dataclass(frozen=True)
class DecodeRow:
    """One running sequence in a decode step: its newest token, and the `length` tokens before it in its slot."""

    slot: int
    token: int
    length: int
    position_delta: int
    ranges: Mapping[RankRange, float]
