"""InternVL's forms of a conversation, which original folders name and do not hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generation_service.models.pieces import Piece
from infra.contract.errors import CheckpointError, InvalidArgumentError
from infra.contract.prompt import ImagePart, Message, Part, Prompt, Role, TextPart

IMAGE_START, IMAGE_TOKEN, IMAGE_END = "<img>", "<IMG_CONTEXT>", "</img>"
_IMAGE = f"{IMAGE_START}{IMAGE_TOKEN}{IMAGE_END}"

_INTERNVL2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class ConversationForm:
    """What stands before each turn and after it, the system message of a prompt without one, what ends an answer."""

    system: str
    user: str
    assistant: str
    separator: str
    system_message: str
    end: str


_CHATML = ConversationForm(
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_end|>",
    _INTERNVL2,
    "<|im_end|>",
)
_FORMS = {
    "internlm2-chat": _CHATML,
    "Hermes-2": _CHATML,
    "phi3-chat": ConversationForm("<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>", _INTERNVL2, "<|end|>"),
    "internvl2_5": ConversationForm(
        _CHATML.system, _CHATML.user, _CHATML.assistant, "<|im_end|>\n", _INTERNVL2_5, "<|im_end|>"
    ),
}


def conversation_form(folder: Path, name: str) -> ConversationForm:
    """Return the form that config.json calls `name`. Raises CheckpointError when there is none of that name."""
    if name not in _FORMS:
        raise CheckpointError(
            f"{folder / 'config.json'} names the conversation template {name!r}; known are {', '.join(_FORMS)}",
            path=str(folder),
        )
    return _FORMS[name]


def conversation_pieces(prompt: Prompt, form: ConversationForm, image_suffix: str | None = None) -> Iterator[Piece]:
    """Yield the pieces of `prompt` with the answer's turn opened, one `<IMG_CONTEXT>` an image.

    An image is followed by `image_suffix`. None: as InternVL documents it, by a line break unless the text after it
    begins with space of its own, and with several images those at the head of a turn are numbered ("Image-1: ").
    """
    first, *rest = prompt.messages
    spoken = rest if first.role is Role.SYSTEM else prompt.messages
    yield form.system, True
    if first.role is Role.SYSTEM:
        yield from _parts(first, _Images(image_suffix, several=len(prompt.images) > 1))
    else:
        yield form.system_message, True
    yield form.separator, True
    images = _Images(image_suffix, several=len(prompt.images) > 1)
    for turn, message in enumerate(spoken, start=len(prompt.messages) - len(spoken)):
        yield _opening(form, message.role, turn), True
        yield from _parts(message, images)
        yield form.separator, True
    yield form.assistant, True


@dataclass
class _Images:
    """How images are written; `shown` of them were."""

    suffix: str | None
    several: bool
    shown: int = 0

    def write(self, before: Part | None, after: Part | None) -> str:
        """Return the next image between its neighbours in the turn."""
        self.shown += 1
        if self.suffix is not None:
            return _IMAGE + self.suffix
        numbered = self.several and not isinstance(before, TextPart)
        spaced = isinstance(after, TextPart) and after.text[:1].isspace()
        return (f"Image-{self.shown}: " if numbered else "") + _IMAGE + ("" if spaced else "\n")


def _parts(message: Message, images: _Images) -> Iterator[Piece]:
    neighbours: Sequence[Part | None] = (None, *message.parts, None)
    for place, part in enumerate(message.parts):
        if isinstance(part, ImagePart):
            yield images.write(neighbours[place], neighbours[place + 2]), True
        else:
            yield part.text, False


def _opening(form: ConversationForm, role: Role, turn: int) -> str:
    if role is Role.SYSTEM:
        raise InvalidArgumentError(
            f"messages[{turn}].role", "InternVL reads one system message, before all others; put the text there"
        )
    return form.user if role is Role.USER else form.assistant
