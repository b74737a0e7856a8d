"""Client of the catalogue."""

from __future__ import annotations

from loraretriever.v1 import retrieval_service_pb2 as pb
from loraretriever.v1 import retrieval_service_pb2_grpc

from generation_service.settings import GenerationSettings
from infra.contract.adapter import Adapter
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.error_table import translated
from infra.runtime.wire import adapter_from_proto


class CatalogueClient:
    """Looks up adapters in the retrieval service. Blocks; safe from any thread."""

    def __init__(self, options: ChannelOptions) -> None:
        self._target = options.target
        self._channel = sync_channel(options)
        self._stub = retrieval_service_pb2_grpc.RetrievalServiceStub(self._channel)  # type: ignore[no-untyped-call]

    @classmethod
    def from_settings(cls, settings: GenerationSettings) -> CatalogueClient:
        """Return a client of the catalogue at `retrieval_target`."""
        token = settings.retrieval_token
        return cls(
            ChannelOptions(
                target=settings.retrieval_target,
                tls_ca=settings.retrieval_tls_ca,
                tls_certificate=settings.retrieval_tls_certificate,
                tls_key=settings.retrieval_tls_key,
                token=token.get_secret_value() if token is not None else None,
                max_message_bytes=settings.server.max_message_bytes,
                default_timeout_s=settings.retrieval_timeout_s,
            )
        )

    def get_adapter(self, adapter_id: str) -> Adapter:
        """Return the newest revision of an adapter. Raises NotFoundError, UnavailableError or DeadlineError."""
        with translated(self._target):
            response = self._stub.GetAdapter(pb.GetAdapterRequest(adapter_id=adapter_id))
        return adapter_from_proto(response.adapter)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()
