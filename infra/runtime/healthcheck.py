"""Check whether a server is serving; the exit status is 0 if it is. Usage: healthcheck HOST:PORT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from infra.contract.errors import LoraRetrieverError
from infra.runtime.channel import ChannelOptions, sync_channel
from infra.runtime.deadline import HEALTH_CHECK_TIMEOUT_S
from infra.runtime.error_table import translated


def main(argv: list[str] | None = None) -> int:
    """Return 0 if the server answers SERVING, else 1, with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="healthcheck", description=__doc__)
    parser.add_argument("target", help="host:port of the server")
    parser.add_argument("--service", default="", help="full name of one service; default: the server as a whole")
    parser.add_argument("--tls-ca", type=Path, help="PEM file of the CA of the server's certificate; turns TLS on")
    parser.add_argument(
        "--tls-certificate", type=Path, help="PEM file of the client certificate, if the server requires one"
    )
    parser.add_argument("--tls-key", type=Path, help="PEM file of its private key")
    arguments = parser.parse_args(argv)
    options = ChannelOptions(
        arguments.target,
        tls_ca=arguments.tls_ca,
        tls_certificate=arguments.tls_certificate,
        tls_key=arguments.tls_key,
        max_attempts=1,
        health_check=False,
    )
    try:
        status = _status(options, arguments.service)
    except LoraRetrieverError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    if status != health_pb2.HealthCheckResponse.SERVING:
        sys.stderr.write(f"{arguments.target} answers {health_pb2.HealthCheckResponse.ServingStatus.Name(status)}\n")
        return 1
    return 0


def _status(options: ChannelOptions, service: str) -> int:
    with translated(options.target), sync_channel(options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=HEALTH_CHECK_TIMEOUT_S)
    return int(reply.status)


if __name__ == "__main__":
    raise SystemExit(main())
