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
from orchestrator.devstack.process import POLL_S, Child, Hurry, Program, Ready, hurried_by_signals
from orchestrator.devstack.restart_policy import Revival

STATE_FILE = "stack.json"
FREE = "127.0.0.1:0"
REDIS, RETRIEVAL, GENERATION, ORCHESTRATOR, WORKER = "redis", "retrieval", "generation", "orchestrator", "worker"
FRESH = ("qdrant", "redis", "logs")

TierState = Literal["starting", "ready", "died", "stopping", "stopped"]
OnTier = Callable[[str, TierState], None]


@dataclass(frozen=True)
class StackPlan:
    """What to start. `retrieval`, `generation` and `orchestrator` hold settings of those tiers by name, addresses
    included (default: free ports); what connects the tiers is filled in. Data, logs and ready files go to `work_dir`;
    `fresh` starts with an empty catalogue and Redis instead of those that are there.
    """

    work_dir: Path
    environment: Mapping[str, str]
    retrieval: Mapping[str, object] = field(default_factory=dict)
    generation: Mapping[str, object] = field(default_factory=dict)
    orchestrator: Mapping[str, object] = field(default_factory=dict)
    fresh: bool = False
    start_timeout_s: float = 600.0
    grace_s: float = 10.0


@dataclass(frozen=True)
class Addresses:
    """Where the tiers listen, the Redis URL for Celery, and the process that holds them."""

    retrieval: str
    generation: str
    orchestrator: str
    redis_url: str
    pid: int


class LocalStack:
    """Starts every tier on entering and stops them all on leaving, whatever ends the block.

    Entering raises UnavailableError or ConfigurationError with the end of its log as soon as a tier ends, and
    ConfigurationError when another stack runs in the same folder. A worker that dies while all are ready is started
    again by `check`.
    """

    def __init__(self, plan: StackPlan, on_tier: OnTier = lambda _tier, _state: None) -> None:
        self._plan = plan
        self._on_tier = on_tier
        self._children: list[Child] = []
        self._lock = contextlib.ExitStack()
        self._redis = contextlib.ExitStack()
        self._addresses: Addresses | None = None
        self._revival = Revival()
        self._dead_worker: Program | None = None

    @property
    def addresses(self) -> Addresses:
        """Where the tiers listen, once all are ready."""
        if self._addresses is None:
            raise RuntimeError("the stack is not running")
        return self._addresses

    @property
    def work_dir(self) -> Path:
        """The folder of its data, logs and ready files."""
        return self._plan.work_dir

    @property
    def pids(self) -> tuple[int, ...]:
        """The tiers' process ids, each that of its process group too."""
        return tuple(child.pid for child in self._children)

    def __enter__(self) -> LocalStack:
        try:
            self._lock.enter_context(_locked(self._plan.work_dir))
            if self._plan.fresh:
                for name in FRESH:
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
        """Raise UnavailableError, with the end of its log, when a tier has ended; start a worker that has again.

        A worker that dies too often is as any other tier.
        """
        if self._dead_worker is not None and self._revival.is_due:
            self._children.append(Child(self._dead_worker, self.work_dir, self._plan.environment, again=True))
            self._dead_worker = None
        for child in list(self._children):
            if child.exit_status is not None:
                self._bury(child)

    def _bury(self, child: Child) -> None:
        """Let a worker that has ended be started again in a while; raise for any other tier."""
        is_ready = self._addresses is not None
        if child.name != WORKER or not is_ready or not self._revival.may_follow(child.started_at):
            error = child.failure()
            if is_ready and not self._plan.fresh:
                error.add_note(f"jobs are kept: started again in the same work folder {self.work_dir}, they go on")
            raise error
        child.stop(0, Hurry(now=True))
        self._children.remove(child)
        self._dead_worker = child.program
        self._tell(WORKER, "died")

    def wait(self) -> None:
        """Wait until a tier ends, which raises as `check` does."""
        while True:
            self.check()
            time.sleep(POLL_S * 10)

    def stop(self) -> None:
        """Stop every tier, last started first. A signal in the meantime ends the waiting, not the stopping."""
        with hurried_by_signals() as hurry:
            self._dead_worker = None
            while self._children:
                child = self._children[-1]
                self._tell(child.name, "stopping")
                child.stop(self._plan.grace_s, hurry)
                self._children.pop()
                self._tell(child.name, "stopped")
            self._redis.close()
            if self._addresses is not None:
                (self._plan.work_dir / STATE_FILE).unlink(missing_ok=True)
                self._addresses = None
            self._lock.close()

    def _tell(self, name: str, state: TierState) -> None:
        """Tell how stopping goes, to a terminal that may be gone."""
        with contextlib.suppress(OSError):
            self._on_tier(name, state)

    def _start_all(self) -> Addresses:
        plan = self._plan
        redis_url = self._start_redis()
        retrieval_settings = {"qdrant_path": plan.work_dir / "qdrant", **plan.retrieval}
        retrieval = self._start(_tier(RETRIEVAL, module_name("retrieval_service"), retrieval_settings))
        connected = {"retrieval_target": retrieval.address}
        generation = self._start(_tier(GENERATION, module_name("generation_service"), {**plan.generation, **connected}))
        connected |= {"generation_target": generation.address, "redis_url": redis_url}
        settings = {"output_dir": plan.work_dir / "evaluations", **plan.orchestrator, **connected}
        served = self._begin(_tier(ORCHESTRATOR, module_name("orchestrator"), settings))
        working = self._begin(
            _tier(WORKER, module_name("orchestrator.jobs.worker"), {**settings, "address": FREE, "metrics_address": ""})
        )
        orchestrator = self._ready(served)
        self._ready(working)
        return Addresses(retrieval.address, generation.address, orchestrator.address, redis_url, os.getpid())

    def _start_redis(self) -> str:
        self._on_tier(REDIS, "starting")
        url = self._redis.enter_context(embedded_redis(self._plan.work_dir / "redis"))
        self._on_tier(REDIS, "ready")
        return url

    def _start(self, program: Program) -> Ready:
        return self._ready(self._begin(program))

    def _begin(self, program: Program) -> Child:
        self._on_tier(program.name, "starting")
        child = Child(program, self._plan.work_dir, self._plan.environment)
        self._children.append(child)
        return child

    def _ready(self, child: Child) -> Ready:
        ready = child.wait_ready(self._plan.start_timeout_s)
        self.check()
        self._on_tier(child.name, "ready")
        return ready


def read_state(work_dir: Path) -> Addresses | None:
    """Return where the stack of a folder listens; None when none runs there."""
    try:
        addresses = Addresses(**json.loads((work_dir / STATE_FILE).read_text(encoding="utf-8")))
        os.kill(addresses.pid, 0)
    except PermissionError:
        return addresses
    except (OSError, ValueError, TypeError):
        return None
    return addresses


def _tier(name: str, module: str, settings: Mapping[str, object]) -> Program:
    return Program(name, module, tuple(as_arguments({"address": FREE, **settings})))


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
                f"tiers run in {work_dir} already (process {holder}); stop them, or give another --work-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
