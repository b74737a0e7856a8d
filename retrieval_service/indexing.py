"""Examples of what an adapter was trained on -> vectors -> the catalogue."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError, NotFoundError, field_path
from infra.contract.prompt import Prompt
from infra.runtime.images import ImageLimits
from retrieval_service.catalogue.catalogue import Catalogue, already_exists
from retrieval_service.catalogue.points import AdapterVectors
from retrieval_service.catalogue.stored_examples import encode_prompt
from retrieval_service.embedders.base import Embedder, FloatArray

CHANGEABLE = ("display_name", "description", "base_model", "kind", "tags", "checkpoint_uri", "rank", "targets")
_GIVEN_BY_THE_CATALOGUE = ("revision", "example_count", "update_time")


@dataclass(frozen=True)
class ExamplePrompts:
    """Training examples to embed."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class ExampleVectors:
    """One vector an example, or a single ready-made mean."""

    vectors: tuple[FloatArray, ...]


Examples = ExamplePrompts | ExampleVectors


class Indexer:
    """Registers and changes adapters."""

    def __init__(
        self, embedder: Embedder, catalogue: Catalogue, max_examples: int, limits: ImageLimits | None = None
    ) -> None:
        """Take at most `max_examples` of an adapter, with images within `limits`."""
        self._embedder = embedder
        self._catalogue = catalogue
        self._max_examples = max_examples
        self._limits = limits or ImageLimits()

    def create(self, adapter: Adapter, examples: Examples) -> Adapter:
        """Register an adapter; return it as stored.

        Raises AlreadyExistsError, and InvalidArgumentError with the path from the request on.
        """
        with field_path("adapter"):
            _check_given(adapter)
            _check_complete(adapter)
        with contextlib.suppress(NotFoundError):  # before the examples are embedded, which takes time
            raise already_exists(adapter, self._catalogue.get(adapter.adapter_id))
        return self._catalogue.create(adapter, self._vectors(examples), self._kept(examples))

    def update(
        self, adapter: Adapter, paths: Sequence[str], examples: Examples | None, expected_revision: str
    ) -> Adapter:
        """Change the fields named by `paths` (none: all that are set) to those of `adapter`; return it as stored.

        Raises NotFoundError, ConflictError and InvalidArgumentError.
        """
        changes = _changes(adapter, paths)
        with field_path("adapter"):
            _check_given(adapter)
            if "base_model" in changes:
                _check_complete(adapter)
        if not changes and examples is None:
            raise InvalidArgumentError("update_mask", f"nothing to change; set one of {', '.join(CHANGEABLE)}")
        self._catalogue.get(adapter.adapter_id)  # before the examples are embedded, which takes time
        vectors = None if examples is None else self._vectors(examples)
        return self._catalogue.update(
            adapter.adapter_id,
            lambda before: replace(before, **changes),
            vectors,
            expected_revision,
            self._kept(examples),
        )

    def _vectors(self, examples: Examples) -> AdapterVectors:
        match examples:
            case ExamplePrompts(prompts):
                with field_path("examples.prompts"):
                    self._check_count(len(prompts))
                    return AdapterVectors.of(list(self._embedder.embed(prompts)), self._embedder.dim)
            case ExampleVectors(vectors):
                with field_path("vectors.vectors"):
                    self._check_count(len(vectors))
                    return AdapterVectors.of(vectors, self._embedder.dim)
            case _:
                assert_never(examples)

    def _kept(self, examples: Examples | None) -> list[Any]:
        """Return the prompts as they are kept, before anything is stored: a broken image may show only here."""
        kept: list[Any] = []
        if isinstance(examples, ExamplePrompts) and self._catalogue.stores_examples:
            for index, prompt in enumerate(examples.prompts):
                with field_path(f"examples.prompts[{index}]"):
                    kept.append(encode_prompt(prompt, self._limits))
        return kept

    def _check_count(self, count: int) -> None:
        if count > self._max_examples:
            raise InvalidArgumentError("", f"{count} examples are too many; send at most {self._max_examples}")


def _check_given(adapter: Adapter) -> None:
    for name in _GIVEN_BY_THE_CATALOGUE:
        if getattr(adapter, name):
            raise InvalidArgumentError(name, "is given by the catalogue; leave it unset")


def _check_complete(adapter: Adapter) -> None:
    if not adapter.base_model.strip():
        raise InvalidArgumentError("base_model", "is empty; name the base model that the adapter was trained on")


def _changes(adapter: Adapter, paths: Sequence[str]) -> dict[str, Any]:
    for index, path in enumerate(paths):
        if path not in CHANGEABLE:
            raise InvalidArgumentError(
                f"update_mask.paths[{index}]", f"{path!r} cannot be changed; these can: {', '.join(CHANGEABLE)}"
            )
    return {name: getattr(adapter, name) for name in (paths or CHANGEABLE) if paths or getattr(adapter, name)}
