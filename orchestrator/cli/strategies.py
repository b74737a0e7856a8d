"""Strategies as they are written on the command line and in reports: "mixture", "fusion-concat-out-of-domain"."""

from __future__ import annotations

from collections.abc import Sequence

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.spec import EvaluatedStrategy

_OUT_OF_DOMAIN = "-out-of-domain"
_FUSION_PREFIX = f"{AnswerStrategy.FUSION.value}-"


def parse_strategies(words: Sequence[str]) -> tuple[EvaluatedStrategy, ...]:
    """Return the strategies named by words, each of which may hold several separated by commas.

    Raises InvalidArgumentError for a word that names none.
    """
    return tuple(_parse_strategy(name) for word in words for name in word.split(",") if name)


def names_fusion_method(name: str) -> bool:
    """Return whether a strategy's name includes its fusion method, as "fusion-concat" does and "fusion" does not."""
    return name.removesuffix(_OUT_OF_DOMAIN).startswith(_FUSION_PREFIX)


def strategy_labels() -> tuple[str, ...]:
    """Return every name that `parse_strategies` accepts, in the order of the strategies."""
    labels = []
    for strategy in AnswerStrategy:
        methods = FusionMethod if strategy is AnswerStrategy.FUSION else (FusionMethod.AUTO,)
        exclusions = (False, True) if strategy.retrieves or strategy.ignores_prompt else (False,)
        labels += [
            EvaluatedStrategy(strategy, method, exclude_own_adapter).label
            for exclude_own_adapter in exclusions
            for method in methods
        ]
    return tuple(labels)


def complete_strategies(incomplete: str) -> list[str]:
    """Return the completions of a strategy, or of the last of several separated by commas, for the shell."""
    before, comma, begun = incomplete.rpartition(",")
    return [before + comma + label for label in strategy_labels() if label.startswith(begun)]


def _parse_strategy(name: str) -> EvaluatedStrategy:
    plain = name.removesuffix(_OUT_OF_DOMAIN)
    excludes_own = name.endswith(_OUT_OF_DOMAIN)
    try:
        if names_fusion_method(plain):
            method = FusionMethod(plain.removeprefix(_FUSION_PREFIX))
            return EvaluatedStrategy(AnswerStrategy.FUSION, method, exclude_own_adapter=excludes_own)
        strategy = AnswerStrategy(plain)
    except ValueError:
        names = ", ".join(strategy.value for strategy in AnswerStrategy)
        methods = ", ".join(f"{_FUSION_PREFIX}{method.value}" for method in FusionMethod)
        raise InvalidArgumentError("strategy", f"{name!r} is not a strategy; use one of {names}, {methods}") from None
    return EvaluatedStrategy(strategy, exclude_own_adapter=excludes_own)
