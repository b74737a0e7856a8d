"""Commands that the tiers add to the command line: the targets of the entry points `loraretriever.commands`.

The entry points name this module because it has the same name in a checkout and in the wheel; the tiers do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def __getattr__(name: str) -> object:
    """Import a tier's command.

    Raises:
        ModuleNotFoundError: a package of the tier is not installed; the message names the extra that has it.
    """
    if name == "inspect":
        with _naming_the_extra("generation"):
            from generation_service.commands import inspect

            return inspect
    if name == "retrieval":
        with _naming_the_extra("retrieval"):
            from retrieval_service.commands import app

            return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@contextmanager
def _naming_the_extra(extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        problem = f"{package} is not installed: pip install 'loraretriever[{extra}]'"
        raise ModuleNotFoundError(problem, name=error.name) from error
