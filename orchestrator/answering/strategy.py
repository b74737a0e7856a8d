"""Answer strategies: which adapters answer a prompt, and how they are composed."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import assert_never

from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import InvalidArgumentError
from infra.contract.retrieval import Selection


class AnswerStrategy(StrEnum):
    """How an answer is composed.

    `oracle` applies the adapter known to be correct; `uniform-all` every adapter of the catalogue, 1/n each;
    `random-k` top_k of them, drawn for each question, 1/k each. These three are baselines for the others.
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
        """Whether adapters are retrieved for each prompt."""
        return self in (AnswerStrategy.SELECTION, AnswerStrategy.MIXTURE, AnswerStrategy.FUSION)

    @property
    def ignores_prompt(self) -> bool:
        """Whether adapters are taken from the catalogue regardless of the prompt."""
        return self in (AnswerStrategy.UNIFORM_ALL, AnswerStrategy.RANDOM_K)


def compose_given(
    strategy: AnswerStrategy, adapters: tuple[WeightedAdapter, ...], fusion_method: FusionMethod = FusionMethod.AUTO
) -> Composition:
    """Return the composition of adapters whose weights the caller chose.

    Raises:
        InvalidArgumentError: the strategy chooses adapters itself, or an adapter is named twice.
    """
    match strategy:
        case AnswerStrategy.MIXTURE:
            return Mixture(adapters)
        case AnswerStrategy.FUSION:
            return Fusion(adapters, fusion_method)
        case _:
            raise InvalidArgumentError(
                "strategy", f"{strategy.value} takes no adapters with weights; use mixture or fusion, or leave them out"
            )


def compose(
    strategy: AnswerStrategy,
    selection: Selection,
    fusion_method: FusionMethod = FusionMethod.AUTO,
    oracle: str = "",
) -> Composition:
    """Return the composition of the retrieved adapters; the base model alone when none was retrieved.

    Selection applies the most similar adapter with weight 1, the oracle the adapter named `oracle` with weight 1;
    mixture and fusion use the weights of retrieval unchanged.

    Raises:
        InvalidArgumentError: the oracle names no adapter, or the strategy does not compose retrieved adapters.
    """
    match strategy:
        case AnswerStrategy.BASE:
            return Base()
        case AnswerStrategy.ORACLE:
            if not oracle:
                raise InvalidArgumentError("adapter_id", "the oracle strategy needs the correct adapter's id")
            return Mixture((WeightedAdapter(oracle, 1.0),))
        case AnswerStrategy.SELECTION:
            return Mixture((replace(selection.weighted[0], weight=1.0),)) if selection.matches else Base()
        case AnswerStrategy.MIXTURE:
            return Mixture(selection.weighted) if selection.matches else Base()
        case AnswerStrategy.FUSION:
            return Fusion(selection.weighted, fusion_method) if selection.matches else Base()
        case AnswerStrategy.UNIFORM_ALL | AnswerStrategy.RANDOM_K:
            raise InvalidArgumentError("strategy", f"{strategy.value} composes adapters of the catalogue, not matches")
        case _:
            assert_never(strategy)
