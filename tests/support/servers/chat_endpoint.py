"""An OpenAI-compatible chat endpoint over real HTTP, on a free port of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeChat:
    """Replies with `reply` of the question.

    `failures` are (status, headers) to answer with first; `refusals` status and body, by a word of the question.
    """

    reply: Callable[[str], str]
    refusals: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    failures: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    base_url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, key: str, body: dict[str, Any]) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Return status, headers and body of the response to one call."""
        with self.lock:
            self.keys.add(key)
            if path != "/v1/chat/completions":
                return 404, {}, {"error": f"no {path}"}
            if self.failures:
                status, headers = self.failures.pop(0)
                return status, headers, {"error": "not now"}
            question = body["messages"][0]["content"]
            for word, (status, refusal) in self.refusals.items():
                if word in question:
                    return status, {}, refusal
            self.questions.append(question)
        message = {"role": "assistant", "content": self.reply(question)}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
        return 200, {}, {"choices": [{"message": message}], "usage": usage}


@contextmanager
def fake_chat(reply: Callable[[str], str]) -> Iterator[FakeChat]:
    """Serve until the block ends."""
    chat = FakeChat(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, content = chat.answer(self.path, self.headers.get("Authorization", ""), body)
            payload = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(payload))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        chat.base_url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        try:
            yield chat
        finally:
            server.shutdown()
            thread.join()
