"""The training examples that adapters were registered with, stored so that another embedder can embed them again.

They are points without vectors, one per adapter, in a collection of their own: `CATALOGUE-prompts`. Images with more
pixels than any embedder is likely to use are stored at a smaller size.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart
from infra.runtime.images import ImageLimits, decode_image
from retrieval_service.catalogue.points import point_id

MAX_STORED_IMAGE_PIXELS = 400_000  # four times what the jina embedder sees by default (max_image_pixels)
_JPEG_QUALITY = 92
_MAX_EXAMPLES_BYTES = 31 * 2**20  # a Qdrant server accepts requests of 32 MiB by default


@dataclass(frozen=True)
class StoredExamples:
    """An adapter's examples and the adapter revision they came with; empty if unknown."""

    revision: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class ExampleStore:
    """The examples of the catalogue `alias`. Valid only within the Qdrant session that `client` belongs to."""

    client: QdrantClient
    alias: str

    @property
    def collection(self) -> str:
        """Name of the collection."""
        return f"{self.alias}-prompts"

    def put(self, adapter_id: str, prompts: Sequence[Any], revision: str = "") -> None:
        """Replace an adapter's examples by these, each from `encode_prompt`. An empty sequence deletes them.

        `revision` is the adapter's revision they belong to; empty if unknown.
        """
        if prompts:
            self._create_collection()
            payload = {"adapter_id": adapter_id, "prompts": list(prompts), "revision": revision}
            point = models.PointStruct(id=point_id(adapter_id), vector={}, payload=payload)
            self.client.upsert(self.collection, [point])
        elif self.client.collection_exists(self.collection):
            ids: list[Any] = [point_id(adapter_id)]
            self.client.delete(self.collection, models.PointIdsList(points=ids), wait=True)

    def get(self, adapter_id: str) -> StoredExamples:
        """Return an adapter's examples; none if it was registered by vectors."""
        payload = self._payload(adapter_id)
        prompts = tuple(decode_prompt(messages) for messages in payload.get("prompts", ()))
        return StoredExamples(str(payload.get("revision", "")), prompts)

    def encoded(self, adapter_ids: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        """Yield (adapter id, encoded examples) for each adapter that has examples."""
        for adapter_id in adapter_ids:
            prompts = self._payload(adapter_id).get("prompts")
            if prompts:
                yield adapter_id, list(prompts)

    def _payload(self, adapter_id: str) -> dict[str, Any]:
        if not self.client.collection_exists(self.collection):
            return {}
        points = self.client.retrieve(self.collection, [point_id(adapter_id)])
        return points[0].payload or {} if points else {}

    def _create_collection(self) -> None:
        if self.client.collection_exists(self.collection):
            return
        try:
            self.client.create_collection(self.collection, vectors_config={}, on_disk_payload=True)
        except UnexpectedResponse:
            # Another replica may have created it between the check and this request.
            if not self.client.collection_exists(self.collection):
                raise


def check_size(prompts: Sequence[Any]) -> None:
    """Raise InvalidArgumentError if an adapter's encoded examples are larger than a Qdrant server accepts.

    Call this before the adapter is stored. Otherwise the server would accept the adapter and then refuse its examples.
    """
    size = len(json.dumps(prompts))
    if size > _MAX_EXAMPLES_BYTES:
        raise InvalidArgumentError(
            "examples.prompts",
            f"{size} bytes of examples are too many for Qdrant, which accepts {_MAX_EXAMPLES_BYTES} per request; send "
            "fewer examples or smaller images",
        )


def encode_prompt(prompt: Prompt, limits: ImageLimits) -> list[dict[str, Any]]:
    """Return a prompt as JSON: its messages, with images downscaled and in base64.

    Raises InvalidArgumentError, with the field path, if an image is broken or over the limits.
    """
    return [
        {
            "role": message.role.value,
            "parts": [
                _encode_part(part, limits, f"messages[{turn}].parts[{index}]")
                for index, part in enumerate(message.parts)
            ],
        }
        for turn, message in enumerate(prompt.messages)
    ]


def decode_prompt(messages: Any) -> Prompt:
    """Return the prompt that `encode_prompt` encoded."""
    return Prompt(
        tuple(
            Message(Role(message["role"]), tuple(_decode_part(part) for part in message["parts"]))
            for message in messages
        )
    )


def _encode_part(part: Part, limits: ImageLimits, path: str) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    with field_path(path):
        image = _downscaled(part, limits)
    return {"image": base64.b64encode(image.data).decode(), "mime_type": image.mime_type}


def _decode_part(part: dict[str, str]) -> Part:
    if "text" in part:
        return TextPart(part["text"])
    return ImagePart(base64.b64decode(part["image"]), part["mime_type"])


def _downscaled(part: ImagePart, limits: ImageLimits) -> ImagePart:
    """Return the image unchanged, or as a JPEG of MAX_STORED_IMAGE_PIXELS if it is larger."""
    image = decode_image(part, limits)
    factor = (MAX_STORED_IMAGE_PIXELS / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return part
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return ImagePart(buffer.getvalue(), "image/jpeg")
