"""What the client returns: replies, matches and adapters, from the JSON of the gateway."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from infra.contract.adapter import Adapter
from infra.contract.generation import FinishReason
from infra.contract.prompt import ImagePart
from infra.contract.retrieval import SelectionReason
from orchestrator.clients.http.notebook import answer_html, matches_html


@dataclass(frozen=True)
class AdapterMatch:
    """A retrieved adapter: its similarity in [-1, 1], and its weight."""

    id: str
    similarity: float
    weight: float
    kind: str = ""
    display_name: str = ""
    revision: str = ""


@dataclass(frozen=True)
class AdapterShare:
    """An adapter that an answer was decoded with, and its weight."""

    id: str
    weight: float
    revision: str = ""


@dataclass(frozen=True)
class ReplyUsage:
    """Tokens of the prompt, of its images among them, and of the answer."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class ReplyTimings:
    """Seconds of retrieval, in the queue, to the first token, from there to the last, and in all on the server."""

    retrieval_s: float
    queue_s: float
    prefill_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True)
class Matches:
    """The adapters that fit a prompt, the most similar one first; `reason` says why there are none.

    `log_odds`: how much more likely the prompt is under the best match than under an adapter that is not registered;
    None for a retrieval strategy that does not tell.
    """

    items: tuple[AdapterMatch, ...]
    reason: SelectionReason | None = None
    log_odds: float | None = None
    images: tuple[ImagePart, ...] = field(default=(), repr=False)

    def __iter__(self) -> Iterator[AdapterMatch]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> AdapterMatch:
        return self.items[index]

    def _repr_html_(self) -> str:
        return matches_html(self.items, self.reason, self.images)


@dataclass(frozen=True)
class Reply:
    """An answer, the adapters that were applied (none: the base model alone), and those that were retrieved.

    In a notebook it is shown with the images of its prompt and its adapters as bars.
    """

    text: str
    finish_reason: FinishReason
    adapters: tuple[AdapterShare, ...]
    matches: Matches
    method: str
    usage: ReplyUsage
    timings: ReplyTimings
    stale: bool = False

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return answer_html(self.text, self.method, self.adapters, self.matches.items, self.matches.images)


def reply_from(completion: Mapping[str, Any], images: tuple[ImagePart, ...]) -> Reply:
    """Return the reply in a chat completion."""
    choice = completion["choices"][0]
    text = str(choice["message"]["content"])
    return reply_of(text, choice["finish_reason"], completion["loraretriever"], completion["usage"], images)


def reply_of(
    text: str,
    finish_reason: str,
    report: Mapping[str, Any],
    usage: Mapping[str, Any],
    images: tuple[ImagePart, ...],
) -> Reply:
    """Return the reply of a text and the objects that came with it."""
    seconds = {name: float(report[name]) for name in ReplyTimings.__dataclass_fields__}
    return Reply(
        text=text,
        finish_reason=FinishReason(finish_reason),
        adapters=tuple(AdapterShare(**share) for share in report["adapters"]),
        matches=matches_from(report["matches"], report, images),
        method=str(report["method"]),
        usage=ReplyUsage(usage["prompt_tokens"], report["image_tokens"], usage["completion_tokens"]),
        timings=ReplyTimings(**seconds),
        stale=bool(report["stale"]),
    )


def matches_from(items: list[dict[str, Any]], report: Mapping[str, Any], images: tuple[ImagePart, ...]) -> Matches:
    """Return the matches in a response, and why there are none."""
    reason = SelectionReason(report["reason"]) if report["reason"] else None
    return Matches(tuple(AdapterMatch(**item) for item in items), reason, report["log_odds"], images)


def adapter_from(report: Mapping[str, Any]) -> Adapter:
    """Return the adapter in a response."""
    moment = report["update_time"]
    return Adapter(
        adapter_id=report["id"],
        base_model=report["base_model"],
        checkpoint_uri=report["checkpoint"],
        kind=report["kind"],
        display_name=report["display_name"],
        description=report["description"],
        tags=tuple(report["tags"]),
        rank=report["rank"],
        revision=report["revision"],
        example_count=report["example_count"],
        update_time=datetime.fromisoformat(moment) if moment else None,
        targets=tuple(report["targets"]),
    )
