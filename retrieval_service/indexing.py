"""Registers adapters: training examples to vectors to the catalogue."""

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

_CHANGEABLE = ("display_name", "description", "base_model", "kind", "tags", "checkpoint_uri", "rank", "targets")
_SET_BY_CATALOGUE = ("revision", "example_count", "update_time")


@dataclass(frozen=True)
class ExamplePrompts:
    """Training examples to embed."""

    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class ExampleVectors:
    """One vector per example, or a single precomputed mean."""

    vectors: tuple[FloatArray, ...]


Examples = ExamplePrompts | ExampleVectors


class Indexer:
    """Registers and changes adapters. Safe for threads."""

    def __init__(
        self, embedder: Embedder, catalogue: Catalogue, max_examples: int, limits: ImageLimits | None = None
    ) -> None:
        """Accept at most `max_examples` per adapter, with images within `limits`."""
        self._embedder = embedder
        self._catalogue = catalogue
        self._max_examples = max_examples
        self._limits = limits or ImageLimits()

    def create(self, adapter: Adapter, examples: Examples) -> Adapter:
        """Register an adapter; return it as stored.

        Raises:
            AlreadyExistsError: the id is taken.
            InvalidArgumentError: a field or an example is invalid; the field path starts at the request.
        """
        with field_path("adapter"):
            _check_not_set(adapter)
            _check_base_model(adapter)
        with contextlib.suppress(NotFoundError):  # checked before the examples are embedded, which takes time
            raise already_exists(adapter, self._catalogue.get(adapter.adapter_id))
        return self._catalogue.create(adapter, self._vectors(examples), self._encoded_prompts(examples))

    def update(
        self, adapter: Adapter, paths: Sequence[str], examples: Examples | None, expected_revision: str
    ) -> Adapter:
        """Change the fields in `paths` (empty: all that are set) to those of `adapter`; return it as stored.

        Raises:
            NotFoundError: the adapter does not exist.
            ConflictError: `expected_revision` is outdated.
            InvalidArgumentError: a path, a field or an example is invalid, or nothing would change.
        """
        changes = _changes(adapter, paths)
        with field_path("adapter"):
            _check_not_set(adapter)
            if "base_model" in changes:
                _check_base_model(adapter)
        if not changes and examples is None:
            raise InvalidArgumentError("update_mask", f"nothing to change; set one of {', '.join(_CHANGEABLE)}")
        self._catalogue.get(adapter.adapter_id)  # checked before the examples are embedded, which takes time
        vectors = None if examples is None else self._vectors(examples)
        return self._catalogue.update(
            adapter.adapter_id,
            lambda before: replace(before, **changes),
            vectors,
            expected_revision,
            self._encoded_prompts(examples),
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

    def _encoded_prompts(self, examples: Examples | None) -> list[Any]:
        """Return the prompts in their stored form.

        Encode them before anything is stored: it decodes every image, including those that the embedder ignores, so a
        broken one may be noticed only here.
        """
        encoded: list[Any] = []
        if isinstance(examples, ExamplePrompts) and self._catalogue.stores_examples:
            for index, prompt in enumerate(examples.prompts):
                with field_path(f"examples.prompts[{index}]"):
                    encoded.append(encode_prompt(prompt, self._limits))
        return encoded

    def _check_count(self, count: int) -> None:
        if count > self._max_examples:
            raise InvalidArgumentError("", f"{count} examples are too many; send at most {self._max_examples}")


def _check_not_set(adapter: Adapter) -> None:
    for name in _SET_BY_CATALOGUE:
        if getattr(adapter, name):
            raise InvalidArgumentError(name, "is set by the catalogue; leave it unset")


def _check_base_model(adapter: Adapter) -> None:
    if not adapter.base_model.strip():
        raise InvalidArgumentError("base_model", "is empty; name the base model that the adapter was trained on")


def _changes(adapter: Adapter, paths: Sequence[str]) -> dict[str, Any]:
    for index, path in enumerate(paths):
        if path not in _CHANGEABLE:
            raise InvalidArgumentError(
                f"update_mask.paths[{index}]", f"{path!r} cannot be changed; these can: {', '.join(_CHANGEABLE)}"
            )
    return {name: getattr(adapter, name) for name in (paths or _CHANGEABLE) if paths or getattr(adapter, name)}
