"""Every command of `loraretriever`, and how errors are printed."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points, version
from typing import Annotated, Any

import typer

from infra.contract.errors import ConfigurationError, InvalidArgumentError, LoraRetrieverError
from infra.runtime.extras import missing_package
from orchestrator.cli import output as console
from orchestrator.cli.commands import adapters, ask, demo, evaluate, serve, study, up
from orchestrator.cli.errors import message_of, shown_bytes
from orchestrator.cli.options.targets import target
from orchestrator.cli.study_flags import REPLACED
from orchestrator.devstack.process import stop_signals_interrupt

_PASS_THROUGH = ("serve", "worker")
#: Commands whose --debug is an option of their own.
_OWN_DEBUG = ("study",)

app = typer.Typer(
    name="loraretriever",
    help="Retrieve the LoRA adapters that fit each multimodal request, compose them for that request, and answer.",
    epilog="Environment: LORARETRIEVER_CLIENT_RETRIEVAL_TARGET, ..._ORCHESTRATOR_TARGET, ..._TLS_CA, "
    "..._TLS_CERTIFICATE, ..._TLS_KEY and ..._TOKEN set where the servers are and how to call them. "
    "NO_COLOR turns colours off.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("ask")(ask.ask)
app.command("study")(study.study)
app.add_typer(adapters.app, name="adapters")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(serve.app, name="serve")
app.command("worker", context_settings=serve.PASS_THROUGH)(serve.worker)


def _add_tier_commands() -> None:
    """Add the commands of the tiers: the entry points of `loraretriever.commands`, each a Typer or a function."""
    for entry in sorted(entry_points(group="loraretriever.commands"), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except ImportError as error:
            _add_unavailable(entry, error)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name)(command)


def _add_unavailable(entry: EntryPoint, error: ImportError) -> None:
    """Add a command that says which extra is missing."""
    package = (error.name or "").partition(".")[0]
    problem = missing_package(package) if package else str(error)

    @app.command(entry.name, context_settings=serve.PASS_THROUGH, help=f"Not available: {problem}.")
    def unavailable(_context: typer.Context) -> None:
        raise ConfigurationError(problem)


_add_tier_commands()


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit status.

    0: done; 1: failed; 2: called wrongly, or a package is missing; 128 + N: stopped by signal N.

    Expected errors become one line on standard error. With --debug they are raised instead.
    """
    passes_through = bool(arguments) and arguments[0] in _PASS_THROUGH
    debug = not passes_through and "--debug" in arguments and arguments[0] not in _OWN_DEBUG
    if not passes_through:
        arguments = [_with_dashes(argument) for argument in arguments]
    if debug:
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _check_utf8(arguments)
        return _invoke(arguments)
    except LoraRetrieverError as error:
        if debug:
            raise
        console.print_error(message_of(error), getattr(error, "__notes__", None))
        return console.exit_status(error)
    except typer.TyperException as error:
        if problem := _usage_problem(error):
            console.print_error(problem)
        return console.USAGE
    except (typer.Abort, KeyboardInterrupt):
        return console.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return console.FAILED


def _invoke(arguments: list[str]) -> int:
    with stop_signals_interrupt() as received:
        status = int(app(args=arguments, prog_name="loraretriever", standalone_mode=False) or 0)
    if status == console.INTERRUPTED and received.number is not None:
        return 128 + received.number
    if status == console.INTERRUPTED:
        console.note("interrupted")
    return status


def _check_utf8(arguments: list[str]) -> None:
    """Raise InvalidArgumentError for an argument that is not UTF-8, which Python passes on as lone surrogates."""
    for number, argument in enumerate(arguments, start=1):
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise InvalidArgumentError(
                "",
                f"argument {number} is not UTF-8: {shown_bytes(argument)}; convert text with iconv, or rename the file",
            ) from None


def _with_dashes(argument: str) -> str:
    """Return an option spelled with underscores, as in the study's scripts, with dashes."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _usage_problem(error: Any) -> str:
    """Return what is wrong with a command line, and where help is; empty if help has been printed already."""
    context, problem = getattr(error, "ctx", None), str(error.format_message()).rstrip(".")
    option = str(getattr(error, "option_name", ""))
    if option in REPLACED:
        return f"{option} of the study: {REPLACED[option]}"
    where = f"; see '{context.command_path} --help'" if context is not None else ""
    return problem and problem + where


def _print_version(requested: bool) -> None:
    if requested:
        console.results().print(f"loraretriever {version('loraretriever')}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    _debug: Annotated[
        bool, typer.Option("--debug", help="Raise errors instead of printing them; may be given anywhere.")
    ] = False,
) -> None:
    context.obj = target  # How commands of other tiers find the tiers: (tier, flag) -> Target.
