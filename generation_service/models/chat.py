"""A conversation -> token ids, by the checkpoint's chat template, and no text can pose as the template."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer

from generation_service.models.folder import read_json
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt, TextPart

_TEMPLATE_FILE = "chat_template.json"
_BEGIN, _END = "\ue000", "\ue001"


class ChatTokenizer:
    """The tokenizer and chat template of a checkpoint folder.

    Texts are rendered as marks that no caller can know, and put in afterwards: a special token that a caller spells
    out, such as `<|im_end|>`, is tokenised as ordinary characters. Any other text gives transformers' own ids.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._renderer = self._load(folder)
        backend: Tokenizer = self._renderer.backend_tokenizer
        self._decoder = Tokenizer.from_str(backend.to_str())
        self.special = {
            token.content: number for number, token in self._decoder.get_added_tokens_decoder().items() if token.special
        }
        self._plain = _without(self._decoder, self.special)
        self.longest_token = max(map(len, self._plain.get_vocab()))
        self.template_source = "tokenizer_config.json" if self._renderer.chat_template else _TEMPLATE_FILE
        self._template = self._renderer.chat_template or _template_beside(folder)
        by_length = sorted(self.special, key=len, reverse=True)
        self._special_pattern = re.compile("|".join(re.escape(token) for token in by_length) or r"(?!)")

    def __len__(self) -> int:
        """Tokens of the vocabulary, the special ones included."""
        return int(self._decoder.get_vocab_size())

    @property
    def name(self) -> str:
        """What kind of tokenizer it is."""
        return str(type(self._renderer).__name__)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the answer's turn opened; each image as the template marks it."""
        tokens: list[int] = []
        ordinary = ""
        for piece, from_template in self._pieces(prompt):
            start = 0
            for match in self._special_pattern.finditer(piece) if from_template else ():
                tokens += self._ordinary(ordinary + piece[start : match.start()])
                tokens.append(self.special[match.group()])
                ordinary, start = "", match.end()
            ordinary += piece[start:]
        return tokens + self._ordinary(ordinary)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""
        return str(self._decoder.decode(list(tokens), skip_special_tokens=True))

    def _ordinary(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []

    def _pieces(self, prompt: Prompt) -> Iterator[tuple[str, bool]]:
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

    @staticmethod
    def _load(folder: Path) -> Any:
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:
            raise CheckpointError(
                f"{folder} has no readable tokenizer ({error}): give the complete folder, tokenizer.json included",
                path=str(folder),
            ) from error


def _template_beside(folder: Path) -> str:
    if (folder / _TEMPLATE_FILE).is_file():
        template = read_json(folder / _TEMPLATE_FILE).get("chat_template")
        if isinstance(template, str):
            return template
    raise CheckpointError(
        f"{folder} has no chat template: put the chat_template of the base model into tokenizer_config.json",
        path=str(folder),
    )


def _without(tokenizer: Tokenizer, special: dict[str, int]) -> Tokenizer:
    """Return a copy of `tokenizer` that reads the characters of its special tokens as any others."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in special]
    return Tokenizer.from_str(json.dumps(spec))
