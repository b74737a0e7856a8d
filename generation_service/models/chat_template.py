"""A checkpoint's chat template: which file holds it, what form of content it reads, and how it renders messages."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from generation_service.models.folder import read_json
from generation_service.models.segments import Segment
from infra.contract.errors import CheckpointError, ConfigurationError, InvalidArgumentError
from infra.contract.prompt import Message, Prompt, Role, TextPart

_JINJA, _JSON, _TOKENIZER_CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
_FIELD = "chat_template"
_BEGIN, _END = "\ue000", "\ue001"
_SAMPLE = "Plain text"
_REASONING = re.compile(r"(</?think>)")
"""Tags by which templates cut the reasoning out of earlier answers; they stay visible to the template."""


@dataclass(frozen=True)
class TemplateSource:
    """A template's text, and the file it was read from."""

    text: str
    file: str


class _Content(Enum):
    """The form of a message's content that a template reads: one string, or a list of typed parts."""

    STRING = "string"
    PARTS = "parts"


def find_template(folder: Path, override: Path | None = None, loaded: str | None = None) -> TemplateSource:
    """Return the chat template of `folder`, or the one in the file `override`.

    A model's processor writes chat_template.jinja, or chat_template.json in older releases of transformers; both take
    precedence over tokenizer_config.json, which may hold a template for text and tools only. `loaded` is the template
    of the loaded tokenizer, for folders that keep it elsewhere.

    Raises CheckpointError if there is no template, and ConfigurationError if `override` cannot be read.
    """
    if override is not None:
        return TemplateSource(_override(override), str(override))
    if (folder / _JINJA).is_file():
        return TemplateSource(_text_of(folder / _JINJA), _JINJA)
    for name in (_JSON, _TOKENIZER_CONFIG):
        if (folder / name).is_file() and (text := _default_of(read_json(folder / name).get(_FIELD))):
            return TemplateSource(text, name)
    if text := _default_of(loaded):
        return TemplateSource(text, "the tokenizer's file")
    raise CheckpointError(
        f"{folder} has no chat template, as base models that were not trained on conversations: "
        "give one with --chat-template FILE, or use the instruct version of the model",
        path=str(folder),
    )


class ChatTemplate:
    """Renders prompts, with the callers' texts kept apart from what the template writes.

    The template gets an unpredictable mark in place of each text, and the text is inserted afterwards. Whitespace
    around a text stays outside its mark, because many templates strip it.
    """

    def __init__(self, tokenizer: Any, source: TemplateSource) -> None:
        self._tokenizer, self._source = tokenizer, source
        self._form = self._detect_form()
        self.merges_system = not self._accepts_system()

    @property
    def file(self) -> str:
        """The file that the template was read from."""
        return self._source.file

    def segments(self, prompt: Prompt) -> Iterator[Segment]:
        """Yield the rendered prompt in order, with the assistant's turn opened.

        Raises InvalidArgumentError if the template rejects the messages, or leaves out a text of the user or system.
        """
        messages = _with_system_merged(prompt.messages) if self.merges_system else prompt.messages
        merged = len(prompt.messages) - len(messages)
        marks = _Marks()
        conversation = [
            {"role": message.role.value, "content": self._content(message, number, marks)}
            for number, message in enumerate(messages, merged)
        ]
        try:
            rendered = self._render(conversation)
        except Exception as error:  # A template is a program of the folder's, and most reject some order of roles.
            raise InvalidArgumentError("messages", f"the model's chat template rejects them: {error}") from error
        if lost := marks.required - marks.found_in(rendered):
            raise InvalidArgumentError(
                f"messages[{min(lost)}]", "the model's chat template leaves out the text of this message"
            )
        yield from marks.segments(rendered)

    def _content(self, message: Message, number: int, marks: _Marks) -> str | list[dict[str, str]]:
        texts = [
            marks.mark(part.text, message.role, number) if isinstance(part, TextPart) else None
            for part in message.parts
        ]
        if self._form is _Content.STRING and None not in texts:
            return "".join(text for text in texts if text)
        return [{"type": "image"} if text is None else {"type": "text", "text": text} for text in texts]

    def _detect_form(self) -> _Content:
        """Return the form in which the template writes a text into the prompt, unchanged and once."""
        errors = []
        for form in _Content:
            try:
                rendered = self._render([_sample_message("user", form)])
            except Exception as error:  # A template is a program: it may fail in any way.
                errors.append(str(error))
                continue
            if rendered.count(_SAMPLE) == 1 and "'type'" not in rendered:
                return form
        reason = f" ({errors[0]})" if errors else ""
        raise CheckpointError(
            f"{self._source.file}: the chat template does not write a user's text into the prompt{reason}: "
            "give another with --chat-template FILE",
            file=self._source.file,
        )

    def _accepts_system(self) -> bool:
        conversation = [_sample_message("system", self._form), _sample_message("user", self._form)]
        try:
            return self._render(conversation).count(_SAMPLE) == 2
        except Exception:  # Templates without a system role raise.
            return False

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        return str(
            self._tokenizer.apply_chat_template(
                conversation, chat_template=self._source.text, tokenize=False, add_generation_prompt=True
            )
        )


