"""Any endpoint that speaks OpenAI's embeddings API: POST {url}/embeddings {"model", "input", ...} -> {"data": [...]}.

For text, unless told that the endpoint reads images: then they go as `{"image": base64}` among the inputs, and texts as
`{"text": ...}`, which is how hosted multimodal embedders take them.
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
from retrieval_service.embedders.base import FloatArray, LateFusion, normalise
from retrieval_service.embedders.http_client import Endpoint, HttpClient
from retrieval_service.embedders.part_embedder import ModelInput, PartEmbedder, PartKind, RemainingTime, no_deadline

log = get_logger(__name__)

_PROBE = "dimensions"
_PROBE_PAUSE_S = 1.0
_SHOWN = 80
_REQUEST_BYTES = 16 * 2**20


@dataclass(frozen=True)
class HttpOptions:
    """How prompts are embedded. `dim` is asked of the endpoint; None is whatever it answers, seen at start.

    `prompt` is put before every text. `parallel` requests of `batch_size` inputs may be under way at once; the endpoint
    has `wait_s` to come up. `encoding` is how it is asked to write vectors; either is understood.
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

    batch_tokens = _REQUEST_BYTES  # rows count in characters and bytes here

    def __init__(self, endpoint: Endpoint, options: HttpOptions) -> None:
        """Ask the endpoint for the length of its vectors, unless it is configured.

        Raises ConfigurationError for an endpoint that cannot be, and whatever its first answer calls for.
        """
        if not endpoint.model:
            raise ConfigurationError("--embedder-model is missing; name the model that the endpoint should embed with")
        self._options = options
        self._client = HttpClient(endpoint)
        self.late_fusion, self.batch_size, self.parallel = options.late_fusion, options.batch_size, options.parallel
        self.takes_images = options.images
        self._dim = options.dim or self._probe()

    @property
    def dim(self) -> int:
        """Dimensions of a vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Names the endpoint, its model, and every setting that changes a vector."""
        endpoint, options, fusion = self._client.endpoint, self._options, self.late_fusion
        images = (
            f" text_weight={fusion.text_weight:g} image_weight={fusion.image_weight:g} "
            f"max_query_images={fusion.max_images}"
        )
        return (
            f"http url={endpoint.shown} model={endpoint.model} dim={self.dim} prompt={options.prompt!r}"
            f"{images if options.images else ''}"
        )

    def text_row(self, text: str) -> ModelInput:
        """Return a text behind the prompt."""
        said = self._options.prompt + text
        return ModelInput(PartKind.TEXT, len(said), {"text": said} if self._options.images else said)

    def image_row(self, image: ImagePart) -> ModelInput:
        """Return an image as base64. Raises InvalidArgumentError when it is broken: an endpoint may not say which."""
        decode_image(image, self._options.limits)
        return ModelInput(PartKind.IMAGE, len(image.data), {"image": base64.b64encode(image.data).decode()})

    def run(self, rows: Sequence[ModelInput], left_s: RemainingTime = no_deadline) -> FloatArray:
        """Return the vectors of rows, [len(rows), dim], from one request.

        Raises UnavailableError, OverloadedError, FailedPreconditionError or DeadlineError for the endpoint,
        InvalidArgumentError for an input that it refuses, InternalError for an answer that is none.
        """
        vectors = self._ask([row.content for row in rows], left_s)
        if vectors.shape[1] != self.dim:
            asked = "; it does not obey `dimensions`, so leave --truncate-dim unset" if self._options.dim else ""
            raise InternalError(
                f"{self._client.endpoint.shown} answers vectors of {vectors.shape[1]} dimensions, not {self.dim}{asked}"
            )
        return normalise(vectors)

    def _ask(self, inputs: Sequence[Any], left_s: RemainingTime) -> FloatArray:
        asked: dict[str, Any] = {
            "model": self._client.endpoint.model,
            "input": list(inputs),
            "encoding_format": self._options.encoding,
        }
        if self._options.dim is not None:
            asked["dimensions"] = self._options.dim
        answer = self._client.post(asked, left_s)
        try:
            return _vectors(answer, len(inputs))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InternalError(
                f"{self._client.endpoint.shown} does not answer as an embeddings endpoint: {str(error)[:_SHOWN]}; "
                "check --embedder-url"
            ) from error

    def _probe(self) -> int:
        """Return the dimensions that the endpoint answers, waiting for one that is not up yet."""
        give_up = time.monotonic() + self._options.wait_s
        while True:
            try:
                return int(self._ask([self.text_row(_PROBE).content], no_deadline).shape[1])
            except UnavailableError as error:
                if time.monotonic() + _PROBE_PAUSE_S > give_up:
                    raise
                log.warning("waiting for the embeddings endpoint", problem=error.message)
                time.sleep(_PROBE_PAUSE_S)


def _vectors(answer: Any, count: int) -> FloatArray:
    """Return the vectors of an answer, [count, dim], in the order of the inputs. Raises ValueError and its like."""
    data = answer["data"]
    if len(data) != count:
        raise ValueError(f"{len(data)} vectors for {count} inputs")
    order = [item.get("index", place) for place, item in enumerate(data)]
    if sorted(order) != list(range(count)):
        raise ValueError(f"vectors of the inputs {str(order)[:_SHOWN]}, of {count}")
    by_index = {index: _vector(item["embedding"]) for index, item in zip(order, data, strict=True)}
    lengths = {len(vector) for vector in by_index.values()}
    if len(lengths) != 1:
        raise ValueError(f"vectors of different lengths: {sorted(lengths)}")
    vectors = np.stack([by_index[index] for index in range(count)])
    if not np.isfinite(vectors).all() or not vectors.any(axis=1).all():
        raise ValueError("a vector holds NaN or infinite values, or only zeros")
    return vectors


def _vector(written: Any) -> FloatArray:
    if isinstance(written, str):
        vector = np.frombuffer(base64.b64decode(written, validate=True), "<f4").astype(np.float32)
    else:
        vector = np.asarray(written, np.float32)
    if vector.ndim != 1 or not len(vector):
        raise ValueError("an embedding is no list of numbers")
    return vector
