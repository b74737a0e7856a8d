"""Options of how a prompt is answered: strategy, retrieval and decoding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import typer

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, Weighting
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli.options.binding import Sets
from orchestrator.cli.strategies import complete_strategies, names_fusion_method, parse_strategies
from orchestrator.evaluation.spec import EvaluatedStrategy

ALL_KINDS = "all"


def kind_filter(kind: str) -> str:
    """Return the kind to filter by: empty for "all"."""
    return "" if kind == ALL_KINDS else kind


@dataclass(frozen=True)
class WeightingFlags:
    """How many adapters are retrieved, of which kind, and how they are weighted."""

    top_k: Annotated[int | None, typer.Option("--top-k", help="Adapters to retrieve (default: the server's, 3).")] = (
        None
    )
    lora_type: Annotated[
        str, typer.Option("--lora-type", "--kind", help="Retrieve only adapters of this kind: app, category, ...")
    ] = ALL_KINDS
    retrieval_strategy: Annotated[
        RetrievalStrategy | None,
        typer.Option(help="How adapters are compared with a question (default: the server's)."),
        Sets("retrieval.strategy"),
    ] = None
    weighting: Annotated[
        Weighting | None, typer.Option(help="How similarities become weights (default: the server's).")
    ] = None
    weighting_temperature: Annotated[
        float | None, typer.Option(help="Temperature of the softmax weighting."), Sets("retrieval.temperature")
    ] = None

    @property
    def kind(self) -> str:
        """The kind to retrieve, empty for all."""
        return kind_filter(self.lora_type)

    def options(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> RetrievalOptions:
        """Return the retrieval options. Raises InvalidArgumentError."""
        with field_path("retrieval"):
            return self._options(include, exclude)

    def _options(self, include: tuple[str, ...], exclude: tuple[str, ...]) -> RetrievalOptions:
        return RetrievalOptions(
            top_k=self.top_k,
            kind=self.kind,
            include=include,
            exclude=exclude,
            strategy=self.retrieval_strategy,
            weighting=self.weighting,
            temperature=self.weighting_temperature,
        )


@dataclass(frozen=True)
class RetrievalFlags(WeightingFlags):
    """WeightingFlags, and thresholds below which adapters are left out, or all of them."""

    min_similarity: Annotated[float | None, typer.Option(help="Leave out adapters below this cosine similarity.")] = (
        None
    )

    min_log_odds: Annotated[
        float | None,
        typer.Option(
            help="Leave out all adapters unless the log-odds that one of them fits reach this; only the retrieval "
            "strategy two_covariance tells them."
        ),
    ] = None

    def options(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> RetrievalOptions:
        """Return the retrieval options. Raises InvalidArgumentError."""
        with field_path("retrieval"):
            return replace(
                self._options(include, exclude), min_similarity=self.min_similarity, min_log_odds=self.min_log_odds
            )


@dataclass(frozen=True)
class GreedyDecodingFlags:
    """The length of answers that are decoded greedily."""

    max_new_tokens: Annotated[
        int | None, typer.Option(help="Maximum number of tokens of an answer (default: the server's).")
    ] = None

    def decoding(self) -> Decoding:
        """Return the decoding options. Raises InvalidArgumentError."""
        with field_path("decoding"):
            return Decoding(max_new_tokens=self.max_new_tokens)


@dataclass(frozen=True)
class DecodingFlags(GreedyDecodingFlags):
    """The length of answers, and the temperature they are sampled at."""

    temperature: Annotated[float, typer.Option(help="Divides the logits before sampling; 0 is greedy.")] = 0.0

    def decoding(self) -> Decoding:
        """Return the decoding options. Raises InvalidArgumentError."""
        with field_path("decoding"):
            return Decoding(max_new_tokens=self.max_new_tokens, temperature=self.temperature)


@dataclass(frozen=True)
class SamplingFlags(DecodingFlags):
    """DecodingFlags, with nucleus sampling and a seed."""

    top_p: Annotated[
        float, typer.Option(help="Sample from the most probable tokens that together have this probability.")
    ] = 1.0
    seed: Annotated[int | None, typer.Option(help="Makes sampling, and the draw of random-k, repeatable.")] = None

    def decoding(self) -> Decoding:
        """Return the decoding options. Raises InvalidArgumentError."""
        with field_path("decoding"):
            return Decoding(
                max_new_tokens=self.max_new_tokens, temperature=self.temperature, top_p=self.top_p, seed=self.seed
            )


@dataclass(frozen=True)
class StrategyFlags:
    """The strategy of one answer."""

    merge_method: Annotated[
        str,
        typer.Option(
            "--strategy",
            "--merge-method",
            help="How adapters are chosen and composed: base, selection, mixture, fusion, oracle, uniform-all or "
            "random-k; fusion-concat, ... also name the fusion method. With -out-of-domain appended, the adapter named "
            "by --adapter is excluded.",
            autocompletion=complete_strategies,
        ),
        Sets("strategy", "exclude_own_adapter"),
    ] = "mixture"
    fusion_method: Annotated[
        FusionMethod | None,
        typer.Option(help="How fusion merges adapters (default: auto, linear where ranks agree, else svd)."),
    ] = None
    adapter: Annotated[
        str,
        typer.Option(help="The adapter trained for this kind of question: oracle applies it.", show_default=False),
        Sets("adapter_id"),
    ] = ""

    def strategy(self) -> EvaluatedStrategy:
        """Return the strategy, with its fusion method.

        Raises:
            InvalidArgumentError: the name is not that of one strategy, it needs --adapter, or it names another fusion
                method than --fusion-method.
        """
        parsed = parse_strategies([self.merge_method])
        if len(parsed) != 1:
            raise InvalidArgumentError("merge_method", f"{self.merge_method!r} is not one strategy; a question has one")
        strategy = parsed[0]
        if strategy.exclude_own_adapter and not self.adapter:
            raise InvalidArgumentError("adapter", f"{self.merge_method} needs the adapter to exclude")
        if self.fusion_method is None or strategy.strategy is not AnswerStrategy.FUSION:
            return strategy
        if names_fusion_method(self.merge_method) and strategy.fusion_method is not self.fusion_method:
            raise InvalidArgumentError("fusion_method", f"contradicts {self.merge_method}; leave one of them out")
        return replace(strategy, fusion_method=self.fusion_method)


@dataclass(frozen=True)
class StrategiesFlags:
    """The strategies that a job compares."""

    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            "--merge-method",
            help="base, selection, mixture, fusion, fusion-concat, oracle, uniform-all, random-k, ..., each with "
            "-out-of-domain to hide the dataset's own adapter; may be repeated (default: mixture).",
            autocompletion=complete_strategies,
        ),
        Sets("strategies", "exclude_own_adapter"),
    ] = None
    fusion_method: Annotated[
        FusionMethod | None,
        typer.Option(
            help="How the strategy fusion merges adapters (default: auto, linear where ranks agree, else svd)."
        ),
    ] = None

    def strategies(self) -> tuple[EvaluatedStrategy, ...]:
        """Return the strategies. Raises InvalidArgumentError for a word that is not one."""
        parsed = parse_strategies(self.strategy or ["mixture"])
        if self.fusion_method is None:
            return parsed
        return tuple(
            replace(one, fusion_method=self.fusion_method)
            if one.strategy is AnswerStrategy.FUSION and one.fusion_method is FusionMethod.AUTO
            else one
            for one in parsed
        )
