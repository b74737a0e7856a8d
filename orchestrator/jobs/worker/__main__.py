"""`python -m orchestrator.jobs.worker`: a worker that runs shards and writes reports of evaluation jobs.

A stop signal ends it warmly: samples under way are finished, unfinished shards are released.
"""

from __future__ import annotations

from contextlib import ExitStack

from infra.contract.errors import ConfigurationError
from infra.runtime.lifecycle import ready_file
from infra.runtime.logs import get_logger
from infra.runtime.main import run_tier
from orchestrator.jobs.celery import CeleryDispatcher, make_app, run_worker
from orchestrator.jobs.worker.process import WorkerProcess
from orchestrator.settings import OrchestratorSettings

log = get_logger(__name__)


def serve(settings: OrchestratorSettings) -> None:
    """Run units of work until a stop signal arrives."""
    if not settings.redis_url:
        raise ConfigurationError(
            "a worker needs --redis-url (LORARETRIEVER_ORCHESTRATOR_REDIS_URL): the one of the orchestrator, "
            "which logs the address of its embedded Redis when it starts one"
        )
    app = make_app(settings.redis_url, settings.visibility_timeout_s)
    worker = WorkerProcess(settings, CeleryDispatcher(app))
    with ExitStack() as stack:

        def on_ready() -> None:
            stack.enter_context(ready_file(settings.server.ready_file, "worker"))
            log.info("serving", shards=settings.worker_shards, samples_per_shard=settings.concurrency)

        run_worker(app, worker, threads=settings.worker_shards, on_ready=on_ready)
    worker.close()


if __name__ == "__main__":
    run_tier(serve, OrchestratorSettings)
