"""Replies as HTML for notebooks: images of the prompt, the text, and adapters as bars. Every value is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Protocol

from infra.contract.prompt import ImagePart
from infra.contract.retrieval import SelectionReason

#: Images of a prompt that are shown; a notebook stores them with its output.
_MAX_IMAGES = 4


class _Share(Protocol):
    @property
    def id(self) -> str: ...
    @property
    def weight(self) -> float: ...


class _Match(_Share, Protocol):
    @property
    def similarity(self) -> float: ...


def answer_html(
    text: str, method: str, adapters: Sequence[_Share], matches: Sequence[_Match], images: Sequence[ImagePart]
) -> str:
    """Return an answer as HTML."""
    similarities = {match.id: match.similarity for match in matches}
    bars = [_bar(share.id, share.weight, similarities.get(share.id)) for share in adapters]
    how = f"{method}: " + (f"{len(adapters)} adapters" if adapters else "the base model alone")
    shown = f"<pre style='white-space:pre-wrap'>{escape(text)}</pre><div>{escape(how)}</div>"
    return _pictures(images) + shown + _table(bars)


def matches_html(matches: Sequence[_Match], reason: SelectionReason | None, images: Sequence[ImagePart]) -> str:
    """Return matches as HTML."""
    if not matches:
        why = f": {reason.value.replace('_', ' ')}" if reason else ""
        return f"{_pictures(images)}<div>no adapter fits{escape(why)}</div>"
    return _pictures(images) + _table([_bar(match.id, match.weight, match.similarity) for match in matches])


def _table(rows: Sequence[str]) -> str:
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _bar(name: str, weight: float, similarity: float | None) -> str:
    width = round(100 * min(max(weight, 0), 1))
    bar = f"<div style='background:#4c78a8;height:0.8em;width:{width}%'></div>"
    similar = "" if similarity is None else f"similarity {similarity:.3f}"
    return f"<tr><td>{escape(name)}</td><td style='width:12em'>{bar}</td><td>{weight:.3f}</td><td>{similar}</td></tr>"


def _pictures(images: Sequence[ImagePart]) -> str:
    shown = "".join(
        f"<img alt='image {index}' style='max-height:240px;margin-right:8px' src='data:;base64,"
        f"{base64.b64encode(image.data).decode()}'>"
        for index, image in enumerate(images[:_MAX_IMAGES], start=1)
    )
    more = len(images) - _MAX_IMAGES
    return f"<div>{shown}{f' and {more} more images' if more > 0 else ''}</div>" if images else ""
