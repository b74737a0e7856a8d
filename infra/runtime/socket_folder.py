"""Where a unix socket can lie: a short path without blanks that is the same at every start, and that is ours alone."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from infra.contract.errors import UnavailableError

# sockaddr_un holds 108 bytes on Linux and 104 on macOS, the closing zero included.
MAX_SOCKET_PATH_BYTES = 100
_SPLIT_BY_THE_SERVER = frozenset("\"'\\")


def socket_path(directory: Path, name: str) -> Path:
    """Return the path of the socket `name` of a resolved data folder: in it, or where that cannot be, in a short one.

    The short folder's name follows from the data folder and the user, so that those who were told the path find what
    is started again there.
    """
    path = directory / name
    if _can_be_socket(path):
        return path
    digest = hashlib.sha256(f"{os.getuid()}\n{directory}".encode(errors="surrogateescape")).hexdigest()
    shorts = [Path(parent) / f"lr-redis-{digest[:24]}" / name for parent in (tempfile.gettempdir(), "/tmp")]
    return next(filter(_can_be_socket, shorts), shorts[-1])


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Make a folder that nobody else can enter, and remove it in the end where it is empty then.

    A folder that is there already must be ours alone. Raises UnavailableError when it is not, or cannot be made.
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
            f"{folder} is there, and is not a folder that this user alone can enter: somebody else may have made it. "
            "Remove it, or give a data folder whose path is short and has no blanks"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _can_be_socket(path: Path) -> bool:
    text = str(path)
    is_whole = not any(character.isspace() or character in _SPLIT_BY_THE_SERVER for character in text)
    return is_whole and len(os.fsencode(text)) <= MAX_SOCKET_PATH_BYTES
