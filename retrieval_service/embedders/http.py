"""Embeds through an endpoint with OpenAI's API: POST {url}/embeddings {"model", "input", ...} -> {"data": [...]}.

It sends texts only, unless it is configured for an endpoint that accepts images. Then images are sent as
`{"image": base64}` and texts as `{"text": ...}` among the inputs, the form that hosted multimodal embedders use.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from infra.contract.errors import ConfigurationError, InternalError, UnavailableError
from infra.contract.prompt import ImagePart
from infra.runtime.images import ImageLimits, decode_image
from infra.runtime.logs import get_logger
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.embedders.http_client import Endpoint, HttpClient
from retrieval_service.embedders.late_fusion import LateFusion
from retrieval_service.embedders.part_embedder import (
    ModelInput,
    PartEmbedder,
    PartKind,
    RemainingTime,
    no_deadline,
)

log = get_logger(__name__)

_PROBE_TEXT = "dimensions"
_PROBE_PAUSE_S = 1.0
_MAX_SHOWN_CHARACTERS = 80
_MAX_REQUEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class HttpOptions:
    """How prompts are embedded. `dim` is requested from the endpoint; None accepts its own, probed at start.

    `prompt` is put before every text. At most `parallel` requests of `batch_size` inputs run concurrently. The endpoint
    has `wait_s` to start. `encoding` is the requested encoding of vectors; either is understood.
    """

    dim: int | None = None
    prompt: str = ""
    images: bool = False
    encoding: Literal["float", "base64"] = "float"
    late_fusion: LateFusion = field(default_factory=LateFusion)
    limits: ImageLimits = field(default_factory=ImageLimits)
    batch_size: int = 16
    parallel: int = 4
    wait_s: float = 60.0


class HttpEmbedder(PartEmbedder):
    """The embedder behind an endpoint."""

    batch_tokens = _MAX_REQUEST_BYTES  # sizes are in characters and bytes here

    def __init__(self, endpoint: Endpoint, options: HttpOptions) -> None:
        """Probe the endpoint for the dimensions of its vectors, unless they are configured.

        Raises ConfigurationError if the endpoint is invalid, and the errors of `forward` for the probe.
        """
        if not endpoint.model:
            raise ConfigurationError("--embedder-model is missing; name the model that the endpoint should embed with")
        self._options = options
        self._client = HttpClient(endpoint)
        self.late_fusion, self.batch_size, self.parallel = options.late_fusion, options.batch_size, options.parallel
        self.supports_images = options.images
        self._dim = options.dim or self._probe()

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Identifies the endpoint, its model, and every setting that changes a vector."""
        endpoint, options, fusion = self._client.endpoint, self._options, self.late_fusion
        images = (
            f" text_weight={fusion.text_weight:g} image_weight={fusion.image_weight:g} "
            f"max_query_images={fusion.max_images}"
        )
        return (
            f"http url={endpoint.shown} model={endpoint.model} dim={self.dim} prompt={options.prompt!r}"
            f"{images if options.images else ''}"
        )

    def prepare_text(self, text: str) -> ModelInput:
        """Return the prompt followed by the text."""
        prompted = self._options.prompt + text
        return ModelInput(PartKind.TEXT, len(prompted), {"text": prompted} if self._options.images else prompted)

    def prepare_image(self, image: ImagePart) -> ModelInput:
        """Return an image as base64. Raises InvalidArgumentError if it is broken."""
        decode_image(image, self._options.limits)  # an endpoint may not report which image of a request is broken
        return ModelInput(PartKind.IMAGE, len(image.data), {"image": base64.b64encode(image.data).decode()})

    def forward(self, inputs: Sequence[ModelInput], remaining_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of inputs, [len(inputs), dim], from one request.

        Raises:
            UnavailableError: the endpoint does not respond or fails.
            OverloadedError: it responds with 429.
            FailedPreconditionError: it refuses the key, or the URL or model is wrong.
            DeadlineError: the deadline passed first.
            InvalidArgumentError: it refuses an input.
            InternalError: its response does not contain the vectors.
        """
        vectors = self._request([model_input.content for model_input in inputs], remaining_s)
        if vectors.shape[1] != self.dim:
            remedy = "; it ignores `dimensions`, so leave --truncate-dim unset" if self._options.dim else ""
            raise InternalError(
                f"{self._client.endpoint.shown} returned vectors of {vectors.shape[1]} dimensions, "
                f"not {self.dim}{remedy}"
            )
        return normalise(vectors)

    def _request(self, inputs: Sequence[Any], remaining_s: RemainingTime) -> FloatArray:
        body: dict[str, Any] = {
            "model": self._client.endpoint.model,
            "input": list(inputs),
            "encoding_format": self._options.encoding,
        }
        if self._options.dim is not None:
            body["dimensions"] = self._options.dim
        response = self._client.post(body, remaining_s)
        try:
            return _parse_vectors(response, len(inputs))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InternalError(
                f"{self._client.endpoint.shown} does not respond like an embeddings endpoint: "
                f"{str(error)[:_MAX_SHOWN_CHARACTERS]}; check --embedder-url"
            ) from error

    def _probe(self) -> int:
        """Return the dimensions of the endpoint's vectors, waiting until it has started."""
        give_up = time.monotonic() + self._options.wait_s
        while True:
            try:
                return int(self._request([self.prepare_text(_PROBE_TEXT).content], no_deadline).shape[1])
            except UnavailableError as error:
                if time.monotonic() + _PROBE_PAUSE_S > give_up:
                    raise
                log.warning("waiting_for_embeddings_endpoint", problem=error.message)
                time.sleep(_PROBE_PAUSE_S)


def _parse_vectors(response: Any, count: int) -> FloatArray:
    """Return the vectors of a response, [count, dim], in the order of the inputs.

    Raises AttributeError, KeyError, TypeError or ValueError if the response has another form.
    """
    data = response["data"]
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} inputs")
    order = [item.get("index", position) for position, item in enumerate(data)]
    if sorted(order) != list(range(count)):
        raise ValueError(f"vectors with the indexes {str(order)[:_MAX_SHOWN_CHARACTERS]} for {count} inputs")
    by_index = {index: _parse_vector(item["embedding"]) for index, item in zip(order, data, strict=True)}
    lengths = {len(vector) for vector in by_index.values()}
    if len(lengths) != 1:
        raise ValueError(f"vectors of different lengths: {sorted(lengths)}")
    vectors = np.stack([by_index[index] for index in range(count)])
    if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise ValueError("a vector contains NaN or infinite values, or only zeros")
    return vectors


def _parse_vector(encoded: Any) -> FloatArray:
    if isinstance(encoded, str):
        vector = np.frombuffer(base64.b64decode(encoded, validate=True), "<f4").astype(np.float32)
    else:
        vector = np.asarray(encoded, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError("an embedding is not a list of numbers")
    return vector
