"""The running service, as commands reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from infra.contract.errors import UnavailableError, UnreachableError
from infra.runtime.channel import ChannelOptions
from retrieval_service.clients import Client, client

_DEFAULT = "127.0.0.1:50051"


@contextmanager
def connected(context: typer.Context, flag: str) -> Iterator[Client]:
    """Give a client of the service at `flag`, or where the command line that holds this command knows one.

    The command line leaves `(tier, flag) -> Target` in the root context. UnavailableError within says how to start
    the service when nobody listens there.
    """
    resolve = context.find_root().obj
    if resolve is None:
        with client(ChannelOptions(flag or _DEFAULT)) as service:
            yield service
        return
    found = resolve("retrieval", flag)
    try:
        with client(found.channel) as service:
            yield service
    except UnreachableError as error:
        if error.target == found.address:
            raise UnavailableError(found.remedy) from error
        raise
