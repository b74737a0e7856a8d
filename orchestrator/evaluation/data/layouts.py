"""Row layouts of training tools -> the fields of a row of this project: query, response, images.

ms-swift: `query`, `response`, `history`, or `messages` with `images`; OpenAI and TRL: `messages`, or `prompt` and
`completion`; ShareGPT and LLaVA: `conversations` with `image`; Alpaca: `instruction`, `input`, `output`. A field that
is null, or an empty string, list or object, counts as absent. A row whose meaning is not certain raises RowError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.contract.prompt import IMAGE_PLACEHOLDER

_PAIRS = (
    ("query", "response"),
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Fields that hold a question and its answer."""
_CONVERSATIONS = ("messages", "conversations", "conversation")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}
_OTHER_MEDIA = ("videos", "video", "audios", "audio")
_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages")
_IMAGE_FIELDS = ("images", "image")
_IMAGE_KEYS = ("path", "url", "image", "image_url", "file_name")
_EMBEDDED_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
_ONE_PAIR = "give rows with one user message and one assistant message"


class RowError(Exception):
    """A row cannot be read; the message says why."""


def kind_of(value: Any) -> str:
    """Return what a JSON value is, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def unified(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row with its question in `query`, its answer in `response` and its images' paths in `images`.

    A system message is in `system`.

    Other fields stay. Raises RowError, naming the layout found, for a row whose meaning is not certain.
    """
    fields = {name: value for name, value in row.items() if value is not None}
    _check_media(fields)
    images = _images(fields)
    system = fields.get("system")
    layout = next((name for name in _CONVERSATIONS if name in fields), None)
    if layout is not None and "query" not in fields:
        found = _from_conversation(layout, fields[layout])
        images = _only_source(images, found.images, layout)
        system = _one_system(system, found.system, layout)
        query, response = found.query, found.response
    else:
        query, response = _from_pair(fields)
    if isinstance(query, str):
        embedded = _EMBEDDED_IMAGE.findall(query)
        images = _only_source(images, embedded, "<img> in the query")
        query = _EMBEDDED_IMAGE.sub(IMAGE_PLACEHOLDER, query)
        if images and IMAGE_PLACEHOLDER not in query:
            query = IMAGE_PLACEHOLDER * len(images) + query  # As training tools do: images come first.
    texts = {"query": query, "response": response, "system": system}
    return fields | {name: value for name, value in texts.items() if value is not None} | {"images": images}


def _check_media(fields: Mapping[str, Any]) -> None:
    for name in _OTHER_MEDIA:
        if fields.get(name):
            raise RowError(f"it has {name}, which are not served: leave such rows out")
    preference = next((name for name in _PREFERENCES if fields.get(name)), None)
    if preference is not None:
        raise RowError(
            f"{preference!r} is a field of preference data (DPO): give rows with one answer, such as 'query' and "
            "'response'"
        )
    _check_single_turn(fields)


def _check_single_turn(fields: Mapping[str, Any]) -> None:
    if fields.get("history"):
        raise RowError(f"'history' holds earlier turns, which are not evaluated: {_ONE_PAIR}, without history")
    if fields.get("tools"):
        raise RowError("'tools' describes functions to call, which are not evaluated: leave such rows out")


def _one_system(given: Any, inside: str, layout: str) -> Any:
    if given and inside:
        raise RowError(f"it has a system message in a field of its own and in {layout!r}: give it once")
    return given or inside or None


