"""`loraretriever retrieval reindex|rollback|backup|restore`: maintains the catalogue directly in Qdrant.

A catalogue in a folder is open to one process at a time, so its service must be stopped first. On a Qdrant server the
service keeps running.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from infra.contract.errors import ConfigurationError, FailedPreconditionError
from retrieval_service.commands.output import print_result, stderr_console

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from retrieval_service.catalogue.qdrant import Qdrant

_PREFIX = "LORARETRIEVER_RETRIEVAL_"
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}
_Url = Annotated[str, typer.Option(help="Qdrant server instead of a folder.", envvar=f"{_PREFIX}QDRANT_URL")]
_Folder = Annotated[Path, typer.Option(help="Folder of the catalogue.", envvar=f"{_PREFIX}QDRANT_PATH")]
_Key = Annotated[str, typer.Option(help="Key of the Qdrant server.", envvar=f"{_PREFIX}QDRANT_API_KEY")]
_Ca = Annotated[Path | None, typer.Option(help="PEM file of its CA.", envvar=f"{_PREFIX}QDRANT_TLS_CA")]
_Collection = Annotated[str, typer.Option(help="Name of the catalogue.", envvar=f"{_PREFIX}COLLECTION")]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
_DEFAULT_FOLDER = Path(".loraretriever/qdrant")
_DEFAULT_COLLECTION = "adapters"

# qdrant-client, torch and rich.progress are imported inside the commands: --help must not wait for them, and the base
# install does not have them.


def reindex(
    *,
    context: typer.Context,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Skip adapters that were registered by vectors.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Convert the catalogue to another embedder, or other embedder settings, without interrupting service.

    Takes the settings of the new service (see 'loraretriever serve retrieval --help'), such as --embedder-path. The
    examples of all adapters are embedded into a new collection, then the catalogue's name moves to it in one step.
    Restart the services with the new settings afterwards; until then they answer from the old collection and accept
    no changes.
    """
    _require("qdrant_client")
    from rich.progress import Progress

    from infra.runtime.settings import load_settings
    from retrieval_service.app import open_qdrant
    from retrieval_service.catalogue import reindexing
    from retrieval_service.embedders.batcher import BatchedEmbedder
    from retrieval_service.embedders.build import build_embedder
    from retrieval_service.settings import RetrievalSettings

    settings = load_settings(RetrievalSettings, context.args)
    collection = settings.catalogue.collection
    with (
        closing(open_qdrant(settings.qdrant)) as qdrant,
        Progress(console=stderr_console(), transient=True) as progress,
    ):
        task = progress.add_task("loading the embedder", total=None)
        with (
            closing(BatchedEmbedder(build_embedder(settings), settings.batching)) as embedder,
            qdrant.session() as client,
        ):
            _check_exists(client, collection)
            result = reindexing.reindex(
                client,
                collection,
                embedder,
                indexed=qdrant.shared,
                skip_without_examples=leave_out,
                progress=lambda done, total: progress.update(
                    task, description="embedding", completed=done, total=total
                ),
            )
    skipped = f"; left out: {', '.join(result.skipped)}" if result.skipped else ""
    print_result(
        as_json,
        f"embedded the examples of {result.embedded} adapters into {result.collection}{skipped}",
        embedded=result.embedded,
        left_out=result.skipped,
        collection=result.collection,
        former=result.previous,
    )


def rollback(
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Even if adapters have changed since.")] = False,
    qdrant_url: _Url = "",
    qdrant_path: _Folder = _DEFAULT_FOLDER,
    qdrant_api_key: _Key = "",
    qdrant_tls_ca: _Ca = None,
    collection: _Collection = _DEFAULT_COLLECTION,
    as_json: _Json = False,
) -> None:
    """Return to the catalogue before the last re-index or restore. A second rollback undoes the first."""
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (qdrant, client):
        from retrieval_service.catalogue.reindexing import changes_undone_by_rollback, roll_back

        _check_exists(client, collection)
        undone = changes_undone_by_rollback(client, collection)
        if undone and not yes:
            raise FailedPreconditionError(
                f"these adapters were registered, changed or removed since: {', '.join(undone)}; a rollback undoes "
                f"those changes in {qdrant.location}; confirm with --yes"
            )
        info = roll_back(client, collection)
    print_result(
        as_json,
        f"back to {info.collection}, built with [{info.fingerprint}]",
        collection=info.collection,
        undone=undone,
    )


def backup(
    *,
    file: Annotated[Path, typer.Argument(help="Zip file to write.")],
    qdrant_url: _Url = "",
    qdrant_path: _Folder = _DEFAULT_FOLDER,
    qdrant_api_key: _Key = "",
    qdrant_tls_ca: _Ca = None,
    collection: _Collection = _DEFAULT_COLLECTION,
    as_json: _Json = False,
) -> None:
    """Write the catalogue with all vectors and stored examples to one file."""
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (_, client):
        from retrieval_service.catalogue.backup import take_backup, write_backup

        _check_exists(client, collection)
        content = take_backup(client, collection)
    write_backup(content, file)
    count = len(content.entries)
    print_result(as_json, f"wrote {count} adapters to {file}", file=str(file), adapters=count)


def restore(
    *,
    file: Annotated[Path, typer.Argument(help="Zip file that 'backup' wrote.")],
    replace: Annotated[bool, typer.Option("--replace", help="Even if the catalogue holds adapters.")] = False,
    qdrant_url: _Url = "",
    qdrant_path: _Folder = _DEFAULT_FOLDER,
    qdrant_api_key: _Key = "",
    qdrant_tls_ca: _Ca = None,
    collection: _Collection = _DEFAULT_COLLECTION,
    as_json: _Json = False,
) -> None:
    """Replace the catalogue by the content of a backup. 'rollback' returns to the state before."""
    _require("qdrant_client")
    from retrieval_service.catalogue.backup import read_backup, restore_backup

    content = read_backup(file)
    with _opened(qdrant_url, qdrant_path, qdrant_api_key, qdrant_tls_ca) as (qdrant, client):
        name = restore_backup(client, collection, content, replace=replace, indexed=qdrant.shared)
    count = len(content.entries)
    print_result(
        as_json, f"restored {count} adapters, built with [{content.fingerprint}]", adapters=count, collection=name
    )


@contextmanager
def _opened(url: str, folder: Path, key: str, ca: Path | None) -> Iterator[tuple[Qdrant, QdrantClient]]:
    _require("qdrant_client")
    from retrieval_service.catalogue.qdrant import Qdrant, QdrantFolder, QdrantServer

    location = QdrantServer(url, key or None, tls_ca=ca) if url else QdrantFolder(folder)
    with closing(Qdrant(location)) as qdrant, qdrant.session() as client:
        yield qdrant, client


def _check_exists(client: QdrantClient, collection: str) -> None:
    from retrieval_service.catalogue.collections import catalogue_exists

    if not catalogue_exists(client, collection):
        raise FailedPreconditionError(
            f"there is no catalogue {collection!r} here; check --qdrant-path or --qdrant-url, and --collection"
        )


def _require(module: str) -> None:
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ConfigurationError(f"this needs {module}, which is not installed: pip install 'loraretriever[retrieval]'")
