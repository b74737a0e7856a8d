"""How requests travel to a Qdrant server: within the deadline of the call that is being served, and over TLS."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx

from infra.contract.errors import ConfigurationError
from infra.runtime.deadline import remaining_s

_SHARE = 0.5  # of the time left, so that the caller hears from us that Qdrant did not answer
_LEAST_S = 0.05


class DeadlineTransport(httpx.HTTPTransport):
    """A transport whose requests take at most half of the time that is left to the call they are made for."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        left = remaining_s()
        if left is not None:
            longest = max(_LEAST_S, left * _SHARE)
            given = request.extensions.get("timeout", {})
            request.extensions["timeout"] = {
                step: longest if given.get(step) is None else min(given[step], longest)
                for step in ("connect", "read", "write", "pool")
            }
        return super().handle_request(request)


def transport(ca_file: Path | None) -> DeadlineTransport:
    """Return a transport that trusts the CA in `ca_file`, or the machine's. Raises ConfigurationError."""
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"--qdrant-tls-ca {ca_file} is no PEM file of certificates: {error}") from error
    return DeadlineTransport(verify=context, retries=1)
