"""`loraretriever` and `python -m loraretriever`: the command line, also where its packages are not installed."""

from __future__ import annotations

import sys

from loraretriever import __version__

_USAGE = 2


def main() -> None:
    """Run the command line. A missing package ends it with one sentence that names the extra, and status 2."""
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write(f"loraretriever {__version__}\n")
        return
    from infra.runtime.extras import missing_package

    try:
        from orchestrator.cli.main import main as run

        run()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "loraretriever"):
            raise
        sys.stderr.write(f"error: {missing_package(package)}\n")
        raise SystemExit(_USAGE) from None


if __name__ == "__main__":
    main()
