"""Refuse filters that name what the catalogue does not have: a misspelt one would silently match nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from infra.contract.adapter import Adapter
from infra.contract.errors import InvalidArgumentError
from retrieval_service.catalogue.points import AdapterFilter

#: Names listed in an error. More would hide the sentence.
_MAX_LISTED = 10


def check_filter(adapter_filter: AdapterFilter, adapters: Sequence[Adapter]) -> None:
    """Raise InvalidArgumentError if `include`, `kind` or `tags` has a name that none of `adapters` has.

    `exclude` may name any adapter, since evaluation excludes a task's own adapter whether or not it is registered. An
    empty catalogue accepts every filter: that it is empty is the better message.
    """
    if not adapters:
        return
    ids = {adapter.adapter_id for adapter in adapters}
    for index, adapter_id in enumerate(adapter_filter.include):
        if adapter_id not in ids:
            raise _unknown(f"include[{index}]", "adapter", adapter_id, ids)
    kinds = {adapter.kind for adapter in adapters if adapter.kind}
    if adapter_filter.kind and adapter_filter.kind not in kinds:
        raise _unknown("kind", "adapter of kind", adapter_filter.kind, kinds)
    tags = {tag for adapter in adapters for tag in adapter.tags}
    for index, tag in enumerate(adapter_filter.tags):
        if tag not in tags:
            raise _unknown(f"tags[{index}]", "adapter with tag", tag, tags)


def _unknown(field: str, noun: str, name: str, known: Iterable[str]) -> InvalidArgumentError:
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    if close:
        hint = f"did you mean {' or '.join(close)}?"
    elif names:
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        hint = f"it has {', '.join(names[:_MAX_LISTED])}{more}"
    else:
        hint = "leave it empty"
    return InvalidArgumentError(field, f"the catalogue has no {noun} {name!r}; {hint}")
