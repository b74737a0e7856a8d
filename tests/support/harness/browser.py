"""Drive a headless Chromium over its debugging pipe: JSON messages, each terminated by a zero byte."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio")


def find_chromium() -> str | None:
    """Return the path of a Chromium; None: none is installed."""
    return next((program for name in _PROGRAMS if (program := shutil.which(name))), None)


class Page:
    """A page of the browser. `problems` are its console output, exceptions and policy violations."""

    def __init__(self, read: int, write: int) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._reader = os.fdopen(read, "rb")
        self._write = write
        self._number = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return the browser's reply."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                if "error" in reply:
                    raise AssertionError(f"{method}: {reply['error']}")
                result: dict[str, Any] = reply["result"]
                return result
            self._note(reply)

    def open(self, file: Path, width: int = 1000, height: int = 800) -> None:
        """Load a file in a window of this size in CSS pixels, and wait until its list of samples is shown."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)
        self.call("Page.navigate", url=file.as_uri())
        for _ in range(500):
            if self.value("document.readyState === 'complete' && !!document.getElementById('count')?.textContent"):
                return
            time.sleep(0.02)
        raise AssertionError(f"{file} did not show its list; problems: {self.problems}")

    def value(self, expression: str) -> Any:
        """Evaluate a JavaScript expression."""
        reply = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in reply:
            raise AssertionError(f"{expression}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def close(self) -> None:
        """Close the pipe of the browser's replies."""
        self._reader.close()

    def _next(self) -> dict[str, Any]:
        received = bytearray()
        while (byte := self._reader.read(1)) != b"\0":
            if not byte:
                raise AssertionError("the browser ended")
            received += byte
        message: dict[str, Any] = json.loads(received)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(params)[:500])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])


@contextmanager
def browser(program: str, profile: Path) -> Iterator[Page]:
    """Run a browser with an empty profile until the block ends."""
    command_read, command_write = os.pipe()
    reply_read, reply_write = os.pipe()
    # Chromium reads commands from descriptor 3 and writes replies to descriptor 4; 20 and up avoid both.
    inherited = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 20) for descriptor in (command_read, reply_write)]
    script = f'exec "$@" 3<&{inherited[0]} 4>&{inherited[1]}'
    command = [program, *_OPTIONS, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", script, "bash", *command],
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (command_read, reply_write, *inherited):
        os.close(descriptor)
    try:
        page = Page(reply_read, command_write)
        yield page
        page.close()
    finally:
        os.close(command_write)
        process.terminate()
        process.wait(timeout=20)
