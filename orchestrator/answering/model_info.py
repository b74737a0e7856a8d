"""What the generation service says of itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelLimits:
    """What the generation service accepts; see ModelLimits of the contract. 0: not said."""

    max_sequence_tokens: int = 0
    max_images: int = 0
    max_image_bytes: int = 0
    max_image_pixels: int = 0
    max_adapters: int = 0
    bank_ranks: int = 0
    max_running: int = 0
    max_waiting: int = 0


@dataclass(frozen=True)
class ResidentAdapter:
    """An adapter on the device: its LoRA rank, its bytes there, and whether it is kept."""

    adapter_id: str
    revision: str
    rank: int
    byte_size: int
    pinned: bool


@dataclass(frozen=True)
class ModelInfo:
    """The base model that runs, where, within which limits, and the adapters beside it.

    `revision` is the digest of its files, empty where the server does not say.
    """

    base_model: str
    family: str
    device: str
    dtype: str
    limits: ModelLimits
    residents: tuple[ResidentAdapter, ...] = ()
    revision: str = ""
