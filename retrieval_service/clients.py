"""A synchronous client of the retrieval service, for the commands of this tier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from loraretriever.v1 import retrieval_service_pb2 as pb
from loraretriever.v1.retrieval_service_pb2_grpc import RetrievalServiceStub

from infra.contract.adapter import Adapter
from infra.contract.prompt import Prompt
from infra.contract.retrieval import RetrievalOptions, Selection
from infra.runtime import wire
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.deadline import LONG_TIMEOUT_S, QUICK_TIMEOUT_S
from infra.runtime.error_table import translated
from retrieval_service.embedders.base import FloatArray


@dataclass(frozen=True, eq=False)
class StoredAdapter:
    """An adapter of the catalogue with the vectors of its examples, [n, dim]."""

    adapter: Adapter
    vectors: FloatArray


class RetrievalClient:
    """Calls one retrieval service. Raises the errors of infra.contract.errors."""

    def __init__(self, target: str, stub: Any) -> None:
        self._target = target
        self._stub = stub

    def retrieve(self, prompts: Sequence[Prompt], options: RetrievalOptions) -> list[Selection]:
        """Return the adapters that fit each prompt."""
        request = pb.RetrieveAdaptersRequest(
            prompts=[wire.prompt_to_proto(prompt) for prompt in prompts],
            options=wire.retrieval_options_to_proto(options),
        )
        response = self._call("RetrieveAdapters", request, LONG_TIMEOUT_S)
        return [wire.selection_from_proto(selection) for selection in response.selections]

    def stored(self, base_model: str, kind: str) -> Iterator[StoredAdapter]:
        """Yield the adapters of a base model and a kind ("": any), by id, with their vectors."""
        for adapter_id in self._ids(base_model, kind):
            response = self._call("GetAdapter", pb.GetAdapterRequest(adapter_id=adapter_id, with_vectors=True))
            vectors = [np.frombuffer(wire.vector_from_proto(vector, "vectors"), "<f4") for vector in response.vectors]
            yield StoredAdapter(wire.adapter_from_proto(response.adapter), np.stack(vectors))

    def _ids(self, base_model: str, kind: str) -> Iterator[str]:
        token = ""
        while True:
            request = pb.ListAdaptersRequest(page_size=1000, page_token=token, base_model=base_model, kind=kind)
            page = self._call("ListAdapters", request)
            yield from (adapter.adapter_id for adapter in page.adapters)
            token = page.next_page_token
            if not token:
                return

    def _call(self, method: str, request: Any, timeout_s: float = QUICK_TIMEOUT_S) -> Any:
        with translated(self._target):
            return getattr(self._stub, method)(request, timeout=timeout_s)


@contextmanager
def retrieval_client(channel: ChannelOptions) -> Iterator[RetrievalClient]:
    """Yield a client that calls the service over a channel."""
    with sync_channel(channel) as connected:
        yield RetrievalClient(channel.target, RetrievalServiceStub(connected))  # type: ignore[no-untyped-call]
