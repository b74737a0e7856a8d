"""Conversation -> segments of text, by a chat template that treats the callers' texts as it would in transformers."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from jinja2 import TemplateError

from generation_service.models.segments import Segment
from infra.contract.errors import CheckpointError, InvalidArgumentError
from infra.contract.prompt import Message, Prompt, Role, TextPart

Render = Callable[[list[dict[str, Any]]], str]
"""A chat template: messages of a role and a content, which is a string or a list of parts -> text."""

_BEGIN, _END = "\ue000", "\ue001"
_SYSTEM_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class TemplateTraits:
    """What a chat template takes, found out by rendering short conversations.

    `string_content` and `part_content`: the content of a message may be a string, or a list of parts. `system_role`: it
    takes a system message before the first user's. `after_answer` follows the text of an assistant's message.
    """

    string_content: bool
    part_content: bool
    system_role: bool
    after_answer: str

    @classmethod
    def of(cls, render: Render, where: str) -> TemplateTraits:
        """Return the traits of a template. Raises CheckpointError naming `where` if it renders no question."""
        string, parts = _Probe(render, parts=False), _Probe(render, parts=True)
        takes_string, takes_parts = string.pieces("user") is not None, parts.pieces("user") is not None
        if not (takes_string or takes_parts):
            raise CheckpointError(
                f"{where} renders no question: {string.failure}; give another template with --chat-template FILE"
            )
        probe = string if takes_string else parts
        answered = probe.pieces("user", "assistant", "user")
        return cls(
            string_content=takes_string,
            part_content=takes_parts,
            system_role=probe.pieces("system", "user") is not None,
            after_answer=answered[2] if answered else "",
        )


class ConversationRenderer:
    """Renders prompts by a chat template as transformers would, and tells the template's text from the callers'.

    Most templates insert a text unchanged but for whitespace at its ends. They are rendered with an unpredictable mark
    in place of each text, which gives both the whole and the origin of its characters. A template that looks into a
    text, or cuts it, is rendered with the text itself; its special tokens, if it spells any out, are replaced by marks.
    """

    def __init__(self, render: Render, special: Sequence[str], where: str) -> None:
        self._template = render
        self.traits = TemplateTraits.of(render, where)
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def segments(self, prompt: Prompt) -> list[Segment]:
        """Return the rendered conversation in order, each segment with whether the template wrote it.

        Raises InvalidArgumentError with the template's message if it refuses the conversation.
        """
        texts = [part.text for message in prompt.messages for part in message.parts if isinstance(part, TextPart)]
        whole = self._render(prompt, texts)
        marks = _Marks()
        segments = list(marks.split(self._render(prompt, [marks.around(text) for text in texts])))
        if "".join(text for text, _ in segments) != whole:
            return self._altered(prompt, texts, segments)
        _check_arrived(prompt, marks.found)
        return segments

    def _altered(self, prompt: Prompt, texts: Sequence[str], skeleton: Sequence[Segment]) -> list[Segment]:
        """Return the segments of a conversation whose texts the template alters.

        All text counts as the template's, so that its special tokens must be those that it writes around any text.
        """
        marks = _Marks()
        escaped = [self._special.sub(lambda found: marks.replace(found.group()), text) for text in texts]
        segments = list(marks.split(self._render(prompt, escaped)))
        if self._special_of(segments) != self._special_of(skeleton):
            raise InvalidArgumentError(
                "messages", "the base model's chat template makes special tokens of these texts; send other texts"
            )
        return segments

    def _special_of(self, segments: Sequence[Segment]) -> list[str]:
        return [token for text, from_template in segments if from_template for token in self._special.findall(text)]

    def _render(self, prompt: Prompt, texts: Sequence[str]) -> str:
        try:
            return self._template(self._conversation(prompt, iter(texts)))
        except TemplateError as error:
            raise InvalidArgumentError(
                "messages", f"the base model's chat template refuses this conversation: {error.message}"
            ) from error
        except Exception as error:  # A template is a program of the folder's.
            raise InvalidArgumentError(
                "messages",
                f"the base model's chat template cannot render this conversation: {type(error).__name__}: {error}",
            ) from error

    def _conversation(self, prompt: Prompt, texts: Iterator[str]) -> list[dict[str, Any]]:
        parts = bool(prompt.images) or not self.traits.string_content
        written = [_written(message, texts) for message in prompt.messages]
        if not self.traits.system_role:
            written = _without_system(written)
        return [{"role": role.value, "content": content if parts else _joined(content)} for role, content in written]


def _check_arrived(prompt: Prompt, found: Collection[int]) -> None:
    """Raise InvalidArgumentError if a text of the user or the system is not among those in the rendering, by number."""
    numbers = count()
    for turn, message in enumerate(prompt.messages):
        for part in message.parts:
            if not isinstance(part, TextPart):
                continue
            if next(numbers) not in found and message.role is not Role.ASSISTANT and part.text.strip():
                raise InvalidArgumentError(
                    f"messages[{turn}]", "the base model's chat template leaves out the text of this message"
                )


_Written = tuple[Role, list[dict[str, str]]]
"""A message as its role and parts."""


def _written(message: Message, texts: Iterator[str]) -> _Written:
    return message.role, [
        {"type": "text", "text": next(texts)} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.parts
    ]


def _without_system(messages: list[_Written]) -> list[_Written]:
    """Put the text of the first system message before the first user message's, as the models without one expect."""
    (first, system), *rest = messages
    if first is not Role.SYSTEM or not rest or rest[0][0] is not Role.USER:
        return messages
    separator = {"type": "text", "text": _SYSTEM_SEPARATOR}
    return [(Role.USER, [*system, separator, *rest[0][1]]), *rest[1:]]


