"""Messages and dataclasses are twins: what goes out comes back, and what is malformed is named by its path."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loraretriever.v1 import (
    adapter_pb2,
    generation_service_pb2,
    orchestrator_service_pb2,
    prompt_pb2,
    retrieval_service_pb2,
)

from infra.contract.adapter import Adapter
from infra.contract.composition import Base, Composition, Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.generation import Decoding, FinishReason, Generation, Timings, Usage
from infra.contract.prompt import ImagePart, Message, Prompt, Role, TextPart
from infra.contract.retrieval import (
    CatalogueInfo,
    Match,
    RetrievalOptions,
    RetrievalStrategy,
    Selection,
    SelectionReason,
    Weighting,
)
from infra.runtime import wire

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

texts = st.text(max_size=20)
ids = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
weights = st.floats(0, 1e6)
int32 = st.integers(0, 2**31 - 1)
seconds = st.integers(0, 10**12).map(lambda nanoseconds: nanoseconds / 1e9)

parts = st.one_of(st.builds(TextPart, texts), st.builds(ImagePart, st.binary(min_size=1, max_size=50), texts))
messages = st.builds(Message, st.sampled_from(Role), st.lists(parts, min_size=1, max_size=3).map(tuple))
last_messages = st.builds(
    lambda before, last: Message(Role.USER, (*before, last)),
    st.lists(parts, max_size=2),
    st.builds(ImagePart, st.binary(min_size=1, max_size=9), texts),
)
prompts = st.builds(lambda before, last: Prompt((*before, last)), st.lists(messages, max_size=2), last_messages)
weighted = st.builds(WeightedAdapter, ids, weights, texts)
shares = st.lists(weighted, min_size=1, max_size=4, unique_by=lambda share: share.adapter_id).map(tuple)
ranks = st.none() | st.integers(1, 2**31 - 1)
densities = st.none() | st.floats(0, 1, exclude_min=True)
seeds = st.none() | st.integers(0, 2**64 - 1)
compositions: st.SearchStrategy[Composition] = st.one_of(
    st.just(Base()),
    st.builds(Mixture, shares),
    st.builds(Fusion, shares, st.sampled_from(FusionMethod)),
    st.builds(Fusion, shares, st.just(FusionMethod.SVD), ranks),
    st.builds(Fusion, shares, st.just(FusionMethod.TIES), ranks, densities),
    st.builds(Fusion, shares, st.just(FusionMethod.DARE), ranks, densities, seeds),
)
decodings = st.builds(
    Decoding,
    st.none() | st.integers(1, 2**31 - 1),
    st.floats(0, 100),
    st.floats(0, 1, exclude_min=True),
    int32,
    st.none() | st.integers(0, 2**64 - 1),
    st.lists(st.text(min_size=1, max_size=5), max_size=8).map(tuple),
)
generations = st.builds(
    Generation,
    texts,
    st.sampled_from(FinishReason),
    st.builds(Usage, int32, int32, int32),
    st.builds(Timings, seconds, seconds, seconds),
    st.lists(weighted, max_size=3).map(tuple),
)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
adapters = st.builds(
    Adapter,
    ids,
    texts,
    texts,
    texts,
    texts,
    texts,
    st.lists(texts).map(tuple),
    int32,
    texts,
    int32,
    st.none() | moments,
)
options = st.builds(
    RetrievalOptions,
    st.none() | st.integers(1, 2**31 - 1),
    texts,
    texts,
    st.lists(texts, max_size=3).map(tuple),
    st.lists(ids, max_size=3).map(tuple),
    st.lists(ids, max_size=3).map(tuple),
    st.none() | st.sampled_from(RetrievalStrategy),
    st.none() | st.sampled_from(Weighting),
    st.none() | st.floats(0, 100, exclude_min=True),
    st.none() | st.floats(-1, 1),
)
matches = st.builds(Match, adapters, st.floats(-1, 1), weights)
selections = st.one_of(
    st.builds(Selection, st.lists(matches, min_size=1, max_size=3).map(tuple)),
    st.builds(Selection, st.just(()), st.none() | st.sampled_from(SelectionReason)),
)
catalogues = st.builds(CatalogueInfo, texts, texts, int32, int32, st.booleans())


def round_trip(value: Any, to_proto: Callable[[Any], Any], from_proto: Callable[[Any], Any]) -> Any:
    message = to_proto(value)
    return from_proto(type(message).FromString(message.SerializeToString()))


@unhurried
@given(prompts)
def test_prompts_round_trip(prompt: Prompt) -> None:
    assert round_trip(prompt, wire.prompt_to_proto, wire.prompt_from_proto) == prompt


@unhurried
@given(compositions)
def test_compositions_round_trip(composition: Composition) -> None:
    assert round_trip(composition, wire.composition_to_proto, wire.composition_from_proto) == composition


@unhurried
@given(decodings)
def test_decodings_round_trip(decoding: Decoding) -> None:
    assert round_trip(decoding, wire.decoding_to_proto, wire.decoding_from_proto) == decoding


@unhurried
@given(generations)
def test_generations_round_trip_with_times_in_nanoseconds(generation: Generation) -> None:
    back = round_trip(generation, wire.generation_to_proto, wire.generation_from_proto)
    times = [(t.queue_s, t.prefill_s, t.decode_s) for t in (generation.timings, back.timings)]
    assert times[1] == pytest.approx(times[0], abs=1e-9)
    assert back == Generation(back.text, back.finish_reason, back.usage, back.timings, back.applied, back.fusion_method)
    assert (back.text, back.finish_reason, back.usage, back.applied) == (
        generation.text,
        generation.finish_reason,
        generation.usage,
        generation.applied,
    )


@unhurried
@given(catalogues)
def test_catalogues_round_trip(catalogue: CatalogueInfo) -> None:
    assert round_trip(catalogue, wire.catalogue_to_proto, wire.catalogue_from_proto) == catalogue


def test_selection_with_matches_has_no_reason() -> None:
    match = Match(Adapter("gmail", "tiny", "adapters/gmail"), 0.5, 1.0)
    with pytest.raises(InvalidArgumentError, match="but the selection has matches"):
        Selection((match,), SelectionReason.BELOW_MINIMUM_SIMILARITY)


@unhurried
@given(adapters)
def test_adapters_round_trip(adapter: Adapter) -> None:
    assert round_trip(adapter, wire.adapter_to_proto, wire.adapter_from_proto) == adapter


@unhurried
@given(options)
def test_retrieval_options_come_back(given_options: RetrievalOptions) -> None:
    back = round_trip(given_options, wire.retrieval_options_to_proto, wire.retrieval_options_from_proto)
    assert back == given_options


@unhurried
@given(selections)
def test_selections_come_back(selection: Selection) -> None:
    assert round_trip(selection, wire.selection_to_proto, wire.selection_from_proto) == selection


def test_unset_messages_mean_server_defaults() -> None:
    assert wire.composition_from_proto(generation_service_pb2.Composition()) == Base()
    assert wire.decoding_from_proto(generation_service_pb2.Decoding()) == Decoding()
    assert wire.retrieval_options_from_proto(retrieval_service_pb2.RetrievalOptions()) == RetrievalOptions()


@pytest.mark.parametrize(
    ("cls", "wrapper"),
    [
        (Role, prompt_pb2.Role),
        (FusionMethod, generation_service_pb2.FusionMethod),
        (FinishReason, generation_service_pb2.FinishReason),
        (RetrievalStrategy, retrieval_service_pb2.RetrievalStrategy),
        (Weighting, retrieval_service_pb2.Weighting),
    ],
)
def test_enums_have_same_members_on_both_sides(cls: type[StrEnum], wrapper: Any) -> None:
    assert len(cls) == len(wrapper.values()) - 1
    for member in cls:
        assert wire.enum_from_proto(cls, wrapper, wire.enum_to_proto(wrapper, member), "x") is member
    assert wire.enum_to_proto(wrapper, None) == 0


def user(*contents: prompt_pb2.Part) -> prompt_pb2.Message:
    return prompt_pb2.Message(role=prompt_pb2.ROLE_USER, parts=contents)


TEXT = prompt_pb2.Part(text="tap the bag")


@pytest.mark.parametrize(
    ("messages", "path"),
    [
        ([], "prompt.messages"),
        ([user()], "prompt.messages[0].parts"),
        ([user(prompt_pb2.Part(text=" \n"))], "prompt.messages[0].parts"),
        ([user(TEXT, prompt_pb2.Part())], "prompt.messages[0].parts[1].content"),
        ([user(TEXT, prompt_pb2.Part(image=prompt_pb2.Image()))], "prompt.messages[0].parts[1].image.data"),
        ([user(TEXT), prompt_pb2.Message(role=prompt_pb2.ROLE_ASSISTANT, parts=[TEXT])], "prompt.messages[1].role"),
        ([prompt_pb2.Message(role=17, parts=[TEXT])], "prompt.messages[0].role"),  # type: ignore[arg-type]
    ],
)
def test_malformed_prompt_is_named_by_path(messages: list[prompt_pb2.Message], path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught, field_path("prompt"):
        wire.prompt_from_proto(prompt_pb2.Prompt(messages=messages))
    assert caught.value.field == path
    assert caught.value.message.startswith(f"{path}: ")


def test_unset_role_is_user() -> None:
    prompt = wire.prompt_from_proto(prompt_pb2.Prompt(messages=[prompt_pb2.Message(parts=[TEXT])]))
    assert prompt.messages[0].role is Role.USER


def test_prompt_errors_have_index_and_empty_list_is_error() -> None:
    good = prompt_pb2.Prompt(messages=[user(TEXT)])
    assert len(wire.prompts_from_proto([good, good])) == 2
    with pytest.raises(InvalidArgumentError, match=r"^prompts\[1\]\.messages: the prompt is empty"):
        wire.prompts_from_proto([good, prompt_pb2.Prompt()])
    with pytest.raises(InvalidArgumentError, match=r"^prompts: the list is empty"):
        wire.prompts_from_proto([])


CONCAT, SVD = generation_service_pb2.FUSION_METHOD_CONCAT, generation_service_pb2.FUSION_METHOD_SVD
TIES, DARE = generation_service_pb2.FUSION_METHOD_TIES, generation_service_pb2.FUSION_METHOD_DARE


def share(adapter_id: str = "adidas", weight: float = 0.5) -> adapter_pb2.WeightedAdapter:
    return adapter_pb2.WeightedAdapter(adapter_id=adapter_id, weight=weight)


@pytest.mark.parametrize(
    ("composition", "path"),
    [
        ({"mixture": {}}, "composition.mixture.adapters"),
        ({"mixture": {"adapters": [share(), share("")]}}, "composition.mixture.adapters[1].adapter_id"),
        ({"mixture": {"adapters": [share(), share("../x")]}}, "composition.mixture.adapters[1].adapter_id"),
        ({"mixture": {"adapters": [share(), share()]}}, "composition.mixture.adapters[1].adapter_id"),
        ({"mixture": {"adapters": [share(weight=float("nan"))]}}, "composition.mixture.adapters[0].weight"),
        ({"fusion": {"adapters": [share(weight=-0.1)]}}, "composition.fusion.adapters[0].weight"),
        ({"fusion": {"adapters": [share()], "method": 99}}, "composition.fusion.method"),
        ({"fusion": {"adapters": [share()], "rank": 8}}, "composition.fusion.rank"),
        ({"fusion": {"adapters": [share()], "method": CONCAT, "rank": 8}}, "composition.fusion.rank"),
        ({"fusion": {"adapters": [share()], "method": SVD, "rank": 0}}, "composition.fusion.rank"),
        ({"fusion": {"adapters": [share()], "method": SVD, "density": 0.5}}, "composition.fusion.density"),
        ({"fusion": {"adapters": [share()], "method": TIES, "density": 0.0}}, "composition.fusion.density"),
        ({"fusion": {"adapters": [share()], "method": TIES, "density": 1.01}}, "composition.fusion.density"),
        ({"fusion": {"adapters": [share()], "method": DARE, "density": float("nan")}}, "composition.fusion.density"),
        ({"fusion": {"adapters": [share()], "method": TIES, "seed": 3}}, "composition.fusion.seed"),
    ],
)
def test_malformed_composition_is_named_by_path(composition: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught, field_path("composition"):
        wire.composition_from_proto(generation_service_pb2.Composition(**composition))
    assert caught.value.field == path


def test_unused_fusion_option_names_methods_that_use_it() -> None:
    with pytest.raises(InvalidArgumentError, match=r"density: svd fusion does not use it.*ties, dare"):
        Fusion((WeightedAdapter("adidas", 1.0),), FusionMethod.SVD, density=0.5)
    with pytest.raises(InvalidArgumentError, match="seed: must be an unsigned 64 bit number"):
        Fusion((WeightedAdapter("adidas", 1.0),), FusionMethod.DARE, seed=-1)


@pytest.mark.parametrize(
    ("decoding", "path"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"token_top_k": -1}, "token_top_k"),
        ({"stop": ["x"] * 9}, "stop"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_malformed_decoding_is_named_by_its_path(decoding: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wire.decoding_from_proto(generation_service_pb2.Decoding(**decoding))
    assert caught.value.field == path


@pytest.mark.parametrize(
    ("given_options", "path"),
    [
        ({"top_k": -1}, "top_k"),
        ({"strategy": 99}, "strategy"),
        ({"weighting": 99}, "weighting"),
        ({"temperature": 0.0}, "temperature"),
        ({"min_similarity": float("nan")}, "min_similarity"),
        ({"exclude": ["ok", "not ok"]}, "exclude[1]"),
    ],
)
def test_malformed_retrieval_options_are_named_by_their_path(given_options: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        wire.retrieval_options_from_proto(retrieval_service_pb2.RetrievalOptions(**given_options))
    assert caught.value.field == path


def test_vectors_are_whole_float32_values() -> None:
    vector = retrieval_service_pb2.Vector
    assert wire.vector_from_proto(wire.vector_to_proto(b"\0\0\x80\x3f"), "vectors[0]") == b"\0\0\x80\x3f"
    for data in (b"", b"12345"):
        with pytest.raises(InvalidArgumentError) as caught:
            wire.vector_from_proto(vector(float32=data), "vectors[3]")
        assert caught.value.field == "vectors[3].float32"


def test_answer_without_finish_reason_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="finish_reason"):
        wire.generation_from_proto(generation_service_pb2.GenerateResponse())


def test_unknown_enum_value_names_known_ones() -> None:
    with pytest.raises(InvalidArgumentError, match="use one of UNIFORM, SOFTMAX, SIMILARITY"):
        wire.enum_from_proto(Weighting, retrieval_service_pb2.Weighting, 99, "weighting")
    assert orchestrator_service_pb2.AnswerStrategy.Name(0).endswith("UNSPECIFIED"), (
        "the naming that the prefix relies on"
    )


@pytest.mark.parametrize("method", [None, FusionMethod.LINEAR, FusionMethod.SVD])
def test_answer_says_how_its_adapters_were_fused(method: FusionMethod | None) -> None:
    generation = Generation("", FinishReason.LENGTH, Usage(1, 0, 1), Timings(0, 0, 0), (), method)
    assert round_trip(generation, wire.generation_to_proto, wire.generation_from_proto).fusion_method is method
