"""The examples that adapters were registered by, kept beside the catalogue, so that another embedder can embed them.

A point an adapter, without vectors, in a collection of its own: `CATALOGUE-prompts`. Images larger than any embedder is
likely to look at are stored smaller.
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

KEPT_IMAGE_PIXELS = 400_000
_JPEG_QUALITY = 92
_MOST_BYTES = 31 * 2**20  # a Qdrant server takes requests of 32 MiB unless told otherwise


@dataclass(frozen=True)
class Kept:
    """An adapter's examples, and the revision of it that they came with; empty where that is not known."""

    revision: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class KeptPrompts:
    """The examples of the adapters of the catalogue called `alias`, by a client that may be used now."""

    client: QdrantClient
    alias: str

    @property
    def collection(self) -> str:
        """Where they are."""
        return f"{self.alias}-prompts"

    def put(self, adapter_id: str, prompts: Sequence[Any], revision: str = "") -> None:
        """Keep an adapter's examples, each as `encoded` returns it, in the place of those before; none: nothing.

        `revision` is the one of the adapter that they came with; empty where that is not known.
        """
        if prompts:
            self._make()
            payload = {"adapter_id": adapter_id, "prompts": list(prompts), "revision": revision}
            point = models.PointStruct(id=point_id(adapter_id), vector={}, payload=payload)
            self.client.upsert(self.collection, [point])
        elif self.client.collection_exists(self.collection):
            ids: list[Any] = [point_id(adapter_id)]
            self.client.delete(self.collection, models.PointIdsList(points=ids), wait=True)

    def of(self, adapter_id: str) -> Kept:
        """Return an adapter's examples; none when it was registered by vectors."""
        payload = self._payload(adapter_id)
        return Kept(str(payload.get("revision", "")), tuple(decoded(one) for one in payload.get("prompts", ())))

    def encoded_of(self, adapter_ids: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
        """Yield the adapters of which there are examples, each with them."""
        for adapter_id in adapter_ids:
            prompts = self._payload(adapter_id).get("prompts")
            if prompts:
                yield adapter_id, list(prompts)

    def _payload(self, adapter_id: str) -> dict[str, Any]:
        if not self.client.collection_exists(self.collection):
            return {}
        points = self.client.retrieve(self.collection, [point_id(adapter_id)])
        return points[0].payload or {} if points else {}

    def _make(self) -> None:
        if self.client.collection_exists(self.collection):
            return
        try:
            self.client.create_collection(self.collection, vectors_config={}, on_disk_payload=True)
        except UnexpectedResponse:
            if not self.client.collection_exists(self.collection):  # else another replica was faster
                raise


def check_size(prompts: Sequence[Any]) -> None:
    """Raise InvalidArgumentError for an adapter's encoded examples that a Qdrant server would not take.

    To be asked before the adapter is stored: the server refuses them after it took the adapter.
    """
    size = len(json.dumps(prompts))
    if size > _MOST_BYTES:
        raise InvalidArgumentError(
            "examples.prompts",
            f"{size} bytes of examples are too many for Qdrant, which takes {_MOST_BYTES} at once; send fewer of them "
            "or smaller images",
        )


def encoded(prompt: Prompt, limits: ImageLimits) -> list[dict[str, Any]]:
    """Return a prompt as JSON: its turns, images in base64 and small.

    Raises InvalidArgumentError, field path included, for an image that is broken or over the limits.
    """
    return [
        {
            "role": message.role.value,
            "parts": [
                _encoded_part(part, limits, f"messages[{turn}].parts[{index}]")
                for index, part in enumerate(message.parts)
            ],
        }
        for turn, message in enumerate(prompt.messages)
    ]


def decoded(messages: Any) -> Prompt:
    """Return the prompt that `encoded` wrote."""
    return Prompt(
        tuple(Message(Role(one["role"]), tuple(_decoded_part(part) for part in one["parts"])) for one in messages)
    )


def _encoded_part(part: Part, limits: ImageLimits, path: str) -> dict[str, str]:
    if isinstance(part, TextPart):
        return {"text": part.text}
    with field_path(path):
        small = _small(part, limits)
    return {"image": base64.b64encode(small.data).decode(), "mime_type": small.mime_type}


def _decoded_part(part: dict[str, str]) -> Part:
    if "text" in part:
        return TextPart(part["text"])
    return ImagePart(base64.b64decode(part["image"]), part["mime_type"])


def _small(part: ImagePart, limits: ImageLimits) -> ImagePart:
    """Return the image as it is, or at KEPT_IMAGE_PIXELS when it is larger."""
    image = decode_image(part, limits)
    factor = (KEPT_IMAGE_PIXELS / (image.width * image.height)) ** 0.5
    if factor >= 1:
        return part
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    buffer = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return ImagePart(buffer.getvalue(), "image/jpeg")
