"""The extras of this distribution, by the packages that they install. Imports the standard library only."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

#: In the order in which they are recommended for a package that several require.
_EXTRAS = ("orchestrator", "generation", "retrieval", "embedded", "sentence-transformers")


def missing_package(package: str) -> str:
    """Return a sentence that says that `package` is not installed, and how to install it."""
    return f"{package} is not installed: pip install 'loraretriever[{extra_of(package)}]'"


def extra_of(package: str) -> str:
    """Return the extra of this distribution that requires `package`; "all" if none does directly."""
    try:
        requirements = requires("loraretriever") or []
    except PackageNotFoundError:
        requirements = []
    extras = set()
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra\s*==\s*['\"]([\w-]+)['\"]", requirement)
        if name and extra and name[0].lower().replace("-", "_") == package.lower():
            extras.add(extra[1])
    return next((extra for extra in _EXTRAS if extra in extras), "all")