def _from_pair(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the question and the answer of a row in fields of their own; None for one that is not there."""
    for question, answer in _PAIRS:
        if question in fields and answer in fields:
            query, response = fields[question], fields[answer]
            if question == "instruction" and fields.get("input"):
                query = f"{query}\n{fields['input']}" if isinstance(query, str) else query
            if isinstance(query, list) and isinstance(response, list):  # TRL's conversational prompt and completion.
                found = _from_conversation(question, [*query, *response])
                if found.system or found.images:
                    raise RowError(f"{question!r} has a system message or images: give the row as 'messages'")
                return found.query, found.response
            return query, response
    if "query" not in fields and "response" not in fields:
        known = ", ".join(f"{question!r} and {answer!r}" for question, answer in _PAIRS)
        names = ", ".join(map(repr, list(fields)[:8])) or "nothing"
        raise RowError(f"query is missing: the row has {names}; known are {known}, 'messages' and 'conversations'")
    return fields.get("query"), fields.get("response")


@dataclass(frozen=True)
class _Conversation:
    """One question and its answer, with the images of the question and the system message, empty if there is none."""

    query: str
    response: str
    images: list[str]
    system: str


def _from_conversation(layout: str, turns: Any) -> _Conversation:
    """Return the content of a conversation of one user and one assistant message."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{layout!r} must be a list of messages, this is {kind_of(turns)}")
    roles = [_role(layout, turn) for turn in turns]
    system = ""
    if roles[:1] == ["system"]:
        (system, drawn), turns, roles = _content(layout, turns[0]), turns[1:], roles[1:]
        if drawn:
            raise RowError(f"{layout!r} has an image in the system message: give it with the question")
    if roles != ["user", "assistant"]:
        raise RowError(f"{layout!r} has the turns {', '.join(roles) or 'none'}: {_ONE_PAIR}")
    query, images = _content(layout, turns[0])
    response, drawn = _content(layout, turns[1])
    if drawn:
        raise RowError(f"{layout!r} has an image in the assistant's message: answers are text")
    return _Conversation(query, response, images, system.strip())


def _role(layout: str, turn: Mapping[str, Any]) -> str:
    name = turn.get("role", turn.get("from"))
    if not isinstance(name, str) or name.lower() not in _ROLES:
        raise RowError(f"{layout!r} has a message of role {str(name)[:40]!r}; known are {', '.join(_ROLES)}")
    return _ROLES[name.lower()]


def _content(layout: str, turn: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the text of a message, with a placeholder for each of its images, and the images."""
    content = turn.get("content", turn.get("value"))
    if turn.get("tool_calls"):
        raise RowError(f"{layout!r} has tool calls, which are not evaluated: give rows whose answers are text")
    if content is None:
        return "", []
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise RowError(f"{layout!r} has a message whose content is {kind_of(content)}")
    texts, images = [], []
    for part in content:
        text, image = _part(layout, part)
        texts.append(text)
        images += [image] if image is not None else []
    return "".join(texts), images


def _part(layout: str, part: Any) -> tuple[str, str | None]:
    match part:
        case str():
            return part, None
        case {"type": "text", "text": str(text)}:
            return text, None
        case {"type": "image" | "image_url"}:
            found = next((part[key] for key in _IMAGE_KEYS if part.get(key) is not None), None)
            return IMAGE_PLACEHOLDER, None if found is None else _path(found)
        case _:
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise RowError(f"{layout!r} has a part of type {str(kind)[:40]!r}; known are text and image")


def _images(fields: Mapping[str, Any]) -> list[str]:
    given = [name for name in _IMAGE_FIELDS if fields.get(name)]
    if len(given) > 1:
        raise RowError("it has both images and image: give one of the two")
    if not given:
        unusual = next((name for name in _IMAGE_FIELDS if name in fields and fields[name] not in ([], "", {})), None)
        if unusual is not None:
            raise RowError(f"{unusual} must be a list of paths, this is {kind_of(fields[unusual])}")
        return []
    value = fields[given[0]]
    if isinstance(value, list):
        return [_path(image, given[0]) for image in value]
    return [_path(value, given[0])]


def _path(image: Any, name: str = "image") -> str:
    """Return the path in an image's entry: a string, or an object as the datasets library and OpenAI write it."""
    if isinstance(image, dict):
        found = next((image[key] for key in _IMAGE_KEYS if isinstance(image.get(key), str | dict)), None)
        if found is None and image.get("bytes"):
            raise RowError(f"{name} holds the bytes of an image: save it to a file and give its path")
        return _path(found, name)
    if not isinstance(image, str) or not image:
        raise RowError(f"{name} must be a list of paths")
    if image.startswith("data:"):
        raise RowError(f"{name} holds an image as base64 text: save it to a file and give its path")
    if image.startswith(("http://", "https://")):
        raise RowError(f"{name} is the address {image[:60]!r}: download it and give the path of the file")
    return image.removeprefix("file://")


def _only_source(images: list[str], inside: Sequence[str], layout: str) -> list[str]:
    """Return the images of a row, which stand either in a field of their own or in its text."""
    if images and inside:
        raise RowError(f"it has images in a field of their own and in {layout}: give them once")
    return images or list(inside)
