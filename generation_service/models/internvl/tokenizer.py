"""The tokenizer and conversation form of an original InternVL folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import Qwen2Tokenizer

from generation_service.models.chat import load_tokenizer
from generation_service.models.folder import read_json
from generation_service.models.internvl.conversation import IMAGE_TOKEN, conversation_form, conversation_pieces
from generation_service.models.internvl.sentencepiece import from_sentencepiece
from generation_service.models.pieces import PieceTokenizer
from infra.contract.errors import CheckpointError
from infra.contract.prompt import Prompt

_SENTENCEPIECE = "tokenizer.model"
_CONFIG = "tokenizer_config.json"
_ADDED = "added_tokens.json"


class OriginalChat:
    """Reads conversations as the folder's model was trained to. No code of the folder is run."""

    def __init__(self, folder: Path, template: str, image_suffix: str | None = None) -> None:
        self.form = conversation_form(folder, template)
        self._image_suffix = image_suffix
        config = read_json(folder / _CONFIG)
        from_pieces = (folder / _SENTENCEPIECE).is_file() or "Qwen2" not in str(config.get("tokenizer_class"))
        backend = _sentencepiece(folder, config) if from_pieces else _qwen2(folder)
        self._tokenizer = PieceTokenizer(backend)
        self.name = f"{config.get('tokenizer_class')} from {_SENTENCEPIECE if from_pieces else 'vocab.json'}"
        self.special = self._tokenizer.special
        self.longest_token = self._tokenizer.longest_token
        self.decode = self._tokenizer.decode
        self._begin = _begin(config) if from_pieces else ""
        for token in filter(None, (self.form.end, IMAGE_TOKEN, self._begin)):
            if token not in self.special:
                raise CheckpointError(
                    f"{folder}: the tokenizer has no special token {token}: give the complete folder, {_CONFIG} and "
                    f"{_ADDED} included",
                    path=str(folder),
                )

    def __len__(self) -> int:
        """Tokens of the vocabulary, the special ones included."""
        return len(self._tokenizer)

    def encode(self, prompt: Prompt) -> list[int]:
        """Return the ids of `prompt` with the answer's turn opened, one `<IMG_CONTEXT>` an image."""
        pieces = conversation_pieces(prompt, self.form, self._image_suffix)
        return self._tokenizer.encode([(self._begin, True), *pieces])


def _begin(config: dict[str, Any]) -> str:
    """Return the token that a conversation begins with, empty without one."""
    token = config.get("bos_token") or "<s>"
    return str(token["content"] if isinstance(token, dict) else token) if config.get("add_bos_token", True) else ""


def _qwen2(folder: Path) -> Tokenizer:
    """Return the byte-level tokenizer. transformers would build an empty one for a folder without its files."""
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
    """Return the tokens beside the sentencepiece model by id: tokenizer_config.json's, and added_tokens.json's."""
    listed = config.get("added_tokens_decoder") or {}
    older = read_json(folder / _ADDED) if (folder / _ADDED).is_file() else {}
    found = {int(number): AddedToken(content, special=True, normalized=False) for content, number in older.items()}
    return found | {
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
