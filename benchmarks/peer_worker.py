"""The worker's side of a peer process: requests as JSON lines on stdin, replies as JSON lines on stdout.

Imports only the standard library, because each peer runs in its own environment.

    {"requests": [{"tokens": [1, 2], "adapters": {"a0": 1.0}}], "new_tokens": 16}
    {"answers": [[3, 4]], "first_token_s": [0.1]}

The first reply, {"ready": {library: version}}, follows once the model is loaded.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


def options() -> argparse.Namespace:
    """Parse the arguments that every worker takes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--adapters", type=Path, required=True, help="folder with one PEFT folder per adapter")
    parser.add_argument("--base-only", action="store_true", help="serve no adapters")
    parser.add_argument("--eager", action="store_true", help="do not compile the model, where a peer would")
    parser.add_argument("--dtype", default="float32", help="dtype of the weights")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads")
    parser.add_argument("--requests", type=int, required=True, help="most concurrent requests")
    parser.add_argument("--sequence-tokens", type=int, required=True, help="longest prompt and answer together")
    return parser.parse_args()


class ReplyStream:
    """Replies on the original stdout. Whatever else the process prints goes to stderr."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def serve(self, handle: Handler, *libraries: str) -> None:
        """Reply {"ready"}, then to every request until stdin is closed. Exceptions become {"error"} replies."""
        self._reply({"ready": {library: metadata.version(library) for library in libraries}})
        for line in sys.stdin:
            try:
                self._reply(handle(json.loads(line)))
            except Exception as error:  # The parent decides what an error means.
                self._reply({"error": f"{type(error).__name__}: {error}"})

    def _reply(self, reply: dict[str, Any]) -> None:
        self._stream.write(json.dumps(reply) + "\n")
        self._stream.flush()
