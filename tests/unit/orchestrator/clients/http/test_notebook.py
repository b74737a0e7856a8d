"""Replies in notebooks."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from infra.contract.generation import FinishReason
from infra.contract.prompt import ImagePart
from infra.contract.retrieval import SelectionReason
from orchestrator.clients.http.replies import (
    AdapterMatch,
    AdapterShare,
    Matches,
    Reply,
    ReplyTimings,
    ReplyUsage,
)

SCRIPT = "<script>alert(1)</script>"


class Tags(HTMLParser):
    """Collects the names of tags."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)


def tags_of(html: str) -> list[str]:
    parser = Tags()
    parser.feed(html)
    return parser.names


def reply(images: int = 0, adapters: int = 1) -> Reply:
    shares = tuple(AdapterShare(f"{SCRIPT}{index}", 0.5) for index in range(adapters))
    matches = Matches((AdapterMatch(f"{SCRIPT}0", 0.8125, 0.5),), images=(ImagePart(b"png"),) * images)
    usage, timings = ReplyUsage(1, 0, 1), ReplyTimings(0, 0, 0, 0, 0)
    return Reply(f"text {SCRIPT}", FinishReason.STOP, shares, matches, "mixture", usage, timings)


def test_answer_shows_text_and_bars_and_escapes_them() -> None:
    html = reply(adapters=2)._repr_html_()
    assert "script" not in tags_of(html)
    assert tags_of(html).count("tr") == 2
    assert "width:50%" in html
    assert "similarity 0.812" in html


@pytest.mark.parametrize(("count", "shown", "more"), [(0, 0, False), (4, 4, False), (6, 4, True)])
def test_first_images_of_the_prompt_are_shown(count: int, shown: int, more: bool) -> None:
    html = reply(images=count)._repr_html_()
    assert tags_of(html).count("img") == shown
    assert (f"and {count - shown} more images" in html) is more


def test_answer_of_the_base_model_says_so() -> None:
    assert "the base model alone" in reply(adapters=0)._repr_html_()


def test_matches_show_bars_or_the_reason() -> None:
    assert tags_of(reply().matches._repr_html_()).count("tr") == 1
    assert "below minimum similarity" in Matches((), SelectionReason.BELOW_MINIMUM_SIMILARITY)._repr_html_()
