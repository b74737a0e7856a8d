"""An embedder whose passes a test can record, hold and break. A text's vector is a function of the text."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.embedders.late_fusion import LateFusion
from retrieval_service.embedders.part_embedder import ModelInput, PartEmbedder, PartKind, RemainingTime, no_deadline

DIM = 8


class FakePartEmbedder(PartEmbedder):
    """The size of a text is its characters, of an image its bytes. Texts and images in `broken` fail their pass.

    While `gate` is cleared, passes wait after they are recorded in `passes`.
    """

    def __init__(self, batch_size: int = 4, *, parallel: int = 1, batch_tokens: int = 2**62) -> None:
        self.batch_size, self.parallel, self.batch_tokens = batch_size, parallel, batch_tokens
        self.late_fusion = LateFusion()
        self.passes: list[list[str]] = []
        self.times: list[float] = []
        self.broken: dict[str, BaseException] = {}
        self.unreadable: set[str] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.preparing = threading.Event()
        self.preparing.set()

    @property
    def dim(self) -> int:
        return DIM

    @property
    def fingerprint(self) -> str:
        return "fake"

    def prepare_text(self, text: str) -> ModelInput:
        self.preparing.wait(10)
        if text in self.unreadable:
            raise InvalidArgumentError("", f"{text!r} cannot be read")
        return ModelInput(PartKind.TEXT, len(text), text)

    def prepare_image(self, image: ImagePart) -> ModelInput:
        name = image.data.decode()
        if name in self.unreadable:
            raise InvalidArgumentError("image.data", "the image is broken")
        return ModelInput(PartKind.IMAGE, len(image.data), name)

    def forward(self, inputs: Sequence[ModelInput], remaining_s: RemainingTime = no_deadline) -> FloatArray:
        names = [model_input.content for model_input in inputs]
        assert len({model_input.kind for model_input in inputs}) == 1
        self.passes.append(names)
        self.times.append(remaining_s())
        self.gate.wait(10)
        for name in names:
            if name in self.broken:
                raise self.broken[name]
        return np.stack([vector_of(name) for name in names])

    @property
    def embedded(self) -> list[str]:
        """Everything that was embedded, in order."""
        return [name for names in self.passes for name in names]


def vector_of(name: str) -> FloatArray:
    """Return the vector of a text, or of an image's bytes as text."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return normalise(np.random.default_rng(seed).standard_normal(DIM))
