"""Judges the answers of a peer: equal to the reference token for token, or different only by rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peer_process import PeerError, PeerProcess


class Judge:
    """Compares with `generate` of transformers, with PEFT's exact merge for adapters, one request at a time.

    At the first token that differs, the reference's logits of both tokens may differ by `allowed`, relative to the
    largest logit: then a different order of summation explains it.
    """

    def __init__(self, reference: PeerProcess, new_tokens: int, allowed: float) -> None:
        self._reference, self._new_tokens, self._allowed = reference, new_tokens, allowed

    def compare(self, answers: Sequence[list[int]], requests: Sequence[dict[str, Any]]) -> str:
        """Return how many answers are equal. Raises PeerError if one differs by more than rounding."""
        gaps = []
        for number, (answer, request) in enumerate(zip(answers, requests, strict=True)):
            if len(answer) != self._new_tokens:
                raise PeerError(f"answer {number} has {len(answer)} tokens instead of {self._new_tokens}")
            gap = self._gap(answer, request)
            if gap is not None:
                gaps.append(gap)
        if gaps and max(gaps) > self._allowed:
            raise PeerError(f"{len(gaps)} of {len(answers)} answers differ, by up to {max(gaps):.1e} of a logit")
        up_to = f", the others by up to {max(gaps):.0e} of the largest logit" if gaps else ""
        return f"{len(answers) - len(gaps)} of {len(answers)} token for token{up_to}"

    def _gap(self, answer: Sequence[int], request: dict[str, Any]) -> float | None:
        """Return how far apart the logits of the first differing tokens are, None if all tokens are equal."""
        message = {"requests": [request], "new_tokens": self._new_tokens}
        reference: list[int] = self._reference.ask(message)["answers"][0]
        for n, (token, expected) in enumerate(zip(answer, reference, strict=True)):
            if token != expected:
                prefix = [*request["tokens"], *reference[:n]]
                question = {"tokens": prefix, "adapters": request["adapters"], "candidates": [token, expected]}
                gap: float = self._reference.ask(question)["gap"]
                return gap
        return None
