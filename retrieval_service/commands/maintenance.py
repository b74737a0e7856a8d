"""`loraretriever retrieval reindex|rollback|backup|restore`: the care of the catalogue, straight in Qdrant.

A catalogue in a folder is open to one process at a time: stop its service first. On a Qdrant server it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.contract.errors import ConfigurationError, FailedPreconditionError
from retrieval_service.commands.output import say

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from retrieval_service.catalogue.qdrant import Qdrant

_PREFIX = "LORARETRIEVER_RETRIEVAL_"
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
Url = Annotated[str, typer.Option(help="Qdrant server instead of a folder.", envvar=f"{_PREFIX}QDRANT_URL")]
Folder = Annotated[Path, typer.Option(help="Folder of the catalogue.", envvar=f"{_PREFIX}QDRANT_PATH")]
Key = Annotated[str, typer.Option(help="Key of the Qdrant server.", envvar=f"{_PREFIX}QDRANT_API_KEY")]
Ca = Annotated[Path | None, typer.Option(help="PEM file of its CA.", envvar=f"{_PREFIX}QDRANT_TLS_CA")]
Collection = Annotated[str, typer.Option(help="Name of the catalogue.", envvar=f"{_PREFIX}COLLECTION")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
FOLDER = Path(".loraretriever/qdrant")
COLLECTION = "adapters"


def reindex(
    *,
    context: typer.Context,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Go on without adapters that were registered by vectors.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring the catalogue to another embedder, or other settings of it, without a gap in service.

    Takes the settings of the new service (see 'loraretriever serve retrieval --help'), such as --embedder-path. The
    examples of all adapters are embedded into a new collection, and the catalogue's name moves to it in one step.
    Then restart the services with the new settings; until then they answer by the old collection and take no changes.
    """
    _needs("qdrant_client")
    from rich.progress import Progress

    from infra.runtime.settings import load_settings
    from retrieval_service.assembly import open_qdrant
    from retrieval_service.catalogue import reindexing
    from retrieval_service.commands.output import errors
    from retrieval_service.embedders.batcher import BatchedEmbedder, BatchingOptions
    from retrieval_service.embedders.build import build_embedder
    from retrieval_service.settings import RetrievalSettings

    settings = load_settings(RetrievalSettings, context.args)
    with closing(open_qdrant(settings)) as qdrant, Progress(console=errors(), transient=True) as progress:
        task = progress.add_task("loading the embedder", total=None)
        options = BatchingOptions(settings.max_queue, settings.batch_wait_s, settings.cache_bytes)
        with closing(BatchedEmbedder(build_embedder(settings), options)) as embedder, qdrant.session() as client:
            _check_there(client, settings.collection)
            done = reindexing.reindex(
                client,
                settings.collection,
                embedder,
                indexed=qdrant.shared,
                leave_out=leave_out,
                progress=lambda count, total: progress.update(
                    task, description="embedding", completed=count, total=total
                ),
            )
    left = f"; left out: {', '.join(done.left_out)}" if done.left_out else ""
    say(
        as_json,
        f"embedded the examples of {done.embedded} adapters into {done.collection}{left}",
        embedded=done.embedded,
        left_out=done.left_out,
        collection=done.collection,
        former=done.former,
    )


def rollback(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Also when adapters were changed since.")] = False,
    qdrant_url: Url = "",
    qdrant_path: Folder = FOLDER,
    qdrant_api_key: Key = "",
    qdrant_tls_ca: Ca = None,
    collection: Collection = COLLECTION,
    as_json: Json = False,
) -> None:
    """Go back to the catalogue before the last re-index or restore. A second rollback undoes the first."""
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (qdrant, client):
        from retrieval_service.catalogue.reindexing import lost_by_rollback, roll_back

        _check_there(client, collection)
        lost = lost_by_rollback(client, collection)
        if lost and not yes:
            raise FailedPreconditionError(
                f"since then these adapters were registered, changed or removed: {', '.join(lost)}; going back undoes "
                f"that in {qdrant.place}; say --yes to do it"
            )
        head = roll_back(client, collection)
    say(as_json, f"back to {head.collection}, made with [{head.fingerprint}]", collection=head.collection, undone=lost)


def backup(
    *,
    file: Annotated[Path, typer.Argument(help="Zip file to write.")],
    qdrant_url: Url = "",
    qdrant_path: Folder = FOLDER,
    qdrant_api_key: Key = "",
    qdrant_tls_ca: Ca = None,
    collection: Collection = COLLECTION,
    as_json: Json = False,
) -> None:
    """Write the catalogue with all vectors and kept examples into one file."""
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (_, client):
        from retrieval_service.catalogue.backup import take, write

        _check_there(client, collection)
        taken = take(client, collection)
    write(taken, file)
    say(as_json, f"wrote {len(taken.entries)} adapters to {file}", file=str(file), adapters=len(taken.entries))


def restore(
    *,
    file: Annotated[Path, typer.Argument(help="Zip file that 'backup' wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Also when the catalogue holds adapters.")] = False,
    qdrant_url: Url = "",
    qdrant_path: Folder = FOLDER,
    qdrant_api_key: Key = "",
    qdrant_tls_ca: Ca = None,
    collection: Collection = COLLECTION,
    as_json: Json = False,
) -> None:
    """Let the catalogue be what a backup holds. The state before is kept: 'rollback' goes back to it."""
    _needs("qdrant_client")
    from retrieval_service.catalogue.backup import read
    from retrieval_service.catalogue.backup import restore as restored

    content = read(file)
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (qdrant, client):
        name = restored(client, collection, content, replace=replace, indexed=qdrant.shared)
    count = len(content.entries)
    say(as_json, f"restored {count} adapters, made with [{content.fingerprint}]", adapters=count, collection=name)


@contextmanager
def _opened(url: str, folder: Path, key: str, ca: Path | None) -> Iterator[tuple[Qdrant, QdrantClient]]:
    _needs("qdrant_client")
    from retrieval_service.catalogue.qdrant import LocalFolder, Qdrant, Server

    place = Server(url, key or None, tls_ca=ca) if url else LocalFolder(folder)
    with closing(Qdrant(place)) as qdrant, qdrant.session() as client:
        yield qdrant, client


def _check_there(client: QdrantClient, collection: str) -> None:
    from retrieval_service.catalogue.collections import exists

    if not exists(client, collection):
        raise FailedPreconditionError(f"there is no catalogue {collection!r} here; name its place and --collection")


def _needs(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigurationError(f"this needs {module}, not installed here: pip install 'loraretriever[retrieval]'")
