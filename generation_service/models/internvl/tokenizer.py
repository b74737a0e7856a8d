"""The tokenizer and conversation template of an original InternVL folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import Qwen2Tokenizer

from generation_service.models.chat import load_tokenizer
from generation_service.models.folder import read_json
from generation_service.models.internvl.conversation import IMAGE_TOKEN, conversation_segments, conversation_template
from generation_service.models.internvl.sentencepiece import from_sentencepiece
from generation_service.models.segments import SegmentTokenizer
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt

_SENTENCEPIECE = "tokenizer.model"
_CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"


class OriginalChat:
    """Encodes conversations in the format the folder's model was trained on. Runs no code of the folder."""

    def __init__(self, folder: Path, template: str, image_suffix: str | None = None) -> None:
        self.template = conversation_template(folder, template)
        self._image_suffix = image_suffix
        config = read_json(folder / _CONFIG)
        uses_sentencepiece = _uses_sentencepiece(folder, config)
        backend = _sentencepiece(folder, config) if uses_sentencepiece else _qwen2(folder)
        self._tokenizer = SegmentTokenizer(backend)
        self.name = f"{config.get('tokenizer_class')} from {_SENTENCEPIECE if uses_sentencepiece else 'vocab.json'}"
        self.special = self._tokenizer.special
        self.longest_token = self._tokenizer.longest_token
        self.largest_token = self._tokenizer.largest_token
        self.decode = self._tokenizer.decode
        self._begin = _begin(config) if uses_sentencepiece else ""
        for token in filter(None, (self.template.end, IMAGE_TOKEN, self._begin)):
            if token not in self.special:
                raise CheckpointError(
                    f"{folder}: the tokenizer has no special token {token}: give the complete folder, {_CONFIG} and "
                    f"{_ADDED} included",
                    path=str(folder),
                )

    def __len__(self) -> int:
        """Vocabulary size, special tokens included."""
        return len(self._tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the assistant's turn opened, and one `<IMG_CONTEXT>` per image."""
        segments = conversation_segments(prompt, self.template, self._image_suffix)
        return self._tokenizer.encode([(self._begin, True), *segments])


def _begin(config: dict[str, Any]) -> str:
    """Return the token that starts a conversation, empty if there is none."""
    token = config.get("bos_token") or "<s>"
    return str(token["content"] if isinstance(token, dict) else token) if config.get("add_bos_token", True) else ""


def _uses_sentencepiece(folder: Path, config: dict[str, Any]) -> bool:
    """Return whether the vocabulary is a sentencepiece model. transformers 5 names a byte-level one as it likes."""
    byte_level = "Qwen2" in str(config.get("tokenizer_class")) or (folder / "tokenizer.json").is_file()
    return (folder / _SENTENCEPIECE).is_file() or not byte_level


def _qwen2(folder: Path) -> Tokenizer:
    """Load the byte-level tokenizer. transformers builds an empty one for a folder without vocabulary files."""
    if not (folder / "tokenizer.json").is_file():
        for name in ("vocab.json", "merges.txt"):
            if not (folder / name).is_file():
                raise CheckpointError(
                    f"{folder} has no {name}: give the complete folder as it was downloaded", path=str(folder / name)
                )
    backend: Tokenizer = load_tokenizer(folder, Qwen2Tokenizer).backend_tokenizer
    return backend


def _sentencepiece(folder: Path, config: dict[str, Any]) -> Tokenizer:
    return from_sentencepiece(
        folder / _SENTENCEPIECE, _added_tokens(folder, config), keep_prefix=bool(config.get("legacy", True))
    )


def _added_tokens(folder: Path, config: dict[str, Any]) -> dict[int, AddedToken]:
    """Return the tokens added to the sentencepiece model, by id, from tokenizer_config.json and added_tokens.json."""
    listed = config.get("added_tokens_decoder") or {}
    older = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
    tokens = {int(number): AddedToken(content, special=True, normalized=False) for content, number in older.items()}
    return tokens | {
        int(number): AddedToken(
            token["content"],
            lstrip=bool(token.get("lstrip")),
            rstrip=bool(token.get("rstrip")),
            single_word=bool(token.get("single_word")),
            normalized=bool(token.get("normalized")),
            special=bool(token.get("special")),
        )
        for number, token in listed.items()
    }
