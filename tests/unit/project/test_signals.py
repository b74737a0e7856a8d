"""The suite runs alike in the foreground, in the background and below nohup."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

NUMBERS = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
IGNORE_AND_RESTORE = f"""
import signal, subprocess, sys
from tests.support.harness.signals import restore_signals
for number in {[int(number) for number in NUMBERS]}:
    signal.signal(number, signal.SIG_IGN)
restore_signals()
"""
SHOW = "import signal, sys; sys.stdout.write(str(signal.getsignal(int(sys.argv[1])) is not signal.SIG_IGN))"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("number", NUMBERS)
def test_children_of_a_test_ignore_no_signal(number: signal.Signals) -> None:
    child = f"subprocess.run([sys.executable, '-c', {SHOW!r}, {str(int(number))!r}], check=True)"
    assert run(f"{IGNORE_AND_RESTORE}{child}") == "True"


def test_interrupt_is_raised_even_where_the_parent_ignores_it() -> None:
    interrupt = "try: signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt: print('ok')"
    assert run(f"{IGNORE_AND_RESTORE}{interrupt}") == "ok\n"


def test_hang_up_leaves_a_run_below_nohup_alone() -> None:
    assert run(f"{IGNORE_AND_RESTORE}signal.raise_signal(signal.SIGHUP)\nprint('alive')") == "alive\n"
