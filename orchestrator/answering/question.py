"""A question and its answer, as the pipeline, its clients and the evaluation exchange them."""

from __future__ import annotations

from dataclasses import dataclass, field

from infra.contract.composition import FusionMethod, WeightedAdapter
from infra.contract.generation import Decoding, Generation
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, RetrievalTimings, Selection
from orchestrator.answering.strategy import AnswerStrategy


@dataclass(frozen=True)
class Question:
    """A prompt and how to answer it.

    `oracle` names the correct adapter for AnswerStrategy.ORACLE; `seed` draws the adapters of AnswerStrategy.RANDOM_K.
    `adapters` are composed as given, by MIXTURE or FUSION, and nothing is retrieved; empty: adapters are retrieved.
    Questions with the same non-empty `shared_by` (a job's id) share one retrieval per prompt and options, and one
    listing of the catalogue.
    """

    prompt: Prompt
    strategy: AnswerStrategy = AnswerStrategy.MIXTURE
    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    fusion_method: FusionMethod = FusionMethod.AUTO
    decoding: Decoding = field(default_factory=Decoding)
    oracle: str = ""
    seed: str = ""
    shared_by: str = ""
    adapters: tuple[WeightedAdapter, ...] = ()


@dataclass(frozen=True)
class RetrieveArguments:
    """The names under which a caller knows the arguments of a retrieval, for errors about them."""

    prompt: str = "prompt"
    options: str = "options"


#: The names of the client's own parameters.
RETRIEVE_PARAMETERS = RetrieveArguments()


@dataclass(frozen=True)
class RetrievalResult:
    """The selection for one prompt, and the revision of the catalogue that was searched ("": none was).

    `timings` is None where nothing was searched. `stale`: the catalogue was unreachable and its last known state was
    searched.
    """

    selection: Selection = field(default_factory=Selection)
    catalogue_revision: str = ""
    timings: RetrievalTimings | None = None
    stale: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer, the retrieved adapters (none: the base model answered alone), and how long each part took.

    `retrieval_shared`: the retrieval of another question was reused, so `retrieval_s` and `retrieval_timings` do not
    describe this answer. `stale`: see RetrievalResult.
    """

    generation: Generation
    selection: Selection
    catalogue_revision: str
    retrieval_s: float
    total_s: float
    retrieval_shared: bool = False
    retrieval_timings: RetrievalTimings | None = None
    stale: bool = False
