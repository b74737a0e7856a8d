"""Commands that the tiers add to the command line: the targets of the entry points `loraretriever.commands`.

Entry points name modules in the same way in a checkout and in the wheel, where the tiers have other names.
"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Import a tier's command; raises ImportError where the packages of the tier are not installed."""
    if name == "inspect":
        from generation_service.commands import inspect

        return inspect
    if name == "retrieval":
        from retrieval_service.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
