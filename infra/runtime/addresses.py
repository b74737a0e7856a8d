"""Addresses to listen on: host:port, [v6]:port or unix:/path."""

from __future__ import annotations

import socket

from infra.contract.errors import ConfigurationError


def split_address(address: str, setting: str = "address") -> tuple[str, int]:
    """Return host and port of "host:port" or "[v6]:port", or raise ConfigurationError naming the setting."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"{setting} {address!r} is not host:port, such as 127.0.0.1:50051 or [::1]:50051")
    return host.strip("[]"), int(port)


def is_unix(address: str) -> bool:
    """Return whether an address is that of a unix socket."""
    return address.startswith("unix:")


def with_port(address: str, port: int) -> str:
    """Return the address with the port that was bound instead of the requested one."""
    return address if is_unix(address) else f"{address.rpartition(':')[0]}:{port}"


def check_free(address: str, setting: str = "address") -> None:
    """Raise ConfigurationError, with the reason and the name of the setting, if `address` cannot be bound.

    gRPC itself reports every failure to bind as the same RuntimeError.
    """
    if is_unix(address):
        return
    host, port = split_address(address, setting)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except OSError as error:
        raise bind_error(address, setting, error.strerror or str(error)) from error


def bind_error(address: str, setting: str, why: str) -> ConfigurationError:
    """Return the error for an address that could not be bound."""
    flag = "--" + setting.replace("_", "-")
    return ConfigurationError(
        f"cannot listen on {address}: {why.lower()}; choose another {flag}, or port 0 for a free one", address=address
    )
