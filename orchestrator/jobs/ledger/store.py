"""The ledger's Redis: a client that rides out restarts, and the names of the keys."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ClusterDownError, OutOfMemoryError, ReadOnlyError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from infra.contract.errors import UnavailableError
from infra.runtime.embedded_redis import redis_url_for_client

PREFIX = "loraretriever:evaluation"
INDEX = f"{PREFIX}:index"
ACTIVE = f"{PREFIX}:active"
WORKERS = f"{PREFIX}:workers"

_PASSING = (ReadOnlyError, OutOfMemoryError, TryAgainError, ClusterDownError)
_PASSING_CODES = ("MISCONF", "BUSY", "NOREPLICAS")
"""Replies that say nothing of the call: a failover, a full disk or memory, a script that takes long."""


def key_of(evaluation_id: str, name: str) -> str:
    """Return the key of a job's `name`; all keys of a job share a hash tag."""
    return f"{PREFIX}:{{{evaluation_id}}}:{name}"


def keys_of(evaluation_id: str, *names: str) -> list[str]:
    """Return the keys of several of a job's names."""
    return [key_of(evaluation_id, name) for name in names]


def request_key(request_id: str) -> str:
    """Return the key that remembers which job a request id started."""
    return f"{PREFIX}:request:{request_id}"


class RedisStore:
    """A Redis whose every call is retried `retries` times with growing pauses, then raises UnavailableError.

    Used on one event loop.
    """

    def __init__(self, url: str, *, retries: int = 8) -> None:
        self.redis: Any = Redis.from_url(
            redis_url_for_client(url),
            decode_responses=True,
            retry=Retry(ExponentialBackoff(cap=2, base=0.02), retries),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            socket_timeout=10,
            health_check_interval=15,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.redis.aclose()

    async def run(self, script: str, names: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run a Lua script."""
        return await self.call(self.redis.register_script(script)(keys=names, args=arguments))

    async def call(self, call: Any) -> Any:
        """Return what a call of the Redis client gives."""
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            result = await call
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise UnavailableError(
                f"the Redis of evaluation jobs cannot be reached ({error}); try again once it is back"
            ) from error
        except ResponseError as error:
            if not (isinstance(error, _PASSING) or str(error).startswith(_PASSING_CODES)):
                raise
            await self.redis.connection_pool.disconnect(inuse_connections=False)  # The next may reach another server.
            raise UnavailableError(
                f"the Redis of evaluation jobs takes no changes now ({error}); it is tried again"
            ) from error
        # redis-py writes under asyncio.wait_for, which up to Python 3.11 loses a cancellation that comes as it ends.
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        return result
