"""Command line of the demo world: `generate` writes its data, `train` trains its checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.pocket_phone import SEED
from examples.pocket_phone.dataset import TEST, TRAIN, write_world

STAGES = ("base", "adapters", "jina", "card", "all")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.pocket_phone", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    make = commands.add_parser(
        "generate",
        help="write the 19 datasets (seconds)",
        description="Write DIR/world.json and, for each of the 19 datasets, DIR/<adapter_id>/{train,test}.jsonl and "
        "images/. The same arguments write the same bytes.",
    )
    make.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write to, created if missing"
    )
    make.add_argument(
        "--train", type=int, default=TRAIN, metavar="N", help="training episodes per dataset (default: %(default)s)"
    )
    make.add_argument(
        "--test", type=int, default=TEST, metavar="N", help="test episodes per dataset (default: %(default)s)"
    )
    make.add_argument("--seed", type=int, default=SEED, help="seed of the world (default: %(default)s)")

    train = commands.add_parser(
        "train",
        help="train the checkpoints (under two hours on 2 CPU cores)",
        description="Train the tiny Qwen2-VL, its 19 adapters and the tiny jina-v4 into DIR, measure them and write "
        "DIR/MODEL_CARD.md. An interrupted run resumes when started again with the same DIR.",
    )
    train.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of the checkpoints, created if missing"
    )
    train.add_argument(
        "--stage", choices=STAGES, default="all", help="what to train; `card` only measures (default: all)"
    )
    train.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: %(default)s)")
    train.add_argument("--workers", type=int, default=2, metavar="N", help="parallel processes (default: %(default)s)")
    train.add_argument(
        "--seed", type=int, default=SEED, help="seed of the world and of the training (default: %(default)s)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; Ctrl-C ends with 130 and one line."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command == "generate":
            world = write_world(arguments.output, arguments.train, arguments.test, arguments.seed)
            sys.stdout.write(f"wrote {world}\n")
        else:
            from examples.pocket_phone.recipe.stages import train  # Imports torch, which `generate` does not need.

            train(arguments.output, arguments.stage, arguments.device, arguments.workers, arguments.seed)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes from here\n")
        return 130
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
