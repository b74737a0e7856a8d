"""The catalogue: GET, POST and DELETE /v1/adapters."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from infra.contract.adapter import Adapter, check_adapter_id
from infra.contract.errors import InvalidArgumentError, field_path
from infra.contract.prompt import Prompt
from orchestrator.gateway.content import Messages, prompt_of
from orchestrator.gateway.disconnect import while_connected
from orchestrator.gateway.fields import RequestModel
from orchestrator.gateway.services import Services

_MAX_EXAMPLES = 1024


class Conversation(RequestModel):
    """A training example with images, or of several turns."""

    messages: Messages


def _as_conversation(value: Any) -> Any:
    return {"messages": [{"role": "user", "content": value}]} if isinstance(value, str) else value


_EXAMPLE_SCHEMA = WithJsonSchema({"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/Conversation"}]})


class NewAdapter(RequestModel):
    """An adapter to register. It can be retrieved once the response has arrived."""

    id: str
    checkpoint: str = Field(
        description="PEFT folder, below the generation service's adapter roots", min_length=1, pattern=r"^[^\x00]*$"
    )
    examples: list[Annotated[Conversation, BeforeValidator(_as_conversation), _EXAMPLE_SCHEMA]] = Field(
        description="training examples: texts, or conversations", min_length=1, max_length=_MAX_EXAMPLES
    )
    kind: str = ""
    tags: tuple[str, ...] = Field((), max_length=64)
    display_name: str = ""
    description: str = ""
    replace: bool = Field(False, description="replace an adapter of the same id")

    def adapter(self, base_model: str) -> Adapter:
        """Return the adapter, of a base model. Raises InvalidArgumentError."""
        check_adapter_id(self.id, "id")
        return Adapter(
            adapter_id=self.id,
            base_model=base_model,
            checkpoint_uri=self.checkpoint,
            kind=self.kind,
            display_name=self.display_name,
            description=self.description,
            tags=self.tags,
        )

    def prompts(self) -> list[Prompt]:
        """Return the training examples. Raises InvalidArgumentError with the path of the field."""
        prompts = []
        for index, example in enumerate(self.examples):
            with field_path(f"examples[{index}]"):
                prompts.append(prompt_of(example.messages))
        return prompts


class AdapterFilter(RequestModel):
    """Which adapters are listed; empty is all."""

    base_model: str = ""
    kind: str = ""
    tag: list[str] = Field([], max_length=64, description="may be repeated: adapters with all of them")


class AdapterReport(BaseModel):
    """An adapter of the catalogue. `rank` 0 and empty `targets`: unknown."""

    id: str
    object: Literal["adapter"] = "adapter"
    base_model: str
    checkpoint: str
    kind: str
    tags: tuple[str, ...]
    display_name: str
    description: str
    rank: int
    targets: tuple[str, ...]
    revision: str
    example_count: int
    update_time: datetime | None

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterReport:
        """Return the report of an adapter."""
        return cls(
            id=adapter.adapter_id,
            base_model=adapter.base_model,
            checkpoint=adapter.checkpoint_uri,
            kind=adapter.kind,
            tags=adapter.tags,
            display_name=adapter.display_name,
            description=adapter.description,
            rank=adapter.rank,
            targets=adapter.targets,
            revision=adapter.revision,
            example_count=adapter.example_count,
            update_time=adapter.update_time,
        )


class AdapterList(BaseModel):
    """The response of GET /v1/adapters, ordered by id."""

    object: Literal["list"] = "list"
    data: list[AdapterReport]


class DeletedAdapter(BaseModel):
    """The response of DELETE /v1/adapters/{id}."""

    id: str
    object: Literal["adapter"] = "adapter"
    deleted: Literal[True] = True


def adapter_routes(services: Services) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["adapters"])

    @router.get("/v1/adapters")
    async def list_adapters(wanted: Annotated[AdapterFilter, Query()]) -> AdapterList:
        """List the adapters of the catalogue."""
        adapters = await services.retrieval.list_adapters(wanted.base_model, wanted.kind, wanted.tag)
        return AdapterList(data=[AdapterReport.of(adapter) for adapter in adapters])

    @router.get("/v1/adapters/{adapter_id}")
    async def show_adapter(adapter_id: str) -> AdapterReport:
        """Show one adapter."""
        return AdapterReport.of(await services.retrieval.get_adapter(check_adapter_id(adapter_id, "id")))

    @router.post("/v1/adapters", status_code=201)
    async def add_adapter(body: NewAdapter, request: Request) -> AdapterReport:
        """Register an adapter, unless the generation service cannot serve it."""
        return AdapterReport.of(await while_connected(request, _register(services, body)))

    @router.delete("/v1/adapters/{adapter_id}")
    async def delete_adapter(adapter_id: str) -> DeletedAdapter:
        """Remove an adapter from the catalogue; its files stay."""
        await services.retrieval.delete_adapter(check_adapter_id(adapter_id, "id"))
        return DeletedAdapter(id=adapter_id)

    return router


async def _register(services: Services, body: NewAdapter) -> Adapter:
    for index, example in enumerate(body.examples):
        with field_path(f"examples[{index}]"):
            await services.images.inline(example.messages)
    prompts = body.prompts()
    running = (await services.pipeline.model()).base_model
    adapter = body.adapter(running)
    try:
        adapter = body.adapter(await services.generation.check_adapter(adapter, services.answer_timeout_s))
        if body.replace:
            return await services.retrieval.replace_adapter(adapter, prompts, timeout_s=services.answer_timeout_s)
        return await services.retrieval.create_adapter(adapter, prompts, services.answer_timeout_s)
    except InvalidArgumentError as error:
        raise error.renamed(_field_of(error.field)) from error


def _field_of(path: str) -> str:
    """Return the field of the request for a field of CheckAdapter or CreateAdapter."""
    path = path.removeprefix("adapter.").replace("examples.prompts[", "examples[", 1)
    return {"adapter_id": "id", "checkpoint_uri": "checkpoint"}.get(path, path)
