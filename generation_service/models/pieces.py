"""Pieces of a rendered conversation -> token ids, where only the template's pieces can hold special tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer

Piece = tuple[str, bool]
"""A text, and whether the template wrote it (rather than a caller)."""


class PieceTokenizer:
    """A tokenizer under which a special token that a caller spells out, such as `<|im_end|>`, is ordinary characters.

    Any other text gets the ids of the whole conversation tokenised at once.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self._decoder = Tokenizer.from_str(backend.to_str())
        self._added = {
            token.content: (number, token)
            for number, token in self._decoder.get_added_tokens_decoder().items()
            if token.special
        }
        self.special = {content: number for content, (number, _) in self._added.items()}
        self._plain = _without(self._decoder, self.special)
        self.longest_token = max(map(len, self._plain.get_vocab()))
        by_length = sorted(self.special, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(token) for token in by_length) or r"(?!)")

    def __len__(self) -> int:
        """Tokens of the vocabulary, the special ones included."""
        return int(self._decoder.get_vocab_size())

    def encode(self, pieces: Iterable[Piece]) -> list[int]:
        """Return the ids of a conversation's pieces in order."""
        tokens: list[int] = []
        ordinary = ""
        before: AddedToken | None = None
        for text, from_template in pieces:
            start = 0
            for match in self._pattern.finditer(text) if from_template else ():
                number, token = self._added[match.group()]
                tokens += self._ordinary(ordinary + text[start : match.start()], before, token)
                tokens.append(number)
                ordinary, start, before = "", match.end(), token
            ordinary += text[start:]
        return tokens + self._ordinary(ordinary, before, None)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens`, special tokens left out."""
        return str(self._decoder.decode(list(tokens), skip_special_tokens=True))

    def _ordinary(self, text: str, before: AddedToken | None, after: AddedToken | None) -> list[int]:
        """Return the ids of the text between two special tokens, which may swallow the spaces beside them."""
        if before is not None and before.rstrip:
            text = text.lstrip()
        if after is not None and after.lstrip:
            text = text.rstrip()
        return list(self._plain.encode(text, add_special_tokens=False).ids) if text else []


def _without(tokenizer: Tokenizer, special: Iterable[str]) -> Tokenizer:
    """Return a copy of `tokenizer` that reads the characters of its special tokens as any others."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in special]
    return Tokenizer.from_str(json.dumps(spec))
