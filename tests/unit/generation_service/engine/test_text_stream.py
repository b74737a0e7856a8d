"""Incremental detokenization over byte tokens, the hardest case."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from generation_service.engine.text_stream import TextStream


def decode(tokens: Sequence[bytes]) -> str:
    return b"".join(tokens).decode("utf-8", errors="replace")


def streamed(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stop)  # type: ignore[arg-type]
    emitted = []
    for piece in pieces:
        emitted.append(stream.push(piece))  # type: ignore[arg-type]
        if stream.stopped:
            return emitted, stream
    emitted.append(stream.finish())
    return emitted, stream


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    borders = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(borders)]


def first_complete(text: str, stop: Sequence[str]) -> str:
    """Return `text` up to the stop string that is complete first, read character by character."""
    for end in range(len(text) + 1):
        starts = [end - len(word) for word in stop if text[:end].endswith(word)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.text(max_size=40), st.lists(st.integers(0, 400), max_size=60))
def test_pieces_concatenate_to_text_for_any_tokenization(text: str, places: list[int]) -> None:
    emitted, stream = streamed(cut(text.encode("utf-8", "replace"), places))
    whole = text.encode("utf-8", "replace").decode("utf-8")
    assert "".join(emitted) == stream.text == whole


@given(st.text("aß日🙂", max_size=20))
def test_no_piece_holds_partial_character(text: str) -> None:
    emitted, _ = streamed([bytes([byte]) for byte in text.encode()])
    assert all("\ufffd" not in piece for piece in emitted)


@given(
    st.text("ab.", max_size=30),
    st.lists(st.text("ab.", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 60), max_size=30),
)
def test_stop_string_is_never_emitted_for_any_tokenization(text: str, stop: list[str], places: list[int]) -> None:
    emitted, stream = streamed(cut(text.encode(), places), stop)
    expected = first_complete(text, stop)
    assert "".join(emitted) == stream.text == expected
    assert stream.stopped == (expected != text)


@given(st.binary(max_size=30))
def test_invalid_bytes_are_replaced_as_in_whole_text(data: bytes) -> None:
    emitted, _ = streamed([bytes([byte]) for byte in data])
    assert "".join(emitted) == data.decode("utf-8", errors="replace")


def test_text_that_may_become_stop_string_is_held_back() -> None:
    emitted, _ = streamed([b"go", b" <", b"e", b"nd", b" of"], stop=["<end>"])
    assert emitted == ["go", " ", "", "", "<end of", ""]
