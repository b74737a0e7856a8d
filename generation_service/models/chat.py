"""A conversation -> token ids, by the checkpoint's chat template, and no text can pose as the template."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from generation_service.models.folder import read_json
from generation_service.models.pieces import Piece, PieceTokenizer
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt, TextPart

_VOCABULARIES = ("tokenizer.json", "vocab.json", "tokenizer.model")
_OWN_TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
_TEMPLATE_FILE = "chat_template.json"
_BEGIN, _END = "\ue000", "\ue001"


class ChatTokenizer:
    """The tokenizer and chat template of a checkpoint folder.

    Texts are rendered as marks that no caller can know, and put in afterwards: a special token that a caller spells
    out, such as `<|im_end|>`, is tokenised as ordinary characters. Any other text gives transformers' own ids.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._renderer = load_tokenizer(folder)
        self._tokenizer = PieceTokenizer(self._renderer.backend_tokenizer)
        self.special = self._tokenizer.special
        self.longest_token = self._tokenizer.longest_token
        self.decode = self._tokenizer.decode
        self.template_source = _template_source(folder) if self._renderer.chat_template else _TEMPLATE_FILE
        self._template = self._renderer.chat_template or _template_beside(folder)

    def __len__(self) -> int:
        """Tokens of the vocabulary, the special ones included."""
        return len(self._tokenizer)

    @property
    def name(self) -> str:
        """What kind of tokenizer it is."""
        return str(type(self._renderer).__name__)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the answer's turn opened; each image as the template marks it."""
        return self._tokenizer.encode(self._pieces(prompt))

    def _pieces(self, prompt: Prompt) -> Iterator[Piece]:
        """Yield the rendered conversation in order, each piece with whether the template wrote it."""
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
        parts = re.split(f"{_BEGIN}{nonce}:([0-9]+){_END}", rendered)
        for place, piece in enumerate(parts):
            yield (texts[int(piece)], False) if place % 2 else (str(piece), True)

    def _render(self, conversation: list[dict[str, Any]]) -> str:
        return str(
            self._renderer.apply_chat_template(
                conversation, chat_template=self._template, tokenize=False, add_generation_prompt=True
            )
        )


def expand_images(tokens: Sequence[int], image_token: int, runs: Sequence[Sequence[int]]) -> list[int]:
    """Return `tokens` with each image's one token replaced by its run, in reading order.

    Raises CheckpointError when the template has placed another number of images.
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
    """Return transformers' tokenizer of a folder. Raises CheckpointError when there is none that can be read.

    Without any file of a vocabulary, transformers would make up an empty one.
    """
    try:
        if not any((folder / name).is_file() for name in _VOCABULARIES):
            raise FileNotFoundError(f"none of {', '.join(_VOCABULARIES)} is there")
        return tokenizer_class.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(
            f"{folder} has no readable tokenizer ({error}): give the complete folder, tokenizer.json included",
            path=str(folder),
        ) from error


def _template_source(folder: Path) -> str:
    """Return the file that transformers takes the template from."""
    return next((name for name in _OWN_TEMPLATES if (folder / name).is_file()), _OWN_TEMPLATES[-1])


def _template_beside(folder: Path) -> str:
    if (folder / _TEMPLATE_FILE).is_file():
        template = read_json(folder / _TEMPLATE_FILE).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(
        f"{folder} has no chat template: put the chat_template of the base model into tokenizer_config.json",
        path=str(folder),
    )
