"""`loraretriever retrieval ...`: how well adapters are told apart, and the care of the catalogue."""

from __future__ import annotations

import typer

from retrieval_service.commands.evaluate import evaluate

app = typer.Typer(no_args_is_help=True, help="Measure retrieval, and care for the catalogue.")
app.command("evaluate")(evaluate)


@app.callback()
def _retrieval() -> None:
    """Keep the commands' names even where there is one only."""
