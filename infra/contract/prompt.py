"""A multimodal conversation as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from infra.contract.errors import InvalidArgumentError, field_path

IMAGE_PLACEHOLDER = "<image>"


class Role(StrEnum):
    """The speaker of a turn."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True)
class TextPart:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An encoded image: the bytes of its file, and its media type (may be empty)."""

    data: bytes
    mime_type: str = ""

    def __post_init__(self) -> None:
        if not self.data:
            raise InvalidArgumentError("image.data", "the image has no bytes; send the encoded PNG or JPEG file")

    def __repr__(self) -> str:
        return f"ImagePart({len(self.data)} bytes, {self.mime_type!r})"


Part = TextPart | ImagePart


@dataclass(frozen=True)
class Message:
    """One turn: its speaker, and its text and images in order."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise InvalidArgumentError("parts", "a message needs at least one part, text or image")


@dataclass(frozen=True)
class Prompt:
    """A conversation, oldest turn first. The last turn is the user's, and not empty."""

    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.messages:
            raise InvalidArgumentError("messages", "the prompt is empty; send at least one user message")
        last = len(self.messages) - 1
        with field_path(f"messages[{last}]"):
            if self.messages[last].role is not Role.USER:
                raise InvalidArgumentError("role", "the last message must be the user's")
            if not any(isinstance(p, ImagePart) or p.text.strip() for p in self.messages[last].parts):
                raise InvalidArgumentError("parts", "the message is empty; send text, an image, or both")

    @classmethod
    def of(cls, text: str, images: Sequence[ImagePart] = ()) -> Prompt:
        """Return a prompt of one user turn: the images, then the text."""
        parts: tuple[Part, ...] = (*images, *((TextPart(text),) if text else ()))
        return cls((Message(Role.USER, parts),))

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """All images, in order."""
        return tuple(p for m in self.messages for p in m.parts if isinstance(p, ImagePart))

    @property
    def user_text(self) -> str:
        """The text of the user's turns, one turn per line, without `<image>` placeholders."""
        texts = (p.text for m in self.messages if m.role is Role.USER for p in m.parts if isinstance(p, TextPart))
        stripped = (text.replace(IMAGE_PLACEHOLDER, "").strip() for text in texts)
        return "\n".join(text for text in stripped if text)
