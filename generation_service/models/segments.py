"""Segments of a rendered conversation -> token ids; only the template's segments can contain special tokens."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

Segment = tuple[str, bool]
"""A text, and whether the template wrote it rather than a caller."""


class SegmentTokenizer:
    """A tokenizer for which a special token that a caller spells out, such as `<|im_end|>`, is ordinary text.

    Any other conversation gets the same ids as if it were tokenised as a whole.
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
        # Stands for the special token before a text: some tokenizers insert a space at the start of a prompt only.
        self._stand_in = f"\ue000{secrets.token_hex(8)}\ue001"
        self._plain.add_special_tokens([AddedToken(self._stand_in, normalized=False)])
        self._renumbered = _renumbered(self._plain, self._decoder)
        by_length = sorted(self.special, key=len, reverse=True)
        self._pattern = re.compile("|".join(re.escape(token) for token in by_length) or r"(?!)")
        spec = json.loads(self._decoder.to_str())
        fallback = bool(spec["model"].get("byte_fallback"))
        self._bytes = _ByteFallback(spec, self._decoder.get_added_tokens_decoder()) if fallback else None

    def __len__(self) -> int:
        """Vocabulary size, special tokens included."""
        return int(self._decoder.get_vocab_size())

    @property
    def largest_token(self) -> int:
        """The largest id of the vocabulary, special tokens included."""
        return max(self._decoder.get_vocab(with_added_tokens=True).values())

    @property
    def largest_ordinary_token(self) -> int:
        """The largest id of the vocabulary without the tokens that were added to it."""
        return max(self._decoder.get_vocab(with_added_tokens=False).values())

    def spelling(self, token: int) -> str:
        """Return the content of a token of the vocabulary."""
        return str(self._decoder.id_to_token(token))

    def encode(self, segments: Iterable[Segment]) -> list[int]:
        """Return the ids of a conversation's segments in order."""
        tokens: list[int] = []
        ordinary = ""
        before: AddedToken | None = None
        for text, from_template in segments:
            start = 0
            for match in self._pattern.finditer(text) if from_template else ():
                number, token = self._added[match.group()]
                tokens += self._ordinary(ordinary + text[start : match.start()], before, token)
                tokens.append(number)
                ordinary, start, before = "", match.end(), token
            ordinary += text[start:]
        return tokens + self._ordinary(ordinary, before, None)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens. An incomplete UTF-8 sequence becomes one U+FFFD."""
        if self._bytes is not None:
            return self._bytes.decode(tokens)
        return str(self._decoder.decode(list(tokens), skip_special_tokens=True))

    def _ordinary(self, text: str, before: AddedToken | None, after: AddedToken | None) -> list[int]:
        """Return the ids of the text between two special tokens, which may strip adjacent whitespace."""
        if before is not None and before.rstrip:
            text = text.lstrip()
        if after is not None and after.lstrip:
            text = text.rstrip()
        if not text:
            return []
        stand_in = "" if before is None else self._stand_in
        ids = self._plain.encode(stand_in + text, add_special_tokens=False).ids
        return [self._renumbered.get(token, token) for token in (ids[1:] if stand_in else ids)]


class _ByteFallback:
    """Decodes a vocabulary with byte tokens for rare characters (sentencepiece's byte fallback).

    The decoder of `tokenizers` turns every byte of a run into U+FFFD until the whole run is valid UTF-8, even a line
    break before an unfinished emoji. Its text does not only grow at the end, which streaming requires.
    """

    def __init__(self, spec: dict[str, Any], added: Mapping[int, AddedToken]) -> None:
        vocabulary: dict[str, int] = spec["model"]["vocab"]
        table = {number: piece.replace("▁", " ").encode() for piece, number in vocabulary.items()}
        table |= {vocabulary[name]: bytes([byte]) for byte in range(256) if (name := f"<0x{byte:02X}>") in vocabulary}
        table |= {number: b"" if token.special else token.content.encode() for number, token in added.items()}
        self._table = table
        steps = (spec["decoder"] or {}).get("decoders", [])
        self._leading_space = any(step["type"] == "Strip" and step["start"] for step in steps)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of `tokens` without special tokens."""
        data = b"".join(self._table.get(token, b"") for token in tokens)
        return data.removeprefix(b" " if self._leading_space else b"").decode(errors="replace")


def _without(tokenizer: Tokenizer, special: Iterable[str]) -> Tokenizer:
    """Return a copy of `tokenizer` that does not recognise the given special tokens."""
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] not in special]
    return Tokenizer.from_str(json.dumps(spec))


def _renumbered(copy: Tokenizer, original: Tokenizer) -> dict[int, int]:
    """Return the ids that added tokens have in `copy` -> their ids in `original`.

    A tokenizer numbers the added tokens that are not in its model's vocabulary itself, one after the other.
    """
    added = {token.content: number for number, token in original.get_added_tokens_decoder().items()}
    return {
        number: added[token.content]
        for number, token in copy.get_added_tokens_decoder().items()
        if added.get(token.content, number) != number
    }
