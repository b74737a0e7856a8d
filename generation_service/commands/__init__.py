"""The generation tier's part of the command line: `loraretriever inspect`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

for _package in ("torch", "transformers"):  # imported by the commands themselves, when they run
    if find_spec(_package) is None:
        raise ModuleNotFoundError(f"loraretriever inspect needs {_package}", name=_package)


def inspect(
    *,
    path: Annotated[Path, typer.Argument(help="Folder of a base model as it was downloaded, or of a PEFT adapter.")],
    base_model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the base model that an adapter's tensors are checked against. "
            "[default: base_model_name_or_path of the adapter, if it is a folder]",
        ),
    ] = None,
    chat_template: Annotated[
        Path | None,
        typer.Option(help="File with the chat template that the server is to use instead of the base model's own."),
    ] = None,
    bank_ranks: Annotated[
        int | None, typer.Option(min=1, help="Ranks of the server's adapter bank. [default: the server's]")
    ] = None,
    model_aliases: Annotated[
        list[str] | None, typer.Option(help="Another name of the base model in adapter configs; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Describe a folder: what it is, whether it can be served, and what memory it takes.

    Exits with 0 if it can be served, 1 if not. Reads no weights of a base model, so a large one takes seconds.
    """
    from generation_service.commands.inspection import inspect_folder
    from generation_service.commands.printing import print_report
    from generation_service.commands.server_options import BANK_RANKS, ServerOptions, load_options

    options = ServerOptions(load_options(chat_template), bank_ranks or BANK_RANKS, tuple(model_aliases or ()))
    report = inspect_folder(path, base_model, options)
    print_report(report, as_json=as_json)
    if not report.supported:
        raise typer.Exit(1)
