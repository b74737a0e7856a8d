"""`python -m orchestrator.local_redis --directory DIR --ready-file FILE`: an embedded Redis as a program of its own.

In a process group of its own it hears no Ctrl-C of the terminal, and goes only after those who use it.
"""

from __future__ import annotations

import argparse
import signal
from pathlib import Path

from infra.runtime.embedded_redis import embedded_redis
from infra.runtime.lifecycle import ready_file

_STOP = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """Serve until SIGTERM or SIGINT. The ready file's address is the URL for Celery."""
    parser = argparse.ArgumentParser(prog="local_redis", description=__doc__)
    parser.add_argument("--directory", type=Path, required=True, help="folder of its data and socket")
    parser.add_argument(
        "--ready-file", type=Path, required=True, help='file that holds {"address", "pid"} once it runs'
    )
    arguments = parser.parse_args()
    for number in _STOP:
        signal.signal(number, _leave)
    with embedded_redis(arguments.directory) as url, ready_file(arguments.ready_file, url):
        while True:
            signal.pause()


def _leave(*_: object) -> None:
    for number in _STOP:
        signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)


if __name__ == "__main__":
    main()
