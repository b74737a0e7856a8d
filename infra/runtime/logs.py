"""Structured logs to stderr, each line with the id of its request."""

from __future__ import annotations

import logging
import re
import sys
import uuid
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal

try:
    import structlog
except ModuleNotFoundError:  # A benchmark that runs only the engine logs plain lines.
    structlog = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger

from infra.contract.errors import ConfigurationError

LogFormat = Literal["console", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
_current_request_id: ContextVar[str] = ContextVar("loraretriever_request_id", default="")


def request_id() -> str:
    """Return the id of the request being served, or "" outside of requests."""
    return _current_request_id.get()


def bind_request_id(value: str) -> None:
    """Set the request id of this thread or task, and of the tasks that it starts from now on; "" unsets it."""
    _current_request_id.set(value)


def new_request_id() -> str:
    """Return a unique id."""
    return uuid.uuid4().hex


def valid_request_id(value: str) -> bool:
    """Return whether a caller's id is safe to log and echo: 1 to 64 letters, digits, '.', '_', ':' or '-'."""
    return _VALID_REQUEST_ID.fullmatch(value) is not None


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module; call it as `log.info("event", key=value)`."""
    if structlog is None:
        return _PlainLogger(name)
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def configure_logging(service: str, level: LogLevel = "info", fmt: LogFormat = "console") -> None:
    """Send the logs of this process and its libraries to stderr: readable lines, or one JSON object per line.

    Raises ConfigurationError if structlog is not installed.
    """
    if structlog is None:
        raise ConfigurationError("a server needs structlog for its logs: pip install structlog")
    renderer: Processor
    if fmt == "json":
        renderer = structlog.processors.JSONRenderer()
        # Local variables would put prompts, images and tokens into the log.
        transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        finishing: list[Processor] = [structlog.processors.ExceptionRenderer(transformer)]
    else:
        colors = sys.stderr.isatty()
        plain = structlog.dev.plain_traceback
        renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain)
        finishing = []

    def add_service(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_shared_processors(),
            processors=[
                add_service,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *finishing,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "urllib3", "uvicorn.error"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


class _PlainLogger:
    """The methods of a structlog logger that the code uses, on top of the standard library's logger."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **values: Any) -> None:
        self._log(logging.DEBUG, event, values)

    def info(self, event: str, **values: Any) -> None:
        self._log(logging.INFO, event, values)

    def warning(self, event: str, **values: Any) -> None:
        self._log(logging.WARNING, event, values)

    def error(self, event: str, **values: Any) -> None:
        self._log(logging.ERROR, event, values)

    def exception(self, event: str, **values: Any) -> None:
        self._log(logging.ERROR, event, {"exc_info": True} | values)

    def _log(self, level: int, event: str, values: dict[str, Any]) -> None:
        exc_info = values.pop("exc_info", None)
        pairs = "".join(f" {name}={value!r}" for name, value in values.items())
        self._logger.log(level, "%s%s", event, pairs, exc_info=exc_info)


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    current = _current_request_id.get()
    if current and "request_id" not in event:
        event["request_id"] = current
    return event


def _shared_processors() -> list[Processor]:
    return [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_request_id,
        structlog.stdlib.ExtraAdder(),
    ]


def _route_structlog_through_logging() -> None:
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors()[:-1],
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


if structlog is not None:
    _route_structlog_through_logging()
