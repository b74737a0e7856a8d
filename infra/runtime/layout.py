"""Module names in both layouts: `orchestrator` in a checkout is `loraretriever.orchestrator` in an installed wheel."""

from __future__ import annotations

# Empty in a checkout, "loraretriever." in the wheel, whose build moves every package below that name.
_PREFIX = __name__.rpartition("infra.")[0]


def module_name(name: str) -> str:
    """Return the name under which the module `name` of a checkout can be run or imported here."""
    return _PREFIX + name
