"""GET /v1/models: what `model` may name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from infra.contract.adapter import ADAPTER_ID_PATTERN, Adapter
from infra.contract.errors import NotFoundError
from orchestrator.gateway.routes.embeddings import EMBEDDER
from orchestrator.gateway.services import Services
from orchestrator.gateway.steering import model_names, unknown_model


class ModelReport(BaseModel):
    """Something that `model` may name. `parent` is the base model; `created` is Unix time, 0 if unknown."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "loraretriever"
    parent: str | None = None


class ModelList(BaseModel):
    """The response of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelReport]


def model_routes(services: Services) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """List the methods, the base model, the adapters of the running base model, and the embedder."""
        return ModelList(data=[model async for model in _models(services)])

    @router.get("/v1/models/{model}")
    async def retrieve_model(model: str) -> ModelReport:
        """Show one of them."""
        base_model = (await services.pipeline.model()).base_model
        if model in model_names():
            return ModelReport(id=model, parent=base_model)
        if model == EMBEDDER:
            return ModelReport(id=model)
        if not ADAPTER_ID_PATTERN.fullmatch(model):
            raise unknown_model(model)
        try:
            return _of_adapter(await services.retrieval.get_adapter(model))
        except NotFoundError as error:
            raise unknown_model(model) from error

    return router


async def _models(services: Services) -> AsyncIterator[ModelReport]:
    base_model = (await services.pipeline.model()).base_model
    for name in model_names():
        yield ModelReport(id=name, parent=base_model)
    for adapter in await services.retrieval.list_adapters(base_model):
        yield _of_adapter(adapter)
    yield ModelReport(id=EMBEDDER)


def _of_adapter(adapter: Adapter) -> ModelReport:
    created = int(adapter.update_time.timestamp()) if adapter.update_time else 0
    return ModelReport(id=adapter.adapter_id, created=created, parent=adapter.base_model)
