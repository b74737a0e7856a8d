"""Messages of OpenAI's chat API as a prompt: roles, texts, and images in data URLs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import unquote_to_bytes

from pydantic import BeforeValidator, Field, WithJsonSchema

from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart
from orchestrator.gateway.fields import RequestModel, Unused, only

#: Far beyond what fits the context of a model; bounds the work of reading a request.
MAX_MESSAGES = 1024
MAX_PARTS = 256

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,  # OpenAI's newer name of the same role.
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
}


class ImageUrl(RequestModel):
    """An image as a data URL. It is always read at full resolution."""

    url: str = Field(description="data:image/png;base64,...")
    detail: only("auto", "high") = None  # type: ignore[valid-type]


class ContentPart(RequestModel):
    """A piece of text, or an image."""

    type: str = Field(description="text or image_url")
    text: str | None = None
    image_url: ImageUrl | None = None


def _as_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


_PARTS_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"$ref": "#/components/schemas/ContentPart"}, "maxItems": MAX_PARTS},
        {"type": "null"},
    ]
}


class ChatMessage(RequestModel):
    """One turn of a conversation. The last one is the user's."""

    role: str = Field(description="system, developer, user or assistant")
    content: Annotated[
        list[ContentPart] | None, Field(max_length=MAX_PARTS), BeforeValidator(_as_parts), WithJsonSchema(_PARTS_SCHEMA)
    ] = None
    name: only() = None  # type: ignore[valid-type]
    tool_call_id: only() = None  # type: ignore[valid-type]
    # What a client sends back when it repeats an assistant's message as it was received.
    refusal: only() = None  # type: ignore[valid-type]
    annotations: Unused = None
    audio: only() = None  # type: ignore[valid-type]
    function_call: only() = None  # type: ignore[valid-type]
    tool_calls: only([]) = None  # type: ignore[valid-type]


Messages = Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]


def prompt_of(messages: Sequence[ChatMessage]) -> Prompt:
    """Return the prompt of a conversation. Raises InvalidArgumentError with the path of the field."""
    turns = []
    for index, message in enumerate(messages):
        with field_path(f"messages[{index}]"):
            turns.append(Message(_role(message.role), _parts(message.content or [])))
    try:
        return Prompt(tuple(turns))
    except InvalidArgumentError as error:
        raise error.renamed(message_field(error.field)) from error


def message_field(path: str) -> str:
    """Return the path in a request's messages for a path in the contract's prompt."""
    path = path.replace(".parts", ".content")
    if path.endswith(".image"):
        return f"{path}_url"
    for of_image in (".image.data", ".image.mime_type"):
        path = path.replace(of_image, ".image_url.url")
    return path or "messages"


def _role(name: str) -> Role:
    if name not in _ROLES:
        raise InvalidArgumentError("role", f"{name[:40]!r} is not offered; use one of {', '.join(_ROLES)}")
    return _ROLES[name]


def _parts(content: Sequence[ContentPart]) -> tuple[Part, ...]:
    if not content:
        raise InvalidArgumentError("content", "a message needs text or an image")
    parts = []
    for index, part in enumerate(content):
        with field_path(f"content[{index}]"):
            parts.append(_part(part))
    return tuple(parts)


def _part(part: ContentPart) -> Part:
    match part.type, part.text, part.image_url:
        case "text", str(text), None:
            return TextPart(text)
        case "image_url", None, ImageUrl(url=url):
            with field_path("image_url.url"):
                return image_of(url)
        case "text" | "image_url", _, _:
            raise InvalidArgumentError(part.type, f"a part of type {part.type} has exactly this field besides its type")
        case _:
            raise InvalidArgumentError("type", f"{part.type[:40]!r} is not offered; send text or image_url")


def image_of(url: str) -> ImagePart:
    """Return the image in a base64 data URL (RFC 2397). Raises InvalidArgumentError without a field for others."""
    scheme, _, rest = url.partition(":")
    header, comma, data = rest.partition(",")
    media_type, *parameters = header.split(";")
    if scheme.lower() != "data":
        raise InvalidArgumentError(
            "", f"is no data URL, but one of scheme {scheme[:20]!r}; send the file as data:image/png;base64,..."
        )
    if not comma or "base64" not in (parameter.strip().lower() for parameter in parameters):
        raise InvalidArgumentError("", "is not a base64 data URL; send data:image/png;base64,...")
    try:
        content = base64.b64decode(b"".join(unquote_to_bytes(data).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgumentError("", f"the data is not base64 ({error}); encode the whole file") from error
    if not content:
        raise InvalidArgumentError("", "the image has no bytes; encode the whole PNG or JPEG file")
    return ImagePart(content, media_type.strip().lower())
