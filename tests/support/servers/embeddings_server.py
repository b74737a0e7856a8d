"""A real HTTP server with OpenAI's embeddings API, whose responses a test can replace."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.support.harness.part_embedder import vector_of


class EmbeddingsServer:
    """Responds with one vector per text, of length 3. `script` replaces the next responses, one entry per request.

    An entry is a status, (status, headers), bytes as the whole body with status 200, seconds to wait before a correct
    response, or a function from the request to the JSON of the response.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.script: list[Any] = []
        self.refused: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def inputs(self) -> list[Any]:
        """All inputs that were received, in order."""
        return [item for request in self.requests for item in request["input"]]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def correct_response(request: dict[str, Any]) -> dict[str, Any]:
    """Return the correct response, with its vectors in reverse order."""
    data = []
    for index, content in enumerate(request["input"]):
        name = content if isinstance(content, str) else next(iter(content.values()))
        vector = (3 * vector_of(name))[: request.get("dimensions")]
        encoded = vector.tolist()
        if request.get("encoding_format") == "base64":
            encoded = base64.b64encode(vector.astype("<f4").tobytes()).decode()
        data.append({"object": "embedding", "index": index, "embedding": encoded})
    return {"object": "list", "data": data[::-1], "model": request["model"]}


def _handler(server: EmbeddingsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append({**request, "path": self.path})
            server.headers.append(dict(self.headers))
            step = server.script.pop(0) if server.script else None
            headers: dict[str, str] = {}
            answer: Any = correct_response
            status = 200
            match step:
                case int():
                    status = step
                case (int(), dict()):
                    status, headers = step
                case float():
                    time.sleep(step)
                case bytes():
                    answer = step
                case Callable():
                    answer = step
            if server.refused & {str(item) for item in request["input"]}:
                status = 400
            self._send(status, headers, answer if isinstance(answer, bytes) else _json(status, answer, request))

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            try:
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the caller has closed the connection

        def log_message(self, format: str, *args: Any) -> None:
            """Write no log."""

    return Handler


def _json(status: int, answer: Callable[[dict[str, Any]], Any], request: dict[str, Any]) -> bytes:
    if status == 200:
        return json.dumps(answer(request)).encode()
    # Some endpoints repeat the key of the request.
    return json.dumps({"error": {"message": f"status {status} for key sk-secret"}}).encode()
