"""The events of a streamed answer."""

from __future__ import annotations

import json
from typing import Any

from infra.contract.errors import InternalError
from infra.contract.prompt import ImagePart
from orchestrator.clients.http.replies import Matches, Reply, matches_from, reply_of
from orchestrator.clients.http.transport import error_of

_PREFIX = "data: "
_DONE = "[DONE]"


class StreamState:
    """What a stream has brought so far. `matches` is set once it begins, `reply` when it has ended."""

    def __init__(self, images: tuple[ImagePart, ...]) -> None:
        self.matches: Matches | None = None
        self.reply: Reply | None = None
        self._images = images
        self._text = ""
        self._finish_reason = ""
        self._report: dict[str, Any] | None = None

    def feed(self, line: str) -> str:
        """Take a line of the response and return the text in it, which may be empty. Raises the error in it."""
        data = line.removeprefix(_PREFIX)
        if data in (line, _DONE):  # A blank line between events, or the mark of the end.
            return ""
        event = json.loads(data)
        if "error" in event:
            raise error_of(event["error"])
        if event.get("loraretriever"):
            self._report = event["loraretriever"]
            if self.matches is None:
                self.matches = matches_from(self._report["matches"], self._report, self._images)
        if event.get("usage") and self._report is not None:
            self.reply = reply_of(self._text, self._finish_reason, self._report, event["usage"], self._images)
        if not event["choices"]:
            return ""
        self._finish_reason = event["choices"][0]["finish_reason"] or self._finish_reason
        piece = str(event["choices"][0]["delta"].get("content") or "")
        self._text += piece
        return piece

    def result(self) -> Reply:
        """Return the reply. Raises InternalError if the stream ended before it."""
        if self.reply is None:
            raise InternalError("the stream has not ended with a complete answer; read it to its end, or ask again")
        return self.reply
