"""How a request is answered: what `model` names, and the extension field `loraretriever`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from pydantic import Field

from infra.contract.adapter import ADAPTER_ID_PATTERN, check_adapter_id
from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.retrieval import RetrievalOptions, RetrievalStrategy, Weighting
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.gateway.errors import UnknownModelError
from orchestrator.gateway.fields import RequestModel

AUTO = "auto"
BASE = AnswerStrategy.BASE.value
EXTENSION = "loraretriever"


@dataclass(frozen=True)
class Method:
    """A strategy, with the way of merging that a fusion uses."""

    strategy: AnswerStrategy
    fusion_method: FusionMethod = FusionMethod.AUTO


#: The methods by the names that `loraretriever ask --strategy` has too.
METHODS: Mapping[str, Method] = MappingProxyType(
    {
        **{
            strategy.value: Method(strategy)
            for strategy in (AnswerStrategy.MIXTURE, AnswerStrategy.SELECTION, AnswerStrategy.FUSION)
        },
        **{f"{AnswerStrategy.FUSION.value}-{way.value}": Method(AnswerStrategy.FUSION, way) for way in FusionMethod},
    }
)
DEFAULT_METHOD = AnswerStrategy.MIXTURE.value


class RetrievalFields(RequestModel):
    """Which adapters are retrieved, and how they are weighted. Null: the retrieval service's default."""

    top_k: int | None = Field(None, description="adapters to retrieve")
    weighting: Weighting | None = Field(None, description="how similarities become weights")
    weighting_temperature: float | None = Field(None, description="temperature of the softmax weighting")
    min_similarity: float | None = Field(None, description="adapters below it are not used")
    min_log_odds: float | None = Field(
        None, description="with two_covariance: no adapter is used if the log odds that any fits are below"
    )
    retrieval_strategy: RetrievalStrategy | None = Field(None, description="how adapters are compared with a prompt")
    kind: str = Field("", description="retrieve only adapters of this kind")
    tags: tuple[str, ...] = Field((), description="retrieve only adapters with all of these tags", max_length=64)
    include: tuple[str, ...] = Field((), description="retrieve only these adapters", max_length=1024)
    exclude: tuple[str, ...] = Field((), description="never these", max_length=1024)

    def options(self) -> RetrievalOptions:
        """Return the retrieval options. Raises InvalidArgumentError."""
        return RetrievalOptions(
            top_k=self.top_k,
            kind=self.kind,
            tags=self.tags,
            include=self.include,
            exclude=self.exclude,
            strategy=self.retrieval_strategy,
            weighting=self.weighting,
            temperature=self.weighting_temperature,
            min_similarity=self.min_similarity,
            min_log_odds=self.min_log_odds,
        )


class Steering(RetrievalFields):
    """The extension field of a request for an answer."""

    method: str | None = Field(None, description=f"how adapters are composed: {', '.join(METHODS)}")
    weights: dict[str, float] | None = Field(
        None, description="adapters and weights to apply as they are; nothing is retrieved", max_length=1024
    )


@dataclass(frozen=True)
class Plan:
    """How a request is answered. `adapter` is the one that `model` names; `weights` are composed as given."""

    strategy: AnswerStrategy
    fusion_method: FusionMethod = FusionMethod.AUTO
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    adapter: str = ""
    weights: tuple[WeightedAdapter, ...] = ()

    @property
    def label(self) -> str:
        """The method as a response names it; "adapter" where `model` names one."""
        if self.adapter:
            return "adapter"
        is_fusion = self.strategy is AnswerStrategy.FUSION
        return f"{self.strategy.value}-{self.fusion_method.value}" if is_fusion else self.strategy.value


def model_names() -> tuple[str, ...]:
    """Return what `model` may name besides adapters."""
    return (AUTO, *(f"{AUTO}:{name}" for name in METHODS), BASE)


def plan_of(model: str, steering: Steering | None) -> Plan:
    """Return how to answer a request.

    Raises:
        UnknownModelError: `model` names no method and cannot be the id of an adapter.
        InvalidArgumentError: the extension field contradicts `model`, or a value in it is wrong.
    """
    steering = steering or Steering()
    automatic, colon, named = model.partition(":")
    if automatic != AUTO:
        return _fixed_plan(model, steering)
    if colon and named not in METHODS:
        raise unknown_model(model)
    with field_path(EXTENSION):
        method = METHODS[_method_name(named, steering.method)]
        if steering.weights is None:
            return Plan(method.strategy, method.fusion_method, steering.options())
        if steering.model_fields_set - {"method", "weights"}:
            unused = sorted(steering.model_fields_set - {"method", "weights"})[0]
            raise InvalidArgumentError(unused, "has no effect, because weights name the adapters; leave one out")
        return Plan(method.strategy, method.fusion_method, weights=_weights(steering.weights))


def unknown_model(model: str) -> UnknownModelError:
    """Return the error for a `model` that names nothing."""
    shown = model[:60]
    return UnknownModelError(
        f"model: {shown!r} is no adapter of the catalogue; use {AUTO}, {BASE} or a name that GET /v1/models lists",
        param="model",
    )


def _fixed_plan(model: str, steering: Steering) -> Plan:
    if model != BASE and not ADAPTER_ID_PATTERN.fullmatch(model):
        raise unknown_model(model)
    if steering.model_fields_set:
        unused = sorted(steering.model_fields_set)[0]
        raise InvalidArgumentError(
            f"{EXTENSION}.{unused}", f"has no effect, because nothing is retrieved for model {model!r}; use {AUTO!r}"
        )
    return Plan(AnswerStrategy.BASE) if model == BASE else Plan(AnswerStrategy.ORACLE, adapter=model)


def _method_name(named: str, requested: str | None) -> str:
    if requested is not None and requested not in METHODS:
        raise InvalidArgumentError("method", f"{requested[:40]!r} is no method; use one of {', '.join(METHODS)}")
    if named and requested not in (None, named):
        raise InvalidArgumentError("method", f"{requested!r} contradicts model '{AUTO}:{named}'; give one of them")
    return named or requested or DEFAULT_METHOD


def _weights(weights: Mapping[str, float]) -> tuple[WeightedAdapter, ...]:
    if not weights:
        raise InvalidArgumentError("weights", f"is empty; name an adapter, or use model {BASE!r}")
    for name in weights:
        check_adapter_id(name, "weights")
    shares = []
    for name, weight in weights.items():
        with field_path(f"weights.{name}"):
            shares.append(WeightedAdapter(name, weight))
    return tuple(shares)
