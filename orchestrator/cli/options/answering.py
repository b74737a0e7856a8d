"""Options of how a prompt is answered: strategy, retrieval and decoding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding
from infra.contract.retrieval import RetrievalOptions, Weighting
from orchestrator.cli.options.binding import Sets
from orchestrator.cli.strategies import complete_strategies, parse_strategies
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
        return self._options(None, include, exclude)

    def _options(
        self, min_similarity: float | None, include: tuple[str, ...], exclude: tuple[str, ...]
    ) -> RetrievalOptions:
        with field_path("retrieval"):
            return RetrievalOptions(
                top_k=self.top_k,
                kind=self.kind,
                include=include,
                exclude=exclude,
                weighting=self.weighting,
                temperature=self.weighting_temperature,
                min_similarity=min_similarity,
            )


@dataclass(frozen=True)
class RetrievalFlags(WeightingFlags):
    """WeightingFlags, and a threshold below which adapters are left out."""

    min_similarity: Annotated[float | None, typer.Option(help="Leave out adapters below this cosine similarity.")] = (
        None
    )

    def options(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = ()) -> RetrievalOptions:
        """Return the retrieval options. Raises InvalidArgumentError."""
        return self._options(self.min_similarity, include, exclude)


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
            "--merge-method",
            "--strategy",
            help="How adapters are chosen and composed: base, selection, mixture, fusion, oracle, uniform-all, "
            "random-k; fusion-concat, ... names the fusion method too; -out-of-domain after a strategy excludes "
            "--adapter.",
            autocompletion=complete_strategies,
        ),
        Sets("strategy"),
    ] = "mixture"
    fusion_method: Annotated[FusionMethod, typer.Option(help="How fusion merges adapters.")] = FusionMethod.LINEAR
    adapter: Annotated[
        str,
        typer.Option(help="The adapter trained for such questions, which oracle applies.", show_default=False),
        Sets("adapter_id"),
    ] = ""

    def strategy(self) -> EvaluatedStrategy:
        """Return the strategy. Raises InvalidArgumentError for a word that is not one, or without its adapter."""
        parsed = parse_strategies([self.merge_method])
        if len(parsed) != 1:
            raise InvalidArgumentError("merge_method", "a question is answered by one strategy")
        if parsed[0].exclude_own_adapter and not self.adapter:
            raise InvalidArgumentError("adapter", f"{self.merge_method} needs the adapter to exclude")
        return parsed[0]

    def method(self) -> FusionMethod:
        """Return the fusion method: the one in the strategy's name, such as fusion-concat, before --fusion-method."""
        named = self.strategy().fusion_method
        return self.fusion_method if named is FusionMethod.LINEAR else named


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

    def strategies(self) -> tuple[EvaluatedStrategy, ...]:
        """Return the strategies. Raises InvalidArgumentError for a word that is not one."""
        return parse_strategies(self.strategy or ["mixture"])
