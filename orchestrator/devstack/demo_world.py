"""The worlds of the demo: their models and adapters, and their datasets, which are generated once."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import orchestrator
from infra.contract.errors import ConfigurationError, UnavailableError
from orchestrator.devstack.stack import FRESH_FOLDERS
from orchestrator.evaluation.spec import PromptProtocol

_MARKER = "generated.json"
_ERROR_CHARACTERS = 2000
#: Precedes the error that a world's command ends with; libraries write bars and warnings before it.
_ERROR = "error: "


@dataclass(frozen=True)
class WorldKind:
    """What distinguishes one world of examples/ from another.

    Attributes:
        package: its folder below examples/.
        work_dir: where the demo works by default, relative to the working folder.
        model_name: the base model's name in the world's adapters.
        base: folder of the base model, below the folder of models.
        embedder: folder of the embedder, below the folder of models.
        fetches_models: whether `fetch` gets both models; otherwise they are among the world's checkpoints.
        protocol: how its episodes become samples.
        temperature: of the weighting.
        retrieves_by_kind: whether a question is answered by adapters of its own kind only.
        evaluates_fusion: whether fusion is evaluated too, which by `concat` answers as the mixture does.
        rows: episodes of the training and of the test file of each dataset.
        episodes: of these, what the demo evaluates by default.
    """

    package: str
    work_dir: Path
    model_name: str
    base: str
    embedder: str
    fetches_models: bool
    protocol: PromptProtocol
    temperature: float
    retrieves_by_kind: bool
    evaluates_fusion: bool
    rows: int
    episodes: int


PHONE = WorldKind(
    package="pocket_phone",
    work_dir=Path(".loraretriever/demo"),
    model_name="qwen2-vl-tiny",
    base="base",
    embedder="jina_v4",
    fetches_models=False,
    protocol=PromptProtocol.STEP,
    # The study's. At the server's default of 0.05 the best match gets nearly all of the weight, so that a mixture
    # hardly differs from a selection.
    temperature=0.2,
    retrieves_by_kind=True,
    evaluates_fusion=True,
    rows=20,
    episodes=4,  # the job then takes about a minute on two cores
)
WORDS = WorldKind(
    package="word_tools",
    work_dir=Path(".loraretriever/demo-text"),
    model_name="SmolLM2-135M-Instruct",
    base="SmolLM2-135M-Instruct",
    embedder="all-MiniLM-L6-v2",
    fetches_models=True,
    protocol=PromptProtocol.SEQUENCE,
    # The server's default: cosines of sentence embedders lie closer together than those of the phone's embedder.
    temperature=0.05,
    retrieves_by_kind=False,
    evaluates_fusion=False,  # A fifth of the time, to show equal rows.
    rows=40,
    episodes=6,  # 336 answers, about seven minutes on one core
)
WORLDS = {"pocket-phone": PHONE, "word-tools": WORDS}


@dataclass(frozen=True)
class World:
    """A world: its folder in a checkout, and the folder that has its models' folders."""

    kind: WorldKind
    folder: Path
    models: Path

    @property
    def root(self) -> Path:
        """The checkout, which is the folder to run the world's own commands in."""
        return self.folder.parents[1]

    @property
    def base(self) -> Path:
        """The base model."""
        return self.models / self.kind.base

    @property
    def embedder(self) -> Path:
        """The embedder."""
        return self.models / self.kind.embedder

    @property
    def adapters(self) -> Path:
        """The folder of the adapters' folders."""
        return self.folder / "checkpoints" / "adapters"


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


def world_kind(name: str) -> WorldKind:
    """Return a kind by the world's name or folder. Raises ConfigurationError if there is no such world."""
    kinds = {**WORLDS, **{kind.package: kind for kind in WORLDS.values()}}
    if (kind := kinds.get(Path(name).name)) is None:
        raise ConfigurationError(
            f"there is no world {name}; --world takes {' or '.join(WORLDS)}, or the folder of one in a checkout"
        )
    return kind


def find_world(
    kind: WorldKind = PHONE,
    *,
    folder: Path | None = None,
    work_dir: Path | None = None,
    remedy: str = "name the world's folder with --world",
) -> World:
    """Return a world in `folder` (default: the folder of its package in this checkout).

    Fetched models are in `work_dir`, others among the world's checkpoints. Raises ConfigurationError, naming what is
    missing and the caller's `remedy`, if the world is incomplete.
    """
    folder = (folder or Path(orchestrator.__file__).parents[1] / "examples" / kind.package).resolve()
    models = (work_dir or kind.work_dir).resolve() / "models" if kind.fetches_models else folder / "checkpoints"
    world = World(kind, folder, models)
    committed = (world.folder / "__main__.py", world.adapters)
    for needed in committed if kind.fetches_models else (*committed, world.base, world.embedder):
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


def fetch(world: World, on_note: Callable[[str], None]) -> None:
    """Get the world's models if it has none of its own; complete ones are kept.

    Raises UnavailableError with the end of the command's output if it fails.
    """
    if world.kind.fetches_models:
        _run(world, "the models could not be fetched", ["fetch", "--output", str(world.models)], on_note)


def generate(world: World, data: Path) -> bool:
    """Write the world's datasets to `data` unless they exist already, and return whether they were written.

    Raises UnavailableError with the end of the generator's output if it fails.
    """
    rows = world.kind.rows
    requested = {"train": rows, "test": rows, "generator": _fingerprint(world)}
    marker = data / _MARKER
    if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) == requested:
        return False
    marker.unlink(missing_ok=True)
    words = ["generate", "--output", str(data.resolve()), "--train", str(rows), "--test", str(rows)]
    _run(world, "the demo world could not be generated", words)
    marker.write_text(json.dumps(requested), encoding="utf-8")
    return True


def _run(world: World, problem: str, words: Sequence[str], on_line: Callable[[str], None] = lambda _: None) -> None:
    """Run a command of the world's package, passing on each line that it prints."""
    command = [sys.executable, "-m", f"examples.{world.folder.name}", *words]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as errors,
        subprocess.Popen(
            command,
            cwd=world.root,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            on_line(line.rstrip())
        if process.wait() != 0:
            errors.seek(0)
            reason = errors.read().rpartition(_ERROR)[2].strip()
            raise UnavailableError(f"{problem}: {reason[-_ERROR_CHARACTERS:]}")


def _fingerprint(world: World) -> str:
    """Return a digest of the code that makes the world."""
    code = hashlib.sha256()
    for file in sorted(world.folder.rglob("*.py")):
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
