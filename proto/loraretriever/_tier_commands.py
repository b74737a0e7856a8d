"""Commands that the tiers add to the command line: the targets of the entry points `loraretriever.commands`.

The entry points name this module because it has the same name in a checkout and in the wheel; the tiers do not.
"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Import a tier's command; raises ModuleNotFoundError if a package of the tier is not installed."""
    if name == "inspect":
        from generation_service.commands import inspect

        return inspect
    if name == "fuse":
        from generation_service.commands.fuse import fuse

        return fuse
    if name == "retrieval":
        from retrieval_service.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
