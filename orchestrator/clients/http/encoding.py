"""What a call of the client becomes: a method, a path and a JSON body."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict
from urllib.parse import quote

from PIL import Image

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import ImagePart, Part, Prompt
from infra.contract.retrieval import RetrievalStrategy, Weighting

ImageSource = str | PathLike[str] | bytes | Image.Image | ImagePart
"""An image: a path, the bytes of a file, a PIL image, or a part of a prompt."""

CONTENT_TYPE = {"content-type": "application/json"}
ADAPTERS = "/v1/adapters"
_CHAT = "/v1/chat/completions"


class RetrievalOptions(TypedDict, total=False):
    """Which adapters are retrieved, and how they are weighted; what is left out is the server's default."""

    top_k: int
    weighting: Weighting | str
    weighting_temperature: float
    min_similarity: float
    min_log_odds: float
    retrieval_strategy: RetrievalStrategy | str
    kind: str
    tags: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]


class AnswerOptions(RetrievalOptions, total=False):
    """How a prompt is answered.

    `model` is "auto", "auto:METHOD", "base" or an adapter's id. `weights` are composed as given. `temperature` 0, the
    default, is greedy. `top_k` counts adapters, `token_top_k` tokens.
    """

    model: str
    weights: Mapping[str, float]
    max_tokens: int
    temperature: float
    top_p: float
    token_top_k: int
    seed: int
    stop: str | Sequence[str]


@dataclass(frozen=True)
class Call:
    """A request. `images` are those of the prompt, for the notebook view of its reply."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    query: dict[str, Any] = field(default_factory=dict)
    images: tuple[ImagePart, ...] = ()

    @property
    def content(self) -> bytes | None:
        """The body in bytes. Text that is not valid Unicode stays escaped, so that the server names its field."""
        return None if self.body is None else json.dumps(self.body).encode()


_FIELDS_OF_REQUEST = {
    "model": "model",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "top_p": "top_p",
    "token_top_k": "top_k",
    "seed": "seed",
    "stop": "stop",
}


def answer_call(
    prompt: str | Prompt, images: Sequence[ImageSource], options: AnswerOptions, *, stream: bool = False
) -> Call:
    """Return the request for an answer. Raises InvalidArgumentError for an unusable prompt or image."""
    built = prompt_of(prompt, images)
    given = dict(options)
    body: dict[str, Any] = {"model": "auto", "messages": _messages(built)}
    body |= {name: given.pop(option) for option, name in _FIELDS_OF_REQUEST.items() if option in given}
    if given:
        body["loraretriever"] = _jsonable(given)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Call("POST", _CHAT, body, images=built.images)


def match_call(prompt: str | Prompt, images: Sequence[ImageSource], options: RetrievalOptions) -> Call:
    """Return the request for the adapters that fit a prompt."""
    built = prompt_of(prompt, images)
    return Call("POST", f"{ADAPTERS}/match", {"messages": _messages(built), **_jsonable(options)}, images=built.images)


def add_call(
    adapter_id: str, checkpoint: str | PathLike[str], examples: Sequence[str | Prompt], **described: Any
) -> Call:
    """Return the request that registers an adapter."""
    encoded = [example if isinstance(example, str) else {"messages": _messages(example)} for example in examples]
    body = {"id": adapter_id, "checkpoint": str(checkpoint), "examples": encoded, **_jsonable(described)}
    return Call("POST", ADAPTERS, body)


def list_call(base_model: str, kind: str, tags: Sequence[str]) -> Call:
    """Return the request that lists the catalogue."""
    return Call("GET", ADAPTERS, query={"base_model": base_model, "kind": kind, "tag": list(tags)})


def adapter_call(method: str, adapter_id: str) -> Call:
    """Return the request that shows or deletes one adapter."""
    return Call(method, f"{ADAPTERS}/{quote(adapter_id, safe='')}")


def prompt_of(prompt: str | Prompt, images: Sequence[ImageSource] = ()) -> Prompt:
    """Return a prompt: as given, or of one turn with the images and the text."""
    if isinstance(prompt, Prompt):
        if images:
            raise InvalidArgumentError("images", "a Prompt holds its own images; leave one of them out")
        return prompt
    return Prompt.of(prompt, [image_part(image, f"images[{index}]") for index, image in enumerate(images)])


def image_part(image: ImageSource, name: str = "image") -> ImagePart:
    """Return an image as a part of a prompt. Raises InvalidArgumentError naming `name` if it cannot be read."""
    match image:
        case ImagePart():
            return image
        case bytes():
            return ImagePart(image)
        case Image.Image():
            file = io.BytesIO()
            image.save(file, "PNG")
            return ImagePart(file.getvalue(), "image/png")
        case _:
            try:
                return ImagePart(Path(image).read_bytes())
            except OSError as error:
                raise InvalidArgumentError(name, f"{image} cannot be read: {error.strerror}") from error


def data_url(image: ImagePart) -> str:
    """Return an image as a data URL."""
    return f"data:{image.mime_type};base64,{base64.b64encode(image.data).decode()}"


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    return [
        {"role": message.role.value, "content": [_content(part) for part in message.parts]}
        for message in prompt.messages
    ]


def _content(part: Part) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "image_url", "image_url": {"url": data_url(part)}}
    return {"type": "text", "text": part.text}


def _jsonable(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name, value in options.items()
    }
