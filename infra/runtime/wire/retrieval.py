"""Conversion of retrieval_service.proto: options, matches, selections, the catalogue."""

from __future__ import annotations

from loraretriever.v1 import retrieval_service_pb2

from infra.contract.errors import field_path
from infra.contract.retrieval import (
    CatalogueInfo,
    Match,
    RetrievalOptions,
    RetrievalStrategy,
    RetrievalTimings,
    Selection,
    SelectionReason,
    Weighting,
)
from infra.runtime.wire.adapter import adapter_from_proto, adapter_to_proto
from infra.runtime.wire.values import duration_from_seconds, enum_from_proto, enum_to_proto, seconds_from_duration


def retrieval_options_from_proto(message: retrieval_service_pb2.RetrievalOptions) -> RetrievalOptions:
    """Return retrieval options."""
    return RetrievalOptions(
        top_k=message.top_k or None,
        base_model=message.base_model,
        kind=message.kind,
        tags=tuple(message.tags),
        include=tuple(message.include),
        exclude=tuple(message.exclude),
        strategy=enum_from_proto(
            RetrievalStrategy, retrieval_service_pb2.RetrievalStrategy, message.strategy, "strategy"
        ),
        weighting=enum_from_proto(Weighting, retrieval_service_pb2.Weighting, message.weighting, "weighting"),
        temperature=message.temperature if message.HasField("temperature") else None,
        min_similarity=message.min_similarity if message.HasField("min_similarity") else None,
        min_log_odds=message.min_log_odds if message.HasField("min_log_odds") else None,
    )


def retrieval_options_to_proto(options: RetrievalOptions) -> retrieval_service_pb2.RetrievalOptions:
    """Return retrieval options as their message."""
    return retrieval_service_pb2.RetrievalOptions(
        top_k=options.top_k or 0,
        base_model=options.base_model,
        kind=options.kind,
        tags=options.tags,
        include=options.include,
        exclude=options.exclude,
        strategy=enum_to_proto(retrieval_service_pb2.RetrievalStrategy, options.strategy),
        weighting=enum_to_proto(retrieval_service_pb2.Weighting, options.weighting),
        temperature=options.temperature,
        min_similarity=options.min_similarity,
        min_log_odds=options.min_log_odds,
    )


def match_from_proto(message: retrieval_service_pb2.Match) -> Match:
    """Return one retrieved adapter."""
    with field_path("adapter"):
        adapter = adapter_from_proto(message.adapter)
    return Match(adapter, message.similarity, message.weight)


def match_to_proto(match: Match) -> retrieval_service_pb2.Match:
    """Return one retrieved adapter as its message."""
    return retrieval_service_pb2.Match(
        adapter=adapter_to_proto(match.adapter), similarity=match.similarity, weight=match.weight
    )


def selection_from_proto(message: retrieval_service_pb2.Selection) -> Selection:
    """Return the matches of one prompt."""
    matches = []
    for index, match in enumerate(message.matches):
        with field_path(f"matches[{index}]"):
            matches.append(match_from_proto(match))
    reason = enum_from_proto(SelectionReason, retrieval_service_pb2.SelectionReason, message.reason, "reason")
    return Selection(tuple(matches), reason, message.log_odds if message.HasField("log_odds") else None)


def selection_to_proto(selection: Selection) -> retrieval_service_pb2.Selection:
    """Return the matches of one prompt as their message."""
    return retrieval_service_pb2.Selection(
        matches=[match_to_proto(match) for match in selection.matches],
        reason=enum_to_proto(retrieval_service_pb2.SelectionReason, selection.reason),
        log_odds=selection.log_odds,
    )


def catalogue_from_proto(message: retrieval_service_pb2.GetCatalogueResponse) -> CatalogueInfo:
    """Return the description of a catalogue."""
    return CatalogueInfo(
        revision=message.catalogue_revision,
        embedder_fingerprint=message.embedder_fingerprint,
        dimension=message.dimension,
        adapter_count=message.adapter_count,
        stale=message.stale,
    )


def catalogue_to_proto(catalogue: CatalogueInfo) -> retrieval_service_pb2.GetCatalogueResponse:
    """Return the description of a catalogue as its message."""
    return retrieval_service_pb2.GetCatalogueResponse(
        catalogue_revision=catalogue.revision,
        embedder_fingerprint=catalogue.embedder_fingerprint,
        dimension=catalogue.dimension,
        adapter_count=catalogue.adapter_count,
        stale=catalogue.stale,
    )


def retrieval_timings_from_proto(message: retrieval_service_pb2.RetrievalTimings) -> RetrievalTimings:
    """Return the timings of a retrieval."""
    return RetrievalTimings(seconds_from_duration(message.embed), seconds_from_duration(message.search))


def retrieval_timings_to_proto(timings: RetrievalTimings) -> retrieval_service_pb2.RetrievalTimings:
    """Return the timings of a retrieval as their message."""
    return retrieval_service_pb2.RetrievalTimings(
        embed=duration_from_seconds(timings.embed_s), search=duration_from_seconds(timings.search_s)
    )
