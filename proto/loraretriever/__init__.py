"""The public face of loraretriever: clients of its services, the types they take and return, and their errors.

    from loraretriever import Client

    with Client("http://127.0.0.1:50080") as client:
        reply = client.answer("Order the running shoes.", images=["screen.png"])

Client and AsyncClient speak HTTP with the gateway; AnswerClient and its siblings speak gRPC with one service each.

Names are imported on first use: `import loraretriever` alone loads neither gRPC nor protobuf. The generated messages of
the contract are in `loraretriever.v1`. Every other module is internal and may change in any release.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from infra.contract.adapter import Adapter
    from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
    from infra.contract.errors import (
        AlreadyExistsError,
        BaseModelMismatchError,
        CancelledError,
        CapacityError,
        CheckpointError,
        ConfigurationError,
        ConflictError,
        DeadlineError,
        FailedPreconditionError,
        InternalError,
        InvalidArgumentError,
        LoraRetrieverError,
        NotFoundError,
        OverloadedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
        UnreachableError,
    )
    from infra.contract.generation import Decoding, Generation
    from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
    from infra.contract.retrieval import Match, RetrievalOptions, RetrievalStrategy, Selection, Weighting
    from infra.runtime.channel import ChannelOptions
    from orchestrator.answering.question import Answer, Question, RetrievalResult
    from orchestrator.answering.strategy import AnswerStrategy
    from orchestrator.clients.answer import AnswerClient
    from orchestrator.clients.evaluation import EvaluationClient
    from orchestrator.clients.generation import GenerationClient
    from orchestrator.clients.http.aio import AsyncClient, AsyncReplyStream
    from orchestrator.clients.http.client import Client, ReplyStream
    from orchestrator.clients.http.replies import AdapterMatch, AdapterShare, Matches, Reply
    from orchestrator.clients.retrieval import RetrievalClient
    from orchestrator.evaluation.job import Evaluation, EvaluationPage, EvaluationState, Report
    from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec, PromptProtocol

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "AdapterMatch",
    "AdapterShare",
    "AlreadyExistsError",
    "Answer",
    "AnswerClient",
    "AnswerStrategy",
    "AsyncClient",
    "AsyncReplyStream",
    "Base",
    "BaseModelMismatchError",
    "CancelledError",
    "CapacityError",
    "ChannelOptions",
    "CheckpointError",
    "Client",
    "Composition",
    "ConfigurationError",
    "ConflictError",
    "DatasetSpec",
    "DeadlineError",
    "Decoding",
    "EvaluatedStrategy",
    "Evaluation",
    "EvaluationClient",
    "EvaluationPage",
    "EvaluationSpec",
    "EvaluationState",
    "FailedPreconditionError",
    "Fusion",
    "FusionMethod",
    "Generation",
    "GenerationClient",
    "ImagePart",
    "InternalError",
    "InvalidArgumentError",
    "LoraRetrieverError",
    "Match",
    "Matches",
    "Message",
    "Mixture",
    "NotFoundError",
    "OverloadedError",
    "Prompt",
    "PromptProtocol",
    "Question",
    "Reply",
    "ReplyStream",
    "Report",
    "RetrievalClient",
    "RetrievalOptions",
    "RetrievalResult",
    "RetrievalStrategy",
    "Role",
    "Selection",
    "TextPart",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnreachableError",
    "WeightedAdapter",
    "Weighting",
    "__version__",
]


if not TYPE_CHECKING:  # a module with __getattr__ has every name for a type checker

    def __getattr__(name: str) -> object:
        """Import a public name on first use and keep it."""
        if name in __all__:
            for module in _modules():
                if name in vars(module):
                    return globals().setdefault(name, vars(module)[name])
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _modules() -> Iterator[ModuleType]:
    """Yield the modules that define the public names, those that load gRPC last."""
    from infra.contract import adapter, composition, errors, generation, prompt, retrieval

    yield from (adapter, composition, errors, generation, prompt, retrieval)
    from orchestrator.answering import question, strategy
    from orchestrator.evaluation import job, spec

    yield from (question, strategy, spec, job)
    from orchestrator.clients.http import aio, client, replies

    yield from (client, aio, replies)
    from infra.runtime import channel
    from orchestrator.clients import answer, evaluation
    from orchestrator.clients import generation as generation_client
    from orchestrator.clients import retrieval as retrieval_client

    yield from (channel, answer, evaluation, generation_client, retrieval_client)