def _joined(content: list[dict[str, str]]) -> str:
    return "".join(part["text"] for part in content)


class _Marks:
    """Stand-ins for texts in one rendering, which no text can contain because they are unpredictable."""

    def __init__(self) -> None:
        # Digits only: filters that change the case of a text leave them as they are.
        self._nonce = f"{secrets.randbelow(10**18):018d}"
        self._texts: list[str] = []
        self.found: set[int] = set()

    def replace(self, text: str) -> str:
        """Return a mark for `text`."""
        self._texts.append(text)
        return f"{_BEGIN}{self._nonce}:{len(self._texts) - 1}{_END}"

    def around(self, text: str) -> str:
        """Return a mark for `text` between the whitespace at its ends, which templates trim."""
        core = text.strip()
        before = text[: len(text) - len(text.lstrip())]
        return before + self.replace(core) + (text[len(before) + len(core) :])

    def split(self, rendered: str) -> Iterator[Segment]:
        """Yield the segments of a rendering: text of the template, and the texts at the marks, which are `found`."""
        for index, piece in enumerate(re.split(f"{_BEGIN}{self._nonce}:([0-9]+){_END}", rendered)):
            if index % 2:
                self.found.add(int(piece))
                yield self._texts[int(piece)], False
            else:
                yield piece, True


class _Probe:
    """Renders short conversations, with strings or lists of parts as contents."""

    def __init__(self, render: Render, parts: bool) -> None:
        self._render, self._parts = render, parts
        self.failure = "it leaves out the text of a message"

    def pieces(self, *roles: str) -> list[str] | None:
        """Return the template's text before, between and after one text for each role; None if it takes them not."""
        marks = _Marks()
        unread = secrets.token_hex(8)  # A key that no template reads: it shows if the list itself is printed.
        messages = [{"role": role, "content": self._content(marks.replace(role), unread)} for role in roles]
        try:
            rendered = self._render(messages)
        except Exception as error:  # A template is a program of the folder's.
            self.failure = f"{type(error).__name__}: {error}"
            return None
        segments = list(marks.split(rendered))
        if unread in rendered or sorted(text for text, from_template in segments if not from_template) != sorted(roles):
            return None
        return [text for text, from_template in segments if from_template]

    def _content(self, text: str, unread: str) -> object:
        return [{"type": "text", "text": text, unread: ""}] if self._parts else text
