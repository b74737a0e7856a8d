"""`loraretriever retrieval ...`: how well adapters are told apart, and the care of the catalogue."""

from __future__ import annotations

import typer

from retrieval_service.commands import care
from retrieval_service.commands.evaluate import evaluate

app = typer.Typer(no_args_is_help=True, help="Measure retrieval, and care for the catalogue.")
app.command("evaluate")(evaluate)
app.command("reindex", context_settings=care.PASS_THROUGH)(care.reindex)
app.command("rollback")(care.rollback)
app.command("backup")(care.backup)
app.command("restore")(care.restore)
