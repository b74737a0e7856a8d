"""The ledger's Redis: a client that survives restarts of the server, and the names of the keys."""

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
from orchestrator.jobs.ledger.lua import script

PREFIX = "loraretriever:evaluation"
INDEX = f"{PREFIX}:index"
ACTIVE = f"{PREFIX}:active"
WORKERS = f"{PREFIX}:workers"

# With 8 retries a call gives up after about 6 s of pauses, within the deadline of the RPC that made it. Workers have no
# such deadline and use more.
_DEFAULT_RETRIES = 8
_FIRST_PAUSE_S = 0.02  # A restarted embedded server is back within 0.1 s.
_LONGEST_PAUSE_S = 2.0
_SOCKET_TIMEOUT_S = 10  # Longer than any script takes; notices a server that accepts connections and never replies.
_HEALTH_CHECK_INTERVAL_S = 15

_PASSING_ERRORS = (ReadOnlyError, OutOfMemoryError, TryAgainError, ClusterDownError)
_PASSING_CODES = ("MISCONF", "BUSY", "NOREPLICAS")
"""Errors about the server's condition and not about the call: a failover, a full disk or memory, a long script."""


def key_of(evaluation_id: str, name: str) -> str:
    """Return the key of a job's `name`; all keys of a job share a hash tag."""
    return f"{PREFIX}:{{{evaluation_id}}}:{name}"


def keys_of(evaluation_id: str, *names: str) -> list[str]:
    """Return the keys of several of a job's names."""
    return [key_of(evaluation_id, name) for name in names]


def request_key(request_id: str) -> str:
    """Return the key that remembers which job a request id started."""
    return f"{PREFIX}:request:{request_id}"


class _Backoff(ExponentialBackoff):
    """Growing pauses between retries, until retrying is stopped for all connections at once."""

    def __init__(self) -> None:
        super().__init__(cap=_LONGEST_PAUSE_S, base=_FIRST_PAUSE_S)
        self.stopped = False

    def __deepcopy__(self, _memo: dict[int, Any]) -> _Backoff:
        # Each connection copies its retry policy; `stopped` must reach them all.
        return self

    def compute(self, failures: int) -> float:
        """Return the pause after a number of failures; raise if retrying was stopped."""
        # One retry remains: an idle connection that the server closed fails once although Redis is there.
        if self.stopped and failures > 1:
            raise RedisConnectionError("retries were stopped")
        return float(super().compute(failures))


class RedisStore:
    """A Redis whose calls are retried `retries` times with growing pauses and then raise UnavailableError.

    Called on: one event loop.
    """

    def __init__(self, url: str, *, retries: int = _DEFAULT_RETRIES) -> None:
        self._backoff = _Backoff()
        self.redis: Any = Redis.from_url(
            redis_url_for_client(url),
            decode_responses=True,
            retry=Retry(self._backoff, retries),
            retry_on_error=[RedisConnectionError, RedisTimeoutError],
            socket_timeout=_SOCKET_TIMEOUT_S,
            health_check_interval=_HEALTH_CHECK_INTERVAL_S,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.redis.aclose()

    def stop_retrying(self) -> None:
        """Retry calls only once from now on, so that a process can exit while Redis is away."""
        self._backoff.stopped = True

    async def run(self, name: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the Lua script `name` and return its reply."""
        return await self.call(self.redis.register_script(script(name))(keys=keys, args=arguments))

    async def call(self, call: Any) -> Any:
        """Return the result of a call of the Redis client.

        Raises:
            UnavailableError: Redis cannot be reached or takes no changes.
        """
        task = asyncio.current_task()
        cancelled_before = task.cancelling() if task is not None else 0
        try:
            result = await call
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise UnavailableError(
                f"the Redis of evaluation jobs cannot be reached ({error}); try again once it is back"
            ) from error
        except ResponseError as error:
            if not (isinstance(error, _PASSING_ERRORS) or str(error).startswith(_PASSING_CODES)):
                raise
            # After a failover, new connections may reach the new primary.
            await self.redis.connection_pool.disconnect(inuse_connections=False)
            raise UnavailableError(
                f"the Redis of evaluation jobs takes no changes now ({error}); try again later"
            ) from error
        # redis-py writes under asyncio.wait_for, which up to Python 3.11 loses a cancellation that arrives as it ends.
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
        return result
