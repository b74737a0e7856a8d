"""Signals that a test process inherits as ignored."""

from __future__ import annotations

import signal


def restore_signals() -> None:
    """Undo signals that the parent ignores, for this process and every process that a test starts.

    A shell starts `make test &` with SIGINT and SIGQUIT ignored, `nohup` ignores SIGHUP, and children inherit that: a
    test that interrupts a program would wait for ever. A handler is not inherited: programs start with the default.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, _do_nothing)  # this process stays immune, as its caller wanted


def _do_nothing(*_: object) -> None:
    pass
