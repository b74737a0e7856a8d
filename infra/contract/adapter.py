"""One LoRA adapter, as registered in the catalogue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from infra.contract.errors import InvalidArgumentError

_HUB_CACHE = "models--"
ADAPTER_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_adapter_id(adapter_id: str, field: str = "adapter_id") -> str:
    """Return `adapter_id`, or raise InvalidArgumentError if it is not a valid name."""
    if not ADAPTER_ID_PATTERN.fullmatch(adapter_id):
        shown = adapter_id[:40]
        raise InvalidArgumentError(
            field,
            f"{shown!r} is not an adapter id: 1 to 128 letters, digits, '.', '_' or '-', a letter or digit first",
        )
    return adapter_id


def base_model_name(name_or_path: str) -> str:
    """Return the name of the base model that a hub id, a path or a name means; "" for "".

    It is the last component of a path of any system. In a cache of the Hugging Face hub,
    `models--OWNER--NAME/snapshots/COMMIT`, it is NAME. ModelScope's folders spell a dot as `___`.
    """
    parts = [part for part in re.split(r"[/\\]+", name_or_path.strip()) if part and part != "."]
    if "snapshots" in parts[1:] and (folder := parts[parts.index("snapshots", 1) - 1]).startswith(_HUB_CACHE):
        parts = [folder]
    name = parts[-1] if parts else ""
    return (name.rsplit("--", 1)[-1] if name.startswith(_HUB_CACHE) else name).replace("___", ".")


def is_same_base_model(one: str, other: str) -> bool:
    """Return whether two names or paths mean the same base model; case does not count."""
    return base_model_name(one).casefold() == base_model_name(other).casefold()


@dataclass(frozen=True)
class Adapter:
    """An adapter: its id, its purpose, the location of its checkpoint, and its revision.

    `rank` is 0 and `targets` (kinds of layers, such as "q_proj") empty if unknown. The catalogue sets `revision`,
    `example_count` and `update_time`.
    """

    adapter_id: str
    base_model: str
    checkpoint_uri: str
    kind: str = ""
    display_name: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    rank: int = 0
    revision: str = ""
    example_count: int = 0
    update_time: datetime | None = None
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_adapter_id(self.adapter_id)
        if self.rank < 0:
            raise InvalidArgumentError("rank", f"a rank cannot be negative, got {self.rank}")
