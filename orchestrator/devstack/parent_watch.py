"""`python -m orchestrator.devstack.parent_watch MODULE ...`: run a module in a process that ends with its parent.

The process must lead its process group, and its standard input must be a pipe whose other end only the parent holds and
never writes to. However the parent ends, the pipe closes: a watcher process in the group then sends the whole group
SIGTERM, and SIGKILL after a grace period.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import time

#: Time for a tier to close its files and connections. The parent is gone, so nothing waits for it.
_ORPHAN_GRACE_S = 5.0


def main() -> None:
    """Run the module named by the first argument with the remaining arguments."""
    if len(sys.argv) < 2 or os.getpgrp() != os.getpid():
        raise SystemExit("usage: parent_watch MODULE [ARGUMENT...]; the process must lead its process group")
    if os.fork() == 0:
        _watch()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def _watch() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(_ORPHAN_GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
