"""Incremental detokenization: token ids -> text, without partial characters or stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
"""What the detokenizer returns for an incomplete UTF-8 character."""

Decode = Callable[[Sequence[int]], str]


class TextStream:
    """The text of one answer, up to the first stop string that is completed.

    Tokens of a byte-level vocabulary may end inside a UTF-8 character, and stop strings may span tokens, so text is
    held back until neither can change it. The answer is the concatenation of everything returned.

    Only a window of the newest tokens is decoded again for each token: text before it cannot change any more.
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
        """Add a token and return the text that can no longer change; set `stopped` if it completes a stop string."""
        self._tokens.append(token)
        return self._emit(self._new_text(), final=False)

    def finish(self) -> str:
        """End the answer and return the text that was held back."""
        whole = self._decode(self._tokens[self._window_start :])
        rest = whole[len(self._window_text) :]
        self._window_text = whole
        return self._emit(rest, final=True)

    def _new_text(self) -> str:
        window = self._decode(self._tokens[self._window_start :])
        if window.endswith(_REPLACEMENT):
            complete = window[:-1]
            new = complete[len(self._window_text) :]
            self._window_text = max(self._window_text, complete, key=len)
            return new
        new = window[len(self._window_text) :]
        self._window_start, self._window_end = self._window_end, len(self._tokens)
        self._window_text = self._decode(self._tokens[self._window_start : self._window_end])
        return new

    def _emit(self, new: str, final: bool) -> str:
        if self.stopped:
            return ""
        pending = self._held + new
        matches = [(start + len(stop), start) for stop in self._stop if (start := pending.find(stop)) >= 0]
        if matches:
            self.stopped = True
            # The stop string completed first, so that the answer does not depend on where tokens end.
            _, start = min(matches)
            pending, self._held = pending[:start], ""
        else:
            held = 0 if final else self._partial_stop_length(pending)
            pending, self._held = pending[: len(pending) - held], pending[len(pending) - held :]
        if pending:
            self._emitted.append(pending)
        return pending

    def _partial_stop_length(self, pending: str) -> int:
        """Return the length of the longest suffix of `pending` that is a proper prefix of a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(pending)), longest, -1):
                if pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest
