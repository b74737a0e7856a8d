"""A prompt's parts: its text and its images, embedded apart and put together by late fusion.

Parts are what forward passes are made of, and what a cache can hold: the same screenshot with another text is one new
text and a known image.
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
from retrieval_service.embedders.base import FloatArray, LateFusion


class PartKind(StrEnum):
    """What a part is. Parts of one kind can share a forward pass."""

    TEXT = "text"
    IMAGE = "image"


@dataclass(frozen=True)
class EmbedPart:
    """A text or an image of a prompt, unread. `path` is its field's, from `[i]` of the prompt on."""

    content: str | ImagePart
    path: str

    @property
    def kind(self) -> PartKind:
        """What it is."""
        return PartKind.TEXT if isinstance(self.content, str) else PartKind.IMAGE

    def digest(self, fingerprint: str) -> bytes:
        """Return a name of the content under an embedder: equal digests, equal vectors."""
        data = self.content.encode() if isinstance(self.content, str) else self.content.data
        named = hashlib.blake2b(data, digest_size=24, person=self.kind.encode())
        named.update(b"\0" + fingerprint.encode())
        return named.digest()


@dataclass(frozen=True, eq=False)
class ModelInput:
    """A part that was read: what a forward pass takes. `size` is its length there, such as its tokens."""

    kind: PartKind
    size: int
    content: Any


RemainingTime = Callable[[], float]  # seconds that someone still waits; it may grow when others join


def no_deadline() -> float:
    """Return the patience of a caller without a deadline."""
    return math.inf


class PartEmbedder(ABC):
    """An embedder whose forward passes take parts. Its methods may be called from many threads.

    `batch_size` rows at most, padded to at most `batch_tokens` of the rows' sizes, share a pass; `parallel` passes may
    run at once.
    """

    late_fusion: LateFusion
    batch_size: int
    batch_tokens: int = 2**62
    parallel: int = 1
    takes_images: bool = True

    @property
    @abstractmethod
    def dim(self) -> int:
        """Dimensions of a vector."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names the weights and every setting that changes a vector: equal fingerprints, comparable vectors."""

    @abstractmethod
    def text_row(self, text: str) -> ModelInput:
        """Return a text as a forward pass takes it."""

    @abstractmethod
    def image_row(self, image: ImagePart) -> ModelInput:
        """Return an image as a forward pass takes it. Raises InvalidArgumentError, its path from the part on."""

    @abstractmethod
    def run(self, rows: Sequence[ModelInput], left_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of rows of one kind, [len(rows), dim], each of length 1, from one forward pass.

        An embedder that calls others keeps to the seconds that `left_s` says.
        """

    def row(self, part: EmbedPart) -> ModelInput:
        """Return a part as a forward pass takes it. Raises InvalidArgumentError, its path from the part on."""
        if isinstance(part.content, str):
            return self.text_row(part.content)
        return self.image_row(part.content)

    def embed(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Return one vector a prompt, [len(prompts), dim], by forward passes of this call's own."""
        return embed_prompts(self, prompts, self._vectors)

    def embed_texts(self, texts: Sequence[str]) -> FloatArray:
        """Return the vector of each text, [len(texts), dim]."""
        return self.run_all([self.text_row(text) for text in texts])

    def run_all(self, rows: Sequence[ModelInput]) -> FloatArray:
        """Return the vectors of rows of one kind, [len(rows), dim], rows of like size together."""
        vectors = np.empty((len(rows), self.dim), np.float32)
        order = sorted(range(len(rows)), key=lambda index: rows[index].size)
        while order:
            chosen = [order[at] for at in batch_around([rows[index].size for index in order], 0, self)]
            vectors[chosen] = self.run([rows[index] for index in chosen])
            del order[: len(chosen)]
        return vectors

    def _vectors(self, parts: Sequence[EmbedPart]) -> Sequence[FloatArray]:
        rows = []
        for part in parts:
            with field_path(part.path):
                rows.append(self.row(part))
        vectors: dict[int, FloatArray] = {}
        for kind in PartKind:
            places = [place for place, row in enumerate(rows) if row.kind is kind]
            vectors |= zip(places, self.run_all([rows[place] for place in places]), strict=True)
        return [vectors[place] for place in range(len(rows))]


def embed_prompts(
    embedder: PartEmbedder,
    prompts: Sequence[Prompt],
    vectors_of: Callable[[Sequence[EmbedPart]], Sequence[FloatArray]],
    first: int = 0,
) -> FloatArray:
    """Return one vector a prompt, [len(prompts), dim]: `vectors_of` its parts, combined by late fusion.

    Raises InvalidArgumentError for a prompt that cannot be embedded, its path from `[i]` of the prompt on, where `i`
    counts from `first`.
    """
    parts = [prompt_parts(prompt, f"[{index}]", embedder) for index, prompt in enumerate(prompts, first)]
    vectors = iter(vectors_of([part for of_prompt in parts for part in of_prompt]))
    fused = np.empty((len(prompts), embedder.dim), np.float32)
    for index, of_prompt in enumerate(parts):
        found: dict[PartKind, list[FloatArray]] = {PartKind.TEXT: [], PartKind.IMAGE: []}
        for part in of_prompt:
            found[part.kind].append(next(vectors))
        text, images = found[PartKind.TEXT], found[PartKind.IMAGE]
        fused[index] = embedder.late_fusion.combine(text[0] if text else None, np.stack(images) if images else None)
    return fused


def prompt_parts(prompt: Prompt, path: str, embedder: PartEmbedder) -> list[EmbedPart]:
    """Return the parts of a prompt that count: its text, and its first images. Raises InvalidArgumentError for none."""
    fusion, text = embedder.late_fusion, prompt.user_text
    images = [
        EmbedPart(part, f"{path}.messages[{turn}].parts[{index}]")
        for turn, message in enumerate(prompt.messages)
        for index, part in enumerate(message.parts)
        if isinstance(part, ImagePart)
    ]
    counted = images[: fusion.max_images] if embedder.takes_images and (fusion.image_weight or not text) else []
    if text and (fusion.text_weight or not counted):
        return [EmbedPart(text, f"{path}.messages"), *counted]
    if counted:
        return counted
    if images and not embedder.takes_images:
        raise InvalidArgumentError(
            f"{path}.messages", "there are only images, and this server's embedder reads text alone; send a text too"
        )
    raise InvalidArgumentError(f"{path}.messages", "there is no text but placeholders, and no image to embed")


def batch_around(sizes: Sequence[int], at: int, embedder: PartEmbedder) -> range:
    """Return the places around `at` in ascending `sizes` that best share a forward pass with it: the least padding.

    They are at most `batch_size`, and `batch_tokens` when padded to the longest; `at` is always among them.
    """
    low, high = at, at + 1
    while high - low < embedder.batch_size:
        # Padding that one more row brings: its own below, or everyone else's above.
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
        raise InternalError(f"the embedder gave vectors of shape {list(vectors.shape)}, not {[rows, dim]}")
    if not np.isfinite(vectors).all():
        raise InternalError("the embedder gave NaN or infinite values; run it with --dtype bfloat16 or float32")
    return vectors
