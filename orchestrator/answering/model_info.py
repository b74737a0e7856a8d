"""What the generation service reports about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelLimits:
    """What the generation service accepts; see ModelLimits of the contract. 0: not reported."""

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
    """An adapter on the device: its LoRA rank, its size there in bytes, and whether it is pinned."""

    adapter_id: str
    revision: str
    rank: int
    byte_size: int
    pinned: bool


@dataclass(frozen=True)
class ModelInfo:
    """The base model that runs, its device and limits, and the adapters on the device.

    `revision` is the digest of the model's files, empty where the server does not report it.
    """

    base_model: str
    family: str
    device: str
    dtype: str
    limits: ModelLimits
    residents: tuple[ResidentAdapter, ...] = ()
    revision: str = ""
