"""The entry point of `loraretriever`: imports only the standard library until a command needs more."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version

#: Extras that provide a missing package, in the order in which they are recommended.
_EXTRAS = ("orchestrator", "retrieval", "generation", "embedded")
_USAGE = 2
_OWN_PACKAGES = ("infra", "loraretriever", "orchestrator", "retrieval_service", "generation_service")


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0: done; 1: failed; 2: called wrongly, or a package is missing; 128 + N: stopped by signal N.
    """
    if arguments == ["--version"]:
        sys.stdout.write(f"loraretriever {version('loraretriever')}\n")
        return 0
    try:
        from orchestrator.cli import app

        return app.run(arguments)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in _OWN_PACKAGES:
            raise
        sys.stderr.write(f"error: {missing_package(package)}\n")
        return _USAGE


def missing_package(package: str) -> str:
    """Return a sentence that names the extra to install for a package that cannot be imported."""
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
