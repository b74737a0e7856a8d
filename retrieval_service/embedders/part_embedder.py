"""Embedders that work on a prompt's parts: its text and its images, embedded separately and combined by late fusion.

Parts are the unit of batching and of caching. A known screenshot with a new text costs one forward pass of text.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from infra.contract.errors import InternalError, InvalidArgumentError, field_path
from infra.contract.prompt import ImagePart, Prompt
from retrieval_service.embedders.base import FloatArray
from retrieval_service.embedders.late_fusion import LateFusion


class PartKind(StrEnum):
    """Kind of a part. Only parts of one kind share a forward pass."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class EmbedPart:
    """A text or an image of a prompt, not preprocessed. `path` is its field path, starting at `[i]` of the prompt."""

    content: str | ImagePart
    path: str

    @property
    def kind(self) -> PartKind:
        """Whether it is a text or an image."""
        return PartKind.TEXT if isinstance(self.content, str) else PartKind.IMAGE

    def digest(self, fingerprint: str) -> bytes:
        """Return a digest of the content under an embedder: equal digests have equal vectors."""
        data = self.content.encode() if isinstance(self.content, str) else self.content.data
        hashed = hashlib.blake2b(data, digest_size=24, person=self.kind.encode())
        hashed.update(b"\0" + fingerprint.encode())
        return hashed.digest()


@dataclass(frozen=True, eq=False)
class ModelInput:
    """A preprocessed part, as a forward pass takes it. `size` is its length there, for example in tokens."""

    kind: PartKind
    size: int
    content: Any


RemainingTime = Callable[[], float]  # seconds until the last caller stops waiting; grows when another caller joins


def no_deadline() -> float:
    """Return the remaining time of a caller without a deadline."""
    return math.inf


class PartEmbedder(ABC):
    """An embedder whose forward passes take parts. Its methods may be called from many threads.

    A pass takes at most `batch_size` inputs, padded to at most `batch_tokens` of their sizes; up to `parallel` passes
    may run concurrently.
    """

    late_fusion: LateFusion
    batch_size: int
    batch_tokens: int = 2**62
    parallel: int = 1
    supports_images: bool = True

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimensions of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies the weights and every setting that changes a vector: equal fingerprints, comparable vectors."""

    @abstractmethod
    def prepare_text(self, text: str) -> ModelInput:
        """Return a text as a forward pass takes it."""

    @abstractmethod
    def prepare_image(self, image: ImagePart) -> ModelInput:
        """Return an image as a forward pass takes it.

        Raises InvalidArgumentError, its field path relative to the part.
        """

    @abstractmethod
    def forward(self, inputs: Sequence[ModelInput], remaining_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of inputs of one kind, [len(inputs), dim], each of length 1, from one forward pass.

        An embedder that calls another server does not wait for it longer than `remaining_s`.
        """

    def prepare(self, part: EmbedPart) -> ModelInput:
        """Return a part as a forward pass takes it.

        Raises InvalidArgumentError, its field path relative to the part.
        """
        if isinstance(part.content, str):
            return self.prepare_text(part.content)
        return self.prepare_image(part.content)

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector per prompt, [len(prompts), dim], without sharing passes with other calls."""
        return embed_prompts(self, prompts, self._vectors)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the vector of each text, [len(texts), dim]."""
        return self.forward_all([self.prepare_text(text) for text in texts])

    def forward_all(self, inputs: Sequence[ModelInput]) -> FloatArray:
        """Return the vectors of inputs of one kind, [len(inputs), dim], batched by similar size."""
        vectors = np.empty((len(inputs), self.dim), np.float32)
        order = sorted(range(len(inputs)), key=lambda index: inputs[index].size)
        while order:
            batch = [order[at] for at in batch_around([inputs[index].size for index in order], 0, self)]
            vectors[batch] = self.forward([inputs[index] for index in batch])
            del order[: len(batch)]
        return vectors

    def _vectors(self, parts: Sequence[EmbedPart]) -> Sequence[FloatArray]:
        inputs = []
        for part in parts:
            with field_path(part.path):
                inputs.append(self.prepare(part))
        vectors: dict[int, FloatArray] = {}
        for kind in PartKind:
            indexes = [index for index, model_input in enumerate(inputs) if model_input.kind is kind]
            vectors |= zip(indexes, self.forward_all([inputs[index] for index in indexes]), strict=True)
        return [vectors[index] for index in range(len(inputs))]


