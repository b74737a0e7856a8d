"""The part of Qdrant's REST interface that the catalogue uses, implemented by qdrant-client's local mode.

It exercises the server-mode path (HTTP client, JSON, no lock) where no Qdrant server can be installed.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python
from qdrant_client import QdrantClient, models

Body = dict[str, Any]


class _Routes:
    """Handles requests one at a time, because local mode is not safe for threads."""

    def __init__(self) -> None:
        self._client = QdrantClient(":memory:", force_disable_check_same_thread=True)
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], Callable[[str, Body], Any]] = {
            ("GET", "/exists"): lambda name, _: {"exists": self._client.collection_exists(name)},
            ("GET", ""): lambda name, _: self._client.get_collection(name),
            ("PUT", ""): self._create,
            ("PATCH", ""): lambda name, body: self._client.update_collection(name, metadata=body["metadata"]),
            ("DELETE", ""): lambda name, _: self._client.delete_collection(name),
            ("PUT", "/index"): lambda name, body: {"operation_id": 0, "status": "completed"},
            ("PUT", "/points"): self._upsert,
            ("POST", "/points"): self._retrieve,
            ("POST", "/points/delete"): self._delete,
            ("POST", "/points/scroll"): self._scroll,
            ("POST", "/points/query/batch"): self._query,
        }

    def respond(self, method: str, path: str, body: Body) -> tuple[int, Any]:
        """Return the status and the JSON of a request."""
        with self._lock:
            result = self._global(method, path, body)
        if result is not None:
            return 200, {"result": to_jsonable_python(result), "status": "ok", "time": 0.0}
        matched = re.fullmatch(r"/collections/([^/?]+)([^?]*)(?:\?.*)?", path)
        route = self._routes.get((method, matched[2])) if matched else None
        if matched is None or route is None:
            return 404, {"status": {"error": f"no route {method} {path}"}}
        with self._lock:
            exists = self._client.collection_exists(matched[1])
            if not exists and (method, matched[2]) not in {("GET", "/exists"), ("PUT", ""), ("DELETE", "")}:
                return 404, {"status": {"error": "Not found: Collection doesn't exist"}}
            if exists and (method, matched[2]) == ("PUT", ""):
                return 409, {"status": {"error": "Wrong input: Collection already exists"}}
            return 200, {"result": to_jsonable_python(route(matched[1], body)), "status": "ok", "time": 0.0}

    def _global(self, method: str, path: str, body: Body) -> Any:
        match method, path.partition("?")[0]:
            case "GET", "/aliases":
                return self._client.get_aliases()
            case "GET", "/collections":
                return self._client.get_collections()
            case "POST", "/collections/aliases":
                actions = models.ChangeAliasesOperation.model_validate(body).actions
                return self._client.update_collection_aliases(change_aliases_operations=actions)
            case _:
                return None

    def _create(self, name: str, body: Body) -> bool:
        created = models.CreateCollection.model_validate(body)
        return self._client.create_collection(name, vectors_config=created.vectors or {}, metadata=created.metadata)

    def _upsert(self, name: str, body: Body) -> Any:
        points = models.PointsList.model_validate(body)
        return self._client.upsert(
            name, points.points, update_mode=points.update_mode, update_filter=points.update_filter
        )

    def _retrieve(self, name: str, body: Body) -> Any:
        request = models.PointRequest.model_validate(body)
        return self._client.retrieve(
            name, request.ids, with_payload=request.with_payload or False, with_vectors=request.with_vector or False
        )

    def _delete(self, name: str, body: Body) -> Any:
        return self._client.delete(name, models.PointIdsList.model_validate(body))

    def _scroll(self, name: str, body: Body) -> Any:
        request = models.ScrollRequest.model_validate(body)
        points, offset = self._client.scroll(
            name,
            scroll_filter=request.filter,
            limit=request.limit or 10,
            offset=request.offset,
            with_payload=request.with_payload or False,
            with_vectors=request.with_vector or False,
        )
        return {"points": points, "next_page_offset": offset}

    def _query(self, name: str, body: Body) -> Any:
        searches = TypeAdapter(list[models.QueryRequest]).validate_python(body["searches"])
        return self._client.query_batch_points(name, searches)


@dataclass
class FakeQdrant:
    """The running server. While `broken`, every request gets 503; `slow_s` delays every response."""

    url: str = ""
    broken: bool = False
    slow_s: float = 0.0
    requests: list[str] = field(default_factory=list)


@contextmanager
def fake_qdrant_url(api_key: str | None = None, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve on a free loopback port; yield the URL."""
    with fake_qdrant(api_key, tls) as server:
        yield server.url


@contextmanager
def fake_qdrant(api_key: str | None = None, tls: ssl.SSLContext | None = None) -> Iterator[FakeQdrant]:
    """Serve on a free loopback port; with a key, refuse requests without it."""
    routes, control = _Routes(), FakeQdrant()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _respond(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else {}
            control.requests.append(f"{self.command} {self.path}")
            time.sleep(control.slow_s)
            if control.broken:
                status, content = 503, {"status": {"error": "broken by the test"}}
            elif api_key is not None and self.headers.get("api-key") != api_key:
                status, content = 401, {"status": {"error": "Must provide an API key"}}
            else:
                status, content = routes.respond(self.command, self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _respond  # noqa: N815

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    control.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield control
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
