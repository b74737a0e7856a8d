"""Token ids -> text, piece by piece: never half a character, never a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """The text of one answer as it grows, up to the first stop string that is complete.

    Tokens of a byte-level vocabulary may end inside a UTF-8 character, and stop strings may span tokens: text is held
    back until neither can change it. The concatenation of everything returned is the answer.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._tokens: list[int] = []
        self._window_start = 0
        self._window_end = 0
        self._window_text = ""
        self._held = ""
        self._emitted: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """Everything emitted so far."""
        return "".join(self._emitted)

    def push(self, token: int) -> str:
        """Take the next token and return the text that is certain now; sets `stopped` when a stop string came."""
        self._tokens.append(token)
        return self._emit(self._new_text(), final=False)

    def finish(self) -> str:
        """Return what was held back, at the end of the answer."""
        whole = self._decode(self._tokens[self._window_start :])
        rest = whole[len(self._window_text) :]
        self._window_text = whole
        return self._emit(rest, final=True)

    def _new_text(self) -> str:
        window = self._decode(self._tokens[self._window_start :])
        if window.endswith(REPLACEMENT):
            certain = window[:-1]
            new = certain[len(self._window_text) :]
            self._window_text = max(self._window_text, certain, key=len)
            return new
        new = window[len(self._window_text) :]
        self._window_start, self._window_end = self._window_end, len(self._tokens)
        self._window_text = self._decode(self._tokens[self._window_start : self._window_end])
        return new

    def _emit(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + new
        found = [(at + len(stop), at) for stop in self._stop if (at := pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            _, start = min(found)
            pending, self._held = pending[:start], ""
        else:
            keep = 0 if final else self._possible_stop(pending)
            pending, self._held = pending[: len(pending) - keep], pending[len(pending) - keep :]
        if pending:
            self._emitted.append(pending)
        return pending

    def _possible_stop(self, pending: str) -> int:
        """Return the length of the longest end of `pending` that a stop string begins with."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(pending)), longest, -1):
                if pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest
