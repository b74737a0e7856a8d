"""All tiers on this machine, on loopback ports: a Redis, retrieval, generation, orchestrator and a worker."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal

from infra.contract.errors import ConfigurationError
from infra.runtime.embedded_redis import embedded_redis
from infra.runtime.layout import module_name
from infra.runtime.settings import as_arguments
from orchestrator.devstack.process import (
    POLL_S,
    Child,
    Program,
    Ready,
    RestartPolicy,
    StopNow,
    stop_signals_end_waiting,
)

STATE_FILE = "stack.json"
#: Folders that a fresh stack starts without.
FRESH_FOLDERS = ("qdrant", "redis", "logs")
_FREE_ADDRESS = "127.0.0.1:0"
_REDIS, _RETRIEVAL, _GENERATION = "redis", "retrieval", "generation"
_ORCHESTRATOR, _WORKER = "orchestrator", "worker"

TierState = Literal["starting", "ready", "died", "stopping", "stopped"]
OnTier = Callable[[str, TierState], None]


@dataclass(frozen=True)
class StackPlan:
    """What to start.

    `retrieval`, `generation` and `orchestrator` hold settings of these tiers by name, addresses included (default: free
    ports); the settings that connect the tiers are added. Data, logs and ready files go to `work_dir`; `fresh` discards
    the catalogue and the Redis of an earlier run.
    """

    work_dir: Path
    environment: Mapping[str, str]
    retrieval: Mapping[str, object] = field(default_factory=dict)
    generation: Mapping[str, object] = field(default_factory=dict)
    orchestrator: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False
    #: Loading a large model from a cold disk takes minutes.
    start_timeout_s: float = 600.0
    grace_s: float = 10.0


@dataclass(frozen=True)
class Addresses:
    """The addresses of the tiers, the Redis URL for Celery, and the process that runs the stack.

    `gateway` is that of the orchestrator's HTTP gateway, empty where it is off.
    """

    retrieval: str
    generation: str
    orchestrator: str
    redis_url: str
    pid: int
    gateway: str = ""


class LocalStack:
    """A context manager that starts every tier and, however the block ends, stops them all.

    `check` restarts a worker that dies while all tiers are ready.

    Raises (on entering):
        UnavailableError: a tier ended while starting; the message has the end of its log.
        ConfigurationError: a tier refused its settings, or another stack runs in the same folder.
    """

    def __init__(self, plan: StackPlan, on_tier: OnTier = lambda _tier, _state: None) -> None:
        self._plan = plan
        self._on_tier = on_tier
        self._children: list[Child] = []
        self._lock = contextlib.ExitStack()
        self._redis = contextlib.ExitStack()
        self._addresses: Addresses | None = None
        self._worker_restarts = RestartPolicy()
        self._dead_worker: Program | None = None

    @property
    def addresses(self) -> Addresses:
        """The addresses of the tiers. Raises RuntimeError before all are ready."""
        if self._addresses is None:
            raise RuntimeError("the stack is not running")
        return self._addresses

    @property
    def work_dir(self) -> Path:
        """The folder of its data, logs and ready files."""
        return self._plan.work_dir

    @property
    def pids(self) -> tuple[int, ...]:
        """The tiers' process ids, which are also the ids of their process groups."""
        return tuple(child.pid for child in self._children)

    def __enter__(self) -> LocalStack:
        try:
            self._lock.enter_context(_locked(self._plan.work_dir))
            if self._plan.fresh:
                for name in FRESH_FOLDERS:
                    shutil.rmtree(self._plan.work_dir / name, ignore_errors=True)
            self._addresses = self._start_all()
            _write_state(self._plan.work_dir / STATE_FILE, self._addresses)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def check(self) -> None:
        """Restart a worker that died; raise UnavailableError if any other tier has ended, or the worker too often."""
        if self._dead_worker is not None and self._worker_restarts.is_due:
            self._children.append(Child(self._dead_worker, self.work_dir, self._plan.environment, restarted=True))
            self._dead_worker = None
        for child in list(self._children):
            if child.exit_status is not None:
                self._handle_exit(child)

    def _handle_exit(self, child: Child) -> None:
        """Schedule the restart of a worker; raise the error of any other tier."""
        is_ready = self._addresses is not None
        if child.name != _WORKER or not is_ready or not self._worker_restarts.allows_restart(child.started_at):
            error = child.failure()
            if is_ready and not self._plan.fresh:
                error.add_note(f"jobs are kept and continue when the stack is started again in {self.work_dir}")
            raise error
        child.stop(0, StopNow(is_set=True))
        self._children.remove(child)
        self._dead_worker = child.program
        self._report(_WORKER, "died")

    def wait(self) -> None:
        """Wait until a tier ends, and raise as `check` does."""
        while True:
            self.check()
            time.sleep(POLL_S * 10)

    def stop(self) -> None:
        """Stop every tier, the last started first. A stop signal meanwhile ends the grace periods, not the stopping."""
        with stop_signals_end_waiting() as stop_now:
            self._dead_worker = None
            while self._children:
                child = self._children[-1]
                self._report(child.name, "stopping")
                child.stop(self._plan.grace_s, stop_now)
                self._children.pop()
                self._report(child.name, "stopped")
            self._redis.close()
            if self._addresses is not None:
                (self._plan.work_dir / STATE_FILE).unlink(missing_ok=True)
                self._addresses = None
            self._lock.close()

    def _report(self, name: str, state: TierState) -> None:
        """Report a state, even though the terminal may be gone by now."""
        with contextlib.suppress(OSError):
            self._on_tier(name, state)

    def _start_all(self) -> Addresses:
        plan = self._plan
        redis_url = self._start_redis()
        retrieval_settings = {"qdrant_path": plan.work_dir / "qdrant", **plan.retrieval}
        retrieval = self._start(_tier(_RETRIEVAL, module_name("retrieval_service"), retrieval_settings))
        connections = {"retrieval_target": retrieval.address}
        generation = self._start(
            _tier(
                _GENERATION,
                module_name("generation_service"),
                {**plan.generation, **connections},
                threads=max(1, (os.cpu_count() or 1) - 1),
            )
        )
        connections |= {"generation_target": generation.address, "redis_url": redis_url}
        own = {"output_dir": plan.work_dir / "evaluations", "gateway_address": _FREE_ADDRESS}
        settings = {**own, **plan.orchestrator, **connections}
        worker_settings = {**settings, "address": _FREE_ADDRESS, "metrics_address": ""}
        # Both need only Redis and the services, so they start at the same time.
        server = self._begin(_tier(_ORCHESTRATOR, module_name("orchestrator"), settings))
        worker = self._begin(_tier(_WORKER, module_name("orchestrator.jobs.worker"), worker_settings))
        orchestrator = self._wait_ready(server)
        self._wait_ready(worker)
        addresses = (retrieval.address, generation.address, orchestrator.address)
        return Addresses(*addresses, redis_url, os.getpid(), orchestrator.gateway)

    def _start_redis(self) -> str:
        self._on_tier(_REDIS, "starting")
        url = self._redis.enter_context(embedded_redis(self._plan.work_dir / "redis"))
        self._on_tier(_REDIS, "ready")
        return url

    def _start(self, program: Program) -> Ready:
        return self._wait_ready(self._begin(program))

    def _begin(self, program: Program) -> Child:
        self._on_tier(program.name, "starting")
        child = Child(program, self._plan.work_dir, self._plan.environment)
        self._children.append(child)
        return child

    def _wait_ready(self, child: Child) -> Ready:
        ready = child.wait_ready(self._plan.start_timeout_s)
        self.check()
        self._on_tier(child.name, "ready")
        return ready


def read_state(work_dir: Path) -> Addresses | None:
    """Return the addresses of the stack that runs in a folder; None if none does."""
    try:
        addresses = Addresses(**json.loads((work_dir / STATE_FILE).read_text(encoding="utf-8")))
        os.kill(addresses.pid, 0)
    except PermissionError:
        return addresses
    except (OSError, ValueError, TypeError):
        return None
    return addresses


def _tier(name: str, module: str, settings: Mapping[str, object], threads: int = 1) -> Program:
    """Return a tier's program.

    Generation, which computes most of the time, uses all cores but one. With all of them, each of its parallel products
    would wait for a core that another tier holds, several thousand times a step.
    """
    return Program(name, module, tuple(as_arguments({"address": _FREE_ADDRESS, **settings})), threads)


def _write_state(file: Path, addresses: Addresses) -> None:
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(addresses)) + "\n", encoding="utf-8")
    fresh.replace(file)


@contextlib.contextmanager
def _locked(work_dir: Path) -> Iterator[None]:
    try:
        work_dir.mkdir(parents=True, exist_ok=True)
        lock = (work_dir / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(f"{work_dir} cannot be written: {error.strerror}; give another --work-dir") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            raise ConfigurationError(
                f"tiers already run in {work_dir} (process {holder}); stop them, or give another --work-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
