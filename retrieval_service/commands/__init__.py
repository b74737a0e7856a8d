"""`loraretriever retrieval ...`: evaluates retrieval and maintains the catalogue."""

from __future__ import annotations

import typer

from retrieval_service.commands import maintenance
from retrieval_service.commands.evaluate import evaluate

app = typer.Typer(no_args_is_help=True, help="Evaluate retrieval and maintain the catalogue.")
app.command("evaluate")(evaluate)
app.command("reindex", context_settings=maintenance.PASS_THROUGH)(maintenance.reindex)
app.command("rollback")(maintenance.rollback)
app.command("backup")(maintenance.backup)
app.command("restore")(maintenance.restore)
