"""Text that no prompt could hold is refused before it is tokenised; text that could fit never is."""

from __future__ import annotations

import pytest

from generation_service.answers import check_text
from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Message, Prompt, Role, TextPart


def test_whole_text_of_prompt_counts_against_token_limit() -> None:
    def turns(*texts: str) -> Prompt:
        return Prompt(tuple(Message(Role.USER, (TextPart(text),)) for text in texts))

    check_text(turns("a" * 5, "b" * 7), max_tokens=4, token_characters=3)
    with pytest.raises(InvalidArgumentError, match=r"13 characters.*4 tokens.*at most 12 characters") as caught:
        check_text(turns("a" * 6, "b" * 7), max_tokens=4, token_characters=3)
    assert caught.value.metadata == {"characters": "13", "limit": "12"}


def test_characters_count_as_composed_by_tokenizer() -> None:
    check_text(Prompt.of("e\u0301" * 12), max_tokens=4, token_characters=3)
