"""InternVL's conversation templates, which original folders refer to by name only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from generation_service.models.segments import Segment
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
class ConversationTemplate:
    """Role prefixes, the separator after each turn, the default system message, and the token that ends an answer."""

    system: str
    user: str
    assistant: str
    separator: str
    system_message: str
    end: str


_CHATML = ConversationTemplate(
    "<|im_start|>system\n",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n",
    "<|im_end|>",
    _INTERNVL2,
    "<|im_end|>",
)
_TEMPLATES = {
    "internlm2-chat": _CHATML,
    "Hermes-2": _CHATML,
    "phi3-chat": ConversationTemplate(
        "<|system|>\n", "<|user|>\n", "<|assistant|>\n", "<|end|>", _INTERNVL2, "<|end|>"
    ),
    "internvl2_5": ConversationTemplate(
        _CHATML.system, _CHATML.user, _CHATML.assistant, "<|im_end|>\n", _INTERNVL2_5, "<|im_end|>"
    ),
}


def conversation_template(folder: Path, name: str) -> ConversationTemplate:
    """Return the template that config.json names. Raises CheckpointError if the name is unknown."""
    if name not in _TEMPLATES:
        raise CheckpointError(
            f"{folder / 'config.json'} names the conversation template {name!r}; known are {', '.join(_TEMPLATES)}",
            path=str(folder),
        )
    return _TEMPLATES[name]


def conversation_segments(
    prompt: Prompt, template: ConversationTemplate, image_suffix: str | None = None
) -> Iterator[Segment]:
    """Yield the segments of `prompt` with the assistant's turn opened, and one `<IMG_CONTEXT>` per image.

    Each image is followed by `image_suffix`. None: the format that InternVL documents, a line break unless the next
    text starts with whitespace; with several images, those not preceded by text are numbered ("Image-1: ").
    """
    first, *rest = prompt.messages
    turns = rest if first.role is Role.SYSTEM else prompt.messages
    yield template.system, True
    if first.role is Role.SYSTEM:
        yield from _parts(first, _Images(image_suffix, several=len(prompt.images) > 1))
    else:
        yield template.system_message, True
    yield template.separator, True
    images = _Images(image_suffix, several=len(prompt.images) > 1)
    for turn, message in enumerate(turns, start=len(prompt.messages) - len(turns)):
        yield _opening(template, message.role, turn), True
        yield from _parts(message, images)
        yield template.separator, True
    yield template.assistant, True


@dataclass
class _Images:
    """Renders the images of a prompt; `count` were rendered so far."""

    suffix: str | None
    several: bool
    count: int = 0

    def render(self, before: Part | None, after: Part | None) -> str:
        """Return the next image, given the parts before and after it in the turn."""
        self.count += 1
        if self.suffix is not None:
            return _IMAGE + self.suffix
        numbered = self.several and not isinstance(before, TextPart)
        spaced = isinstance(after, TextPart) and after.text[:1].isspace()
        return (f"Image-{self.count}: " if numbered else "") + _IMAGE + ("" if spaced else "\n")


def _parts(message: Message, images: _Images) -> Iterator[Segment]:
    neighbours: Sequence[Part | None] = (None, *message.parts, None)
    for index, part in enumerate(message.parts):
        if isinstance(part, ImagePart):
            yield images.render(neighbours[index], neighbours[index + 2]), True
        else:
            yield part.text, False


def _opening(template: ConversationTemplate, role: Role, turn: int) -> str:
    if role is Role.SYSTEM:
        raise InvalidArgumentError(
            f"messages[{turn}].role", "InternVL takes one system message, before all others; put the text there"
        )
    return template.user if role is Role.USER else template.assistant
