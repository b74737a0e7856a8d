"""Conversion of prompt.proto."""

from __future__ import annotations

from collections.abc import Iterable
from typing import assert_never

from loraretriever.v1 import prompt_pb2

from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart
from infra.runtime.wire.values import enum_from_proto, enum_to_proto


def part_from_proto(message: prompt_pb2.Part) -> Part:
    """Return the text or image of a part."""
    match message.WhichOneof("content"):
        case "text":
            return TextPart(message.text)
        case "image":
            return ImagePart(message.image.data, message.image.mime_type)
        case _:
            raise InvalidArgumentError("content", "the part is empty; set text or image")


def part_to_proto(part: Part) -> prompt_pb2.Part:
    """Return a part as its message."""
    match part:
        case TextPart():
            return prompt_pb2.Part(text=part.text)
        case ImagePart():
            return prompt_pb2.Part(image=prompt_pb2.Image(data=part.data, mime_type=part.mime_type))
        case _:
            assert_never(part)


def message_from_proto(message: prompt_pb2.Message) -> Message:
    """Return one turn; an unset role is the user's."""
    role = enum_from_proto(Role, prompt_pb2.Role, message.role, "role") or Role.USER
    parts = []
    for index, part in enumerate(message.parts):
        with field_path(f"parts[{index}]"):
            parts.append(part_from_proto(part))
    return Message(role, tuple(parts))


def message_to_proto(message: Message) -> prompt_pb2.Message:
    """Return one turn as its message."""
    role = enum_to_proto(prompt_pb2.Role, message.role)
    return prompt_pb2.Message(role=role, parts=[part_to_proto(part) for part in message.parts])


def prompt_from_proto(message: prompt_pb2.Prompt) -> Prompt:
    """Return a prompt."""
    messages = []
    for index, turn in enumerate(message.messages):
        with field_path(f"messages[{index}]"):
            messages.append(message_from_proto(turn))
    return Prompt(tuple(messages))


def prompt_to_proto(prompt: Prompt) -> prompt_pb2.Prompt:
    """Return a prompt as its message."""
    return prompt_pb2.Prompt(messages=[message_to_proto(message) for message in prompt.messages])


def prompts_from_proto(messages: Iterable[prompt_pb2.Prompt]) -> tuple[Prompt, ...]:
    """Return the prompts. Field paths of errors start with "prompts[i]"; an empty list is an error of "prompts"."""
    prompts = []
    for index, message in enumerate(messages):
        with field_path(f"prompts[{index}]"):
            prompts.append(prompt_from_proto(message))
    if not prompts:
        raise InvalidArgumentError("prompts", "the list is empty; send at least one prompt")
    return tuple(prompts)
