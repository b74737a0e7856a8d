"""POST /v1/embeddings: vectors of texts, as the catalogue searches with them."""

from __future__ import annotations

import array
import base64
import sys
from typing import Annotated, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from infra.contract.errors import InvalidArgumentError
from infra.contract.prompt import Prompt
from orchestrator.gateway.disconnect import while_connected
from orchestrator.gateway.errors import UnknownModelError
from orchestrator.gateway.fields import RequestModel, Strings, Unused, only
from orchestrator.gateway.requests import renamed_prompt
from orchestrator.gateway.services import Services

EMBEDDER = "embedder"
_MAX_INPUTS = 2048


class EmbeddingRequest(RequestModel):
    """Texts to embed; lists of tokens are not offered, since every embedder has its own."""

    model: str = Field(description=EMBEDDER)
    input: Annotated[Strings, Field(min_length=1, max_length=_MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: only() = None  # type: ignore[valid-type]
    user: Unused = None


class Embedding(BaseModel):
    """One vector, of length 1: numbers, or base64 of little-endian float32 values."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingList(BaseModel):
    """The vectors, in the order of the texts. There is no usage: the embedder does not report tokens."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]


def embedding_routes(services: Services) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["embeddings"])

    @router.post("/v1/embeddings")
    async def create_embeddings(body: EmbeddingRequest, request: Request) -> EmbeddingList:
        """Embed texts with the embedder of the catalogue."""
        if body.model != EMBEDDER:
            raise UnknownModelError(f"model: the only embedder is {EMBEDDER!r}, not {body.model[:60]!r}", param="model")
        prompts = []
        for index, text in enumerate(body.input):
            with renamed_prompt(f"input[{index}]"):
                prompts.append(Prompt.of(text))
        try:
            vectors = await while_connected(request, services.retrieval.embed(prompts, services.answer_timeout_s))
        except InvalidArgumentError as error:
            raise error.renamed(_input_field(error.field)) from error
        is_base64 = body.encoding_format == "base64"
        data = [
            Embedding(index=index, embedding=base64.b64encode(vector).decode() if is_base64 else floats_of(vector))
            for index, vector in enumerate(vectors)
        ]
        return EmbeddingList(model=EMBEDDER, data=data)

    return router


def floats_of(vector: bytes) -> list[float]:
    """Return the numbers of a vector of little-endian float32 values."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _input_field(path: str) -> str:
    """Return the field of a request for a field of EmbedPrompts: "prompts[2].messages[0]..." is "input[2]"."""
    top = path.partition(".")[0]
    return top.replace("prompts", "input", 1)
