"""Conversation -> token ids by the checkpoint's chat template, in which no caller's text can pose as the template."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from generation_service.models.folder import read_json
from generation_service.models.segments import Segment, SegmentTokenizer
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt, TextPart

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_OWN_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
_TEMPLATE_FILE = "chat_template.json"
_BEGIN, _END = "\ue000", "\ue001"


class ChatTokenizer:
    """The tokenizer and chat template of a checkpoint folder.

    The template is rendered with unpredictable marks in place of the callers' texts, which are inserted afterwards, so
    that a special token a caller spells out, such as `<|im_end|>`, is tokenised as ordinary characters. Any other text
    gives the same ids as transformers.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._renderer = load_tokenizer(folder)
        self._tokenizer = SegmentTokenizer(self._renderer.backend_tokenizer)
        self.special = self._tokenizer.special
        self.longest_token = self._tokenizer.longest_token
        self.largest_token = self._tokenizer.largest_token
        self.decode = self._tokenizer.decode
        self.template_source = _template_source(folder) if self._renderer.chat_template else _TEMPLATE_FILE
        self._template = self._renderer.chat_template or _template_from_file(folder)

    def __len__(self) -> int:
        """Vocabulary size, special tokens included."""
        return len(self._tokenizer)

    @property
    def name(self) -> str:
        """The class of the tokenizer."""
        return str(type(self._renderer).__name__)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the assistant's turn opened, and one image token for each image."""
        return self._tokenizer.encode(self._segments(prompt))

    def _segments(self, prompt: Prompt) -> Iterator[Segment]:
        """Yield the rendered conversation in order, each segment with whether the template wrote it."""
        nonce = secrets.token_hex(8)
        texts: list[str] = []
        conversation = []
        for message in prompt.messages:
            content: list[dict[str, str]] = []
            for part in message.parts:
                if isinstance(part, TextPart):
                    content.append({"type": "text", "text": f"{_BEGIN}{nonce}:{len(texts)}{_END}"})
                    texts.append(part.text)
                else:
                    content.append({"type": "image"})
            conversation.append({"role": message.role.value, "content": content})
        rendered = self._render(conversation)
        pieces = re.split(f"{_BEGIN}{nonce}:([0-9]+){_END}", rendered)
        for index, piece in enumerate(pieces):  # Odd pieces are the captured numbers of the marks.
            yield (texts[int(piece)], False) if index % 2 else (str(piece), True)

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        return str(
            self._renderer.apply_chat_template(
                conversation, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )


def expand_images(tokens: Sequence[int], image_token: int, runs: Sequence[Sequence[int]]) -> list[int]:
    """Replace each image's one token by its run of tokens, in reading order.

    Raises CheckpointError if the template placed another number of images.
    """
    if tokens.count(image_token) != len(runs):
        raise CheckpointError(
            f"the chat template places {tokens.count(image_token)} image tokens for {len(runs)} images: "
            "use the chat template that the base model was published with"
        )
    remaining = iter(runs)
    expanded: list[int] = []
    for token in tokens:
        expanded += next(remaining) if token == image_token else [token]
    return expanded


def load_tokenizer(folder: Path, tokenizer_class: Any = AutoTokenizer) -> Any:
    """Load the folder's tokenizer with transformers. Raises CheckpointError if there is no readable one.

    Checks for a vocabulary file first, because transformers builds an empty tokenizer for a folder without one.
    """
    try:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise FileNotFoundError(f"it has none of {', '.join(_VOCABULARIES)}")
        return tokenizer_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder} has no readable tokenizer ({error}): give the complete folder, tokenizer.json included",
            path=str(folder),
        ) from error


def _template_source(folder: Path) -> str:
    """Return the file that transformers reads the template from."""
    return next((name for name in _OWN_TEMPLATES if (folder / name).is_file()), _OWN_TEMPLATES[-1])


def _template_from_file(folder: Path) -> str:
    if (folder / _TEMPLATE_FILE).is_file():
        template = read_json(folder / _TEMPLATE_FILE).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(
        f"{folder} has no chat template: put the chat_template of the base model into tokenizer_config.json",
        path=str(folder),
    )
