"""The sentencepiece reader and its tokenizer, against sentencepiece itself."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken

from generation_service.engine.text_stream import TextStream
from generation_service.models.internvl.sentencepiece import from_sentencepiece
from generation_service.models.internvl.sentencepiece_file import PieceKind, read_sentencepiece
from generation_service.models.segments import SegmentTokenizer

spm = pytest.importorskip("sentencepiece", reason="needs sentencepiece (extra dev)")

_SENTENCE = (
    "What is on the screen the quick brown fox  jumps over   lazy dogs Straße naïve café 你是由上海人工智能实验室 "
    "InternVL 3.14159 foo_bar(baz) \n\n\ttab aaaa aaaaaaa aa abab ababab —“quoted” e\u0301 ﬁne ① "
)
WORDS = _SENTENCE.split(" ")
RARE = ["🙂", "\u2581", "\x00", "\ufffd", "𝔘", "", " ", "  ", "\n", "ﷺ", "\u200b"]


def trained(folder: Path, **options: object) -> Path:
    """Train a model with sentencepiece on random sentences; return its file."""
    draw = random.Random(0)
    sentences = (" ".join(draw.choices(WORDS, k=12)) for _ in range(400))
    file = io.BytesIO()
    plain = {
        "vocab_size": 460,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
    }
    spm.SentencePieceTrainer.train(
        sentence_iterator=sentences,
        model_writer=file,
        model_type="bpe",
        character_coverage=0.995,
        num_threads=1,
        minloglevel=2,
        **(plain | options),
    )
    path = folder / "tokenizer.model"
    path.write_bytes(file.getvalue())
    return path


def texts(count: int = 600) -> list[str]:
    draw = random.Random(1)
    some = [draw.choice(["", " ", "  "]).join(draw.choices(WORDS + RARE, k=draw.randint(0, 14))) for _ in range(count)]
    return [*some, "", " ", "   ", " leading", "trailing ", "a", "a" * 500]


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"add_dummy_prefix": True},
        {"add_dummy_prefix": False, "allow_whitespace_only_pieces": True, "split_digits": True},
        {"add_dummy_prefix": False, "split_by_whitespace": False},
        {"add_dummy_prefix": True, "normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
        {"add_dummy_prefix": False, "user_defined_symbols": ["[UNUSED_TOKEN_1]", "ijk"]},
        {"add_dummy_prefix": False, "byte_fallback": False, "vocab_size": 260},
    ],
    ids=["plain", "prefix", "space pieces", "across words", "nfkc", "user-defined", "no bytes"],
)
def test_ids_match_sentencepiece(tmp_path: Path, options: dict[str, object]) -> None:
    path = trained(tmp_path, **options)
    theirs = spm.SentencePieceProcessor(model_file=str(path))
    ours = from_sentencepiece(path, {})
    assert ours.get_vocab_size() == theirs.get_piece_size()
    for text in texts():
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text), repr(text)


def test_decoding_round_trips_at_once_and_token_by_token(tmp_path: Path) -> None:
    for prefix in (False, True):
        tokenizer = SegmentTokenizer(from_sentencepiece(trained(tmp_path, add_dummy_prefix=prefix), {}))
        for text in texts():
            plain = text.replace("\u2581", " ")
            tokens = tokenizer.encode([(text, False)])
            assert tokenizer.decode(tokens) == plain
            stream = TextStream(tokenizer.decode)
            assert "".join([*map(stream.push, tokens), stream.finish()]) == plain


def test_dropped_prefix_is_not_encoded(tmp_path: Path) -> None:
    path = trained(tmp_path, add_dummy_prefix=True)
    without = from_sentencepiece(path, {}, keep_prefix=False)
    theirs = spm.SentencePieceProcessor(model_file=str(path))
    assert without.encode("\x01screen").ids == theirs.encode("\x01screen")[1:]
    assert without.decode(without.encode("screen").ids) == "screen"


def test_added_tokens_replace_and_extend_pieces(tmp_path: Path) -> None:
    path = trained(tmp_path, add_dummy_prefix=False, user_defined_symbols=["[UNUSED_TOKEN_1]", "[UNUSED_TOKEN_2]"])
    model = read_sentencepiece(path)
    place = next(n for n, piece in enumerate(model.pieces) if piece.text == "[UNUSED_TOKEN_1]")
    added = {place: AddedToken("<|im_end|>", special=True), 900: AddedToken("<img>", special=True)}
    tokenizer = SegmentTokenizer(from_sentencepiece(path, added))
    assert {tokenizer.special[token] for token in ("<|im_end|>", "<img>", "<s>")} == {place, 900, 1}
    assert tokenizer.encode([("<|im_end|><img>", True)]) == [place, 900]
    spelled_out = tokenizer.encode([("<|im_end|>[UNUSED_TOKEN_1]", False)])
    assert place not in spelled_out
    assert tokenizer.decode(spelled_out) == "<|im_end|>[UNUSED_TOKEN_1]"
    assert place + 1 in tokenizer.encode([("[UNUSED_TOKEN_2]", False)])


def test_piece_replaced_by_added_token_merges_no_more(tmp_path: Path) -> None:
    path = trained(tmp_path, add_dummy_prefix=False)
    pieces = read_sentencepiece(path).pieces
    place = max(range(len(pieces)), key=lambda n: len(pieces[n].text) if pieces[n].kind is PieceKind.NORMAL else 0)
    text = f"the{pieces[place].text.replace('▁', ' ')} fox"
    assert place in SegmentTokenizer(from_sentencepiece(path, {})).encode([(text, False)])
    tokenizer = SegmentTokenizer(from_sentencepiece(path, {place: AddedToken("<|im_start|>", special=True)}))
    tokens = tokenizer.encode([("<|im_start|>", True), (text, False)])
    assert tokens[0] == place
    assert place not in tokens[1:]
    assert tokenizer.decode(tokens) == text


def test_special_token_strips_adjacent_spaces_as_configured(tmp_path: Path) -> None:
    path = trained(tmp_path, add_dummy_prefix=False)
    added = {
        900: AddedToken("<|user|>", special=True, rstrip=True),
        901: AddedToken("<|end|>", special=True, lstrip=True),
    }
    tokenizer = SegmentTokenizer(from_sentencepiece(path, added))
    inner = tokenizer.encode([("the screen", False)])
    assert tokenizer.encode([("<|user|>\n", True), (" the screen\n", False), ("<|end|>", True)]) == [900, *inner, 901]
    assert tokenizer.encode([("<|user|>\n<|end|>", True)]) == [900, 901]


def test_incomplete_character_is_one_replacement_at_end(tmp_path: Path) -> None:
    tokenizer = SegmentTokenizer(from_sentencepiece(trained(tmp_path, add_dummy_prefix=False), {}))
    tokens = tokenizer.encode([("\x05🙂", False)])
    assert [tokenizer.decode(tokens[:count]) for count in range(6)] == [
        "",
        "\x05",
        "\x05\ufffd",
        "\x05\ufffd",
        "\x05\ufffd",
        "\x05🙂",
    ]


def test_pieces_match_sentencepiece(tmp_path: Path) -> None:
    path = trained(tmp_path, add_dummy_prefix=False)
    theirs = spm.SentencePieceProcessor(model_file=str(path))
    model = read_sentencepiece(path)
    assert [piece.text for piece in model.pieces] == [theirs.id_to_piece(n) for n in range(len(model.pieces))]
    assert [piece.score for piece in model.pieces] == [theirs.get_score(n) for n in range(len(model.pieces))]
    assert [n for n, piece in enumerate(model.pieces) if piece.kind is PieceKind.BYTE] == [
        n for n in range(len(model.pieces)) if theirs.is_byte(n)
    ]
    assert (model.unk_id, model.byte_fallback, model.add_dummy_prefix) == (0, True, False)
