"""Start and exit of every tier's process."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn, TypeVar

from infra.contract.errors import ConfigurationError, FailedPreconditionError, LoraRetrieverError
from infra.runtime.lifecycle import install_stop_signals
from infra.runtime.logs import configure_logging, get_logger
from infra.runtime.metrics import serve_metrics
from infra.runtime.settings import TierSettings, load_settings, service_name

EXIT_UNUSABLE = 2
EXIT_FAILED = 1

#: How long threads may take to end after the tier has stopped, before the process exits without them. A handler that
#: outlived the grace period would otherwise keep the process alive until an orchestrator of containers kills it.
_LINGER_S = 5.0

log = get_logger(__name__)

_S = TypeVar("_S", bound=TierSettings)


def run_tier(serve: Callable[[_S], None], settings_class: type[_S], argv: Sequence[str] | None = None) -> NoReturn:
    """Load the settings, set up logs, signals and metrics, call `serve(settings)`, and exit the process.

    Exit codes: 0 after a stop signal; 2, with one line on stderr, if a setting, a checkpoint or an address is wrong; 1,
    with one line, if a dependency is not available; 1, with a traceback, after an unexpected exception.
    """
    name = service_name(settings_class)
    code: int | str | None = 0
    try:
        install_stop_signals()
        settings = load_settings(settings_class, argv)
        configure_logging(name, settings.log_level, settings.log_format)
        _serve_metrics(settings)
        serve(settings)
    except LoraRetrieverError as error:
        sys.stderr.write(f"loraretriever {name}: {' '.join(error.message.split())}\n")
        code = EXIT_UNUSABLE if isinstance(error, ConfigurationError | FailedPreconditionError) else EXIT_FAILED
    except SystemExit as requested:
        code = requested.code
    except Exception:
        log.exception("tier_failed")
        code = EXIT_FAILED
    _exit_even_if_stuck(code if isinstance(code, int) else 0)
    sys.exit(code)


def _serve_metrics(settings: TierSettings) -> None:
    if not settings.metrics_address:
        return
    server = serve_metrics(
        settings.metrics_address,
        token=settings.server.token,
        certificate=settings.server.tls_certificate,
        key=settings.server.tls_key,
        client_ca=settings.server.tls_client_ca,
    )
    log.info("metrics", address=server.address)


def _exit_even_if_stuck(code: int) -> None:
    """Exit the process soon, even if a handler that outlived the grace period still occupies a thread."""

    def exit_now() -> None:
        log.warning("threads_stuck_at_exit", waited_s=_LINGER_S)
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(_LINGER_S, exit_now)
    timer.daemon = True
    timer.start()
