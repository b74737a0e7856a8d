"""How the process of every tier starts and ends."""

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
LINGER_S = 5.0

log = get_logger(__name__)

_S = TypeVar("_S", bound=TierSettings)


def run_tier(serve: Callable[[_S], None], settings_class: type[_S], argv: Sequence[str] | None = None) -> NoReturn:
    """Load the settings, set up logs, signals and metrics, call `serve(settings)`, and exit the process.

    Exit codes: 0 after a stop signal; 2 with one line on stderr when a setting, a checkpoint or an address is wrong;
    1 when something needed is not there, with one line, or for the unforeseen, with its traceback.
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
    except SystemExit as leaving:
        code = leaving.code
    except Exception:
        log.exception("the tier failed")
        code = EXIT_FAILED
    _leave_even_if_stuck(code if isinstance(code, int) else 0)
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


def _leave_even_if_stuck(code: int) -> None:
    """End the process soon even when a handler that outlived the grace period still holds a thread."""

    def leave() -> None:
        log.warning("threads are stuck; leaving without them")
        logging.shutdown()
        os._exit(code)

    timer = threading.Timer(LINGER_S, leave)
    timer.daemon = True
    timer.start()
