"""A sentencepiece model file -> a tokenizer of the `tokenizers` library with the same ids (docs/decisions/0010)."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from generation_service.models.internvl.sentencepiece_file import PieceKind, SpmModel, read_sentencepiece

_SPACE = "▁"


def from_sentencepiece(path: Path, added: Mapping[int, AddedToken], *, keep_prefix: bool = True) -> Tokenizer:
    """Return the tokenizer of a sentencepiece BPE model with the tokens `added`, which replace or extend its pieces.

    With `keep_prefix` false no space is put before a text, even if the model was trained with one. Byte fallback, that
    space and the normalisation are otherwise those of the file.

    Raises CheckpointError if the file is not a sentencepiece BPE model.
    """
    model = read_sentencepiece(path)
    prefix = model.add_dummy_prefix and keep_prefix
    tokenizer = Tokenizer(_bpe(model, added))
    tokenizer.normalizer = _normalizer(model, prefix)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    for number, piece in enumerate(model.pieces):
        if number not in added and piece.kind in (PieceKind.CONTROL, PieceKind.UNKNOWN):
            tokenizer.add_special_tokens([AddedToken(piece.text, special=True, normalized=False)])
        elif number not in added and piece.kind is PieceKind.USER_DEFINED:
            tokenizer.add_tokens([AddedToken(piece.text, special=False, normalized=False)])
    for token in added.values():
        (tokenizer.add_special_tokens if token.special else tokenizer.add_tokens)([token])
    return tokenizer


def _bpe(model: SpmModel, added: Mapping[int, AddedToken]) -> models.BPE:
    pieces = [added[number].content if number in added else piece.text for number, piece in enumerate(model.pieces)]
    vocabulary = {text: number for number, text in enumerate(pieces)}
    return models.BPE(
        vocabulary | {token.content: number for number, token in added.items()},
        _merges(model, added),
        unk_token=pieces[model.unk_id],
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(model: SpmModel, added: Container[int]) -> list[tuple[str, str]]:
    """Return the merges, best first: sentencepiece joins the neighbours whose joint piece has the highest score.

    A piece that an added token replaces takes part in no merge.
    """
    normal = {
        piece.text: number
        for number, piece in enumerate(model.pieces)
        if piece.kind is PieceKind.NORMAL and number not in added
    }
    ranked = []  # (negated score, id of the joint piece, id of the left one, id of the right one)
    for text, number in normal.items():
        for cut in range(1, len(text)):
            left, right = normal.get(text[:cut]), normal.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-model.pieces[number].score, number, left, right))
    return [(model.pieces[left].text, model.pieces[right].text) for _, _, left, right in sorted(ranked)]


def _normalizer(model: SpmModel, prefix: bool) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if prefix:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