class _Marks:
    """The texts of one prompt, by the marks that stand for them in the rendered template."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self._texts: list[str] = []
        self._messages: list[int] = []
        self.required: set[int] = set()

    def mark(self, text: str, role: Role, message: int) -> str:
        """Return the mark of a text of message number `message`, with the whitespace around it."""
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        pieces = _REASONING.split(core) if role is Role.ASSISTANT else [core]
        marked = "".join(
            piece if number % 2 or not piece else self._add(piece, message) for number, piece in enumerate(pieces)
        )
        if role is not Role.ASSISTANT:
            self.required.add(message)
        return text[:start] + marked + text[start + len(core) :]

    def found_in(self, rendered: str) -> set[int]:
        """Return the messages with a text in `rendered`."""
        return {self._messages[int(number)] for number in re.findall(self._pattern, rendered)}

    def segments(self, rendered: str) -> Iterator[Segment]:
        """Yield the template's text and the callers' texts in order."""
        for index, piece in enumerate(re.split(self._pattern, rendered)):  # Odd pieces are the numbers of marks.
            yield (self._texts[int(piece)], False) if index % 2 else (piece, True)

    @property
    def _pattern(self) -> str:
        return f"{_BEGIN}{self._nonce}:([0-9]+){_END}"

    def _add(self, text: str, message: int) -> str:
        self._texts.append(text)
        self._messages.append(message)
        return f"{_BEGIN}{self._nonce}:{len(self._texts) - 1}{_END}"


def _with_system_merged(messages: Sequence[Message]) -> Sequence[Message]:
    """Put a leading system message's text before the first user message, as templates without a system role expect."""
    if len(messages) < 2 or messages[0].role is not Role.SYSTEM or messages[1].role is not Role.USER:
        return messages
    system, user = messages[0], messages[1]
    return (Message(Role.USER, (*system.parts, TextPart("\n\n"), *user.parts)), *messages[2:])


def _sample_message(role: str, form: _Content) -> dict[str, Any]:
    content = _SAMPLE if form is _Content.STRING else [{"type": "text", "text": _SAMPLE}]
    return {"role": role, "content": content}


def _default_of(value: Any) -> str | None:
    """Return the template in a field that holds one, or several by name."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    if isinstance(value, dict):
        value = value.get("default") or (next(iter(value.values())) if len(value) == 1 else None)
    return value if isinstance(value, str) and value else None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; download it again", path=str(path)) from error


def _override(path: Path) -> str:
    def refuse(reason: object) -> NoReturn:
        raise ConfigurationError(f"--chat-template {path}: {reason}")

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        refuse(error)
    return text if text.strip() else refuse("the file is empty")