def embed_prompts(
    embedder: PartEmbedder,
    prompts: Sequence[Prompt],
    vectors_of: Callable[[Sequence[EmbedPart]], Sequence[FloatArray]],
    first: int = 0,
) -> FloatArray:
    """Return one vector per prompt, [len(prompts), dim]: `vectors_of` its parts, combined by late fusion.

    Raises InvalidArgumentError if a prompt cannot be embedded; its field path starts at `[i]` of the prompt, counted
    from `first`.
    """
    parts = [prompt_parts(prompt, f"[{index}]", embedder) for index, prompt in enumerate(prompts, first)]
    vectors = iter(vectors_of([part for of_prompt in parts for part in of_prompt]))
    fused = np.empty((len(prompts), embedder.dim), np.float32)
    for index, of_prompt in enumerate(parts):
        by_kind: dict[PartKind, list[FloatArray]] = {PartKind.TEXT: [], PartKind.IMAGE: []}
        for part in of_prompt:
            by_kind[part.kind].append(next(vectors))
        text, images = by_kind[PartKind.TEXT], by_kind[PartKind.IMAGE]
        fused[index] = embedder.late_fusion.combine(text[0] if text else None, np.stack(images) if images else None)
    return fused


def prompt_parts(prompt: Prompt, path: str, embedder: PartEmbedder) -> list[EmbedPart]:
    """Return the parts of a prompt that affect its vector: its text and its first images.

    Raises InvalidArgumentError if there are none.
    """
    fusion, text = embedder.late_fusion, prompt.user_text
    images = [
        EmbedPart(part, f"{path}.messages[{turn}].parts[{index}]")
        for turn, message in enumerate(prompt.messages)
        for index, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]
    used = images[: fusion.max_images] if embedder.supports_images and (fusion.image_weight or not text) else []
    if text and (fusion.text_weight or not used):
        return [EmbedPart(text, f"{path}.messages"), *used]
    if used:
        return used
    if images and not embedder.supports_images:
        raise InvalidArgumentError(
            f"{path}.messages", "there are only images, but this server's embedder reads only text; add a text"
        )
    raise InvalidArgumentError(f"{path}.messages", "there is no text but placeholders, and no image to embed")


def batch_around(sizes: Sequence[int], at: int, embedder: PartEmbedder) -> range:
    """Return the positions in ascending `sizes` that share a forward pass with `at` at the least padding.

    They are at most `batch_size`, and at most `batch_tokens` when padded to the longest; `at` is always among them.
    """
    low, high = at, at + 1
    while high - low < embedder.batch_size:
        # Padding added by one more input: its own if it is smaller, or that of all others if it is larger.
        below = sizes[high - 1] - sizes[low - 1] if low else None
        above = (sizes[high] - sizes[high - 1]) * (high - low) if high < len(sizes) else None
        if below is not None and (above is None or below <= above):
            grown = low - 1, high
        elif above is not None:
            grown = low, high + 1
        else:
            break
        if (grown[1] - grown[0]) * sizes[grown[1] - 1] > embedder.batch_tokens:
            break
        low, high = grown
    return range(low, high)


def check_vectors(vectors: FloatArray, rows: int, dim: int) -> FloatArray:
    """Return the vectors if they are [rows, dim] and finite. Raises InternalError."""
    if vectors.shape != (rows, dim):
        raise InternalError(f"the embedder returned vectors of shape {list(vectors.shape)}, not {[rows, dim]}")
    if not np.isfinite(vectors).all():
        raise InternalError("the embedder returned NaN or infinite values; run it with --dtype bfloat16 or float32")
    return vectors
