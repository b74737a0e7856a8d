"""Ways to answer a prompt: with which adapters, chosen how."""

from __future__ import annotations

from enum import StrEnum


class AnswerStrategy(StrEnum):
    """How an answer is composed.

    `oracle` applies the adapter known to be right; `uniform-all` every adapter of the catalogue, 1/n each; `random-k`
    top_k of them, drawn anew for each sample, 1/k each. These three exist in evaluation only.
    """

    BASE = "base"
    SELECTION = "selection"
    MIXTURE = "mixture"
    FUSION = "fusion"
    ORACLE = "oracle"
    UNIFORM_ALL = "uniform-all"
    RANDOM_K = "random-k"

    @property
    def retrieves(self) -> bool:
        """Whether adapters are looked up for each prompt."""
        return self in (AnswerStrategy.SELECTION, AnswerStrategy.MIXTURE, AnswerStrategy.FUSION)

    @property
    def takes_any(self) -> bool:
        """Whether adapters are taken from the catalogue whatever the prompt is."""
        return self in (AnswerStrategy.UNIFORM_ALL, AnswerStrategy.RANDOM_K)

    @property
    def evaluation_only(self) -> bool:
        """Whether the strategy makes sense as a yardstick alone."""
        return self is AnswerStrategy.ORACLE or self.takes_any
