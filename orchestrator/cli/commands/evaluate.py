"""`loraretriever evaluate ...`: evaluation jobs, and scores of result files."""

from __future__ import annotations

import typer

from orchestrator.cli.commands import jobs
from orchestrator.cli.commands.judge import judge
from orchestrator.cli.commands.matrix import matrix
from orchestrator.cli.commands.run import run
from orchestrator.cli.commands.score import compare_results, score

app = typer.Typer(no_args_is_help=True, help="Run evaluation jobs, follow them, and score and compare results.")
app.command("matrix")(matrix)
app.command("score")(score)
app.command("judge")(judge)
app.command("compare")(compare_results)
app.add_typer(jobs.app)
app.command("run")(run)
