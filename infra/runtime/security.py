"""TLS files and bearer tokens, for servers and channels."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Iterable
from pathlib import Path

import grpc

from infra.contract.errors import ConfigurationError, UnauthenticatedError

AUTHORIZATION_KEY = "authorization"


def server_credentials(certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Return TLS credentials. With `client_ca`, clients need a certificate of that CA (mTLS)."""
    _check_pair(certificate, key)
    return grpc.ssl_server_credentials(
        [(_read(key, "TLS key"), _read(certificate, "TLS certificate"))],
        root_certificates=_read_ca(client_ca),
        require_client_auth=client_ca is not None,
    )


def channel_credentials(ca: Path | None, certificate: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    """Return TLS credentials of a client. Servers need a certificate of `ca` (None: the system's CAs)."""
    if (certificate is None) != (key is None):
        raise ConfigurationError("a client's TLS certificate and key go together; give both or neither")
    if certificate is not None and key is not None:
        _check_pair(certificate, key)
    return grpc.ssl_channel_credentials(
        root_certificates=_read_ca(ca),
        private_key=_read(key, "TLS key") if key is not None else None,
        certificate_chain=_read(certificate, "TLS certificate") if certificate is not None else None,
    )


def check_configured_token(token: str | None) -> None:
    """Raise ConfigurationError unless a token can be sent in a header."""
    if token is not None and not (token and token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError("a bearer token is one or more printable ASCII characters without spaces")


def check_token(metadata: Iterable[tuple[str, str | bytes]], token: str) -> None:
    """Raise UnauthenticatedError unless the call's metadata contains the token. Takes constant time."""
    values = [value for key, value in metadata if key == AUTHORIZATION_KEY]
    given = values[0] if len(values) == 1 else b""
    if not token_matches(given.encode() if isinstance(given, str) else given, token):
        problem = "carries another bearer token than this server's" if values else "carries no bearer token"
        raise UnauthenticatedError(f"the call {problem}; send metadata 'authorization: Bearer TOKEN'")


def token_matches(header: bytes, token: str) -> bool:
    """Return whether the value of an authorization header is `Bearer` and the token, in constant time."""
    scheme, _, value = header.partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(value.strip(), token.encode())


def _check_pair(certificate: Path, key: Path) -> None:
    _read(certificate, "TLS certificate")
    _read(key, "TLS key")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            f"TLS certificate {certificate} and key {key} do not load together ({error}); "
            "give a PEM certificate chain and its unencrypted PEM private key"
        ) from error


def _read_ca(path: Path | None) -> bytes | None:
    if path is None:
        return None
    content = _read(path, "TLS CA")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        raise ConfigurationError(f"TLS CA {path} contains no certificate ({error}); give a PEM file") from error
    return content


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{what} {path} cannot be read: {error.strerror}") from error
