"""The demo world: its checkpoints in this checkout, and its datasets, which are generated once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import orchestrator
from infra.contract.errors import ConfigurationError, UnavailableError
from orchestrator.devstack.stack import FRESH_FOLDERS

_PACKAGE = "examples.pocket_phone"
_MARKER = "generated.json"
#: The base model's name in the world's adapters.
MODEL_NAME = "qwen2-vl-tiny"


@dataclass(frozen=True)
class World:
    """The folder of examples/pocket_phone. `root` is the checkout that holds it."""

    folder: Path

    @property
    def root(self) -> Path:
        """The folder to run the world's own commands in."""
        return self.folder.parents[1]

    @property
    def base(self) -> Path:
        """The tiny base model."""
        return self.folder / "checkpoints" / "base"

    @property
    def adapters(self) -> Path:
        """The folder of the adapters' folders."""
        return self.folder / "checkpoints" / "adapters"

    @property
    def embedder(self) -> Path:
        """The tiny jina-v4."""
        return self.folder / "checkpoints" / "jina_v4"


@dataclass(frozen=True)
class WorldDataset:
    """One dataset of the world and the adapter trained on it."""

    adapter_id: str
    kind: str
    display_name: str
    description: str
    train: Path
    test: Path
    checkpoint: Path


def find_world(
    folder: Path | None = None, *, remedy: str = "name its examples/pocket_phone folder with --world"
) -> World:
    """Return the world in `folder` (default: examples/pocket_phone of this checkout).

    Raises ConfigurationError, naming what is missing and the caller's `remedy`, if it is incomplete.
    """
    world = World((folder or Path(orchestrator.__file__).parents[1] / "examples" / "pocket_phone").resolve())
    for needed in (world.folder / "__main__.py", world.base, world.adapters, world.embedder):
        if not needed.exists():
            raise ConfigurationError(
                f"the demo world is incomplete: {needed} does not exist; run this from a checkout of the repository "
                f"(pip install -e . there), or {remedy}"
            )
    return world


def check_work_dir(work_dir: Path, data: Path) -> None:
    """Raise ConfigurationError if `work_dir` holds the data of another stack, which a fresh stack would discard."""
    taken = [name for name in FRESH_FOLDERS if (work_dir / name).exists()]
    if taken and not (data / "world.json").exists():
        raise ConfigurationError(
            f"{work_dir} holds {', '.join(taken)} of another stack, which the demo would replace; "
            "give another --work-dir"
        )


def generate(world: World, data: Path, *, train: int, test: int) -> bool:
    """Write the world's datasets to `data` unless they exist already, and return whether they were written.

    Raises UnavailableError with the end of the generator's output if it fails.
    """
    requested = {"train": train, "test": test, "generator": _fingerprint(world)}
    marker = data / _MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == requested:
        return False
    marker.unlink(missing_ok=True)
    numbers = ["--train", str(train), "--test", str(test)]
    command = [sys.executable, "-m", _PACKAGE, "generate", "--output", str(data.resolve()), *numbers]
    done = subprocess.run(command, cwd=world.root, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UnavailableError(f"the demo world could not be generated: {done.stderr.strip()[-2000:]}")
    marker.write_text(json.dumps(requested), encoding="utf-8")
    return True


def _fingerprint(world: World) -> str:
    """Return a digest of the code that draws the world."""
    code = hashlib.sha256()
    for file in sorted(world.folder.glob("*.py")):
        code.update(file.read_bytes())
    return code.hexdigest()


def datasets(world: World, data: Path, names: Sequence[str] = ()) -> list[WorldDataset]:
    """Return the generated datasets, or those named. Raises ConfigurationError for an unknown name."""
    entries = json.loads((data / "world.json").read_text(encoding="utf-8"))
    known = [entry["adapter_id"] for entry in entries]
    for name in names:
        if name not in known:
            raise ConfigurationError(f"the demo world has no dataset {name!r}; it has {', '.join(known)}")
    return [
        WorldDataset(
            adapter_id=entry["adapter_id"],
            kind=entry["kind"],
            display_name=entry["display_name"],
            description=entry["description"],
            train=data / entry["train"],
            test=data / entry["test"],
            checkpoint=world.folder / "checkpoints" / entry["checkpoint"],
        )
        for entry in entries
        if not names or entry["adapter_id"] in names
    ]
