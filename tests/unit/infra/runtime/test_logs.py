"""Logs are structured, carry the request id, and hold no locals."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from infra.runtime.deadline import bind_deadline, clipped, remaining_s
from infra.runtime.logs import (
    bind_request_id,
    configure_logging,
    get_logger,
    new_request_id,
    request_id,
    valid_request_id,
)


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    bind_request_id("")


def test_json_logs_are_one_object_per_line_with_service_and_request_id(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("retrieval", "info", "json")
    bind_request_id("ticket-42")
    get_logger("a.module").info("searched", matches=3)
    logging.getLogger("library").warning("old %s", "style")
    get_logger("a.module").debug("not this one")
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.err.splitlines())
    assert captured.out == ""
    assert first["event"] == "searched"
    assert first["matches"] == 3
    assert first["logger"] == "a.module"
    assert first["timestamp"].endswith("Z")
    assert second["event"] == "old style"
    for event in (first, second):
        assert event["service"] == "retrieval"
        assert event["request_id"] == "ticket-42"


@pytest.mark.parametrize("fmt", ["json", "console"])
def test_traceback_shows_no_locals(fmt: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("retrieval", "info", "json" if fmt == "json" else "console")
    token = "s3" + "cret"
    try:
        raise ValueError(f"length {len(token)}")
    except ValueError:
        get_logger("a.module").exception("failed")
    printed = capsys.readouterr().err
    assert "length 6" in printed
    assert "s3cret" not in printed


async def test_tasks_do_not_share_request_ids() -> None:
    async def handle(name: str) -> str:
        bind_request_id(name)
        await asyncio.sleep(0)
        return request_id()

    assert await asyncio.gather(*(handle(str(n)) for n in range(5))) == list("01234")
    assert request_id() == ""


@pytest.mark.parametrize(
    ("given", "valid"),
    [("a", True), ("A-z_9.:", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("a\n", False)],
)
def test_only_safe_request_ids_are_taken_over(given: str, valid: bool) -> None:
    assert valid_request_id(given) is valid


def test_new_request_ids_are_valid_and_differ() -> None:
    made = {new_request_id() for _ in range(100)}
    assert len(made) == 100
    assert all(map(valid_request_id, made))


def test_timeouts_are_clipped_to_remaining_time() -> None:
    assert (remaining_s(), clipped(5), clipped(None)) == (None, 5, None)
    try:
        bind_deadline(2)
        left = remaining_s()
        assert left is not None
        assert 1 < left <= 2
        assert clipped(1) == 1
        assert (clipped(50) or 99) <= 2
        assert (clipped(None) or 99) <= 2
        bind_deadline(-1)
        assert remaining_s() == clipped(5) == 0
        bind_deadline(float("inf"))
        assert remaining_s() is None
    finally:
        bind_deadline(None)


def test_engine_runs_and_logs_without_structlog() -> None:
    code = (
        "import sys; sys.modules['structlog'] = None\n"
        "import logging; logging.basicConfig(format='%(levelname)s %(message)s')\n"
        "import generation_service.engine.engine\n"
        "generation_service.engine.completion.log.error('step_failed', sequences=2, exc_info=ValueError('why'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ERROR step_failed sequences=2\nValueError: why" in done.stderr
