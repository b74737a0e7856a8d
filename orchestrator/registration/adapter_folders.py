"""Find the adapters in a folder of PEFT folders, and the training data of each by its name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.contract.errors import InvalidArgumentError

_CONFIG = "adapter_config.json"
_SUFFIXES = (".jsonl", ".json")
#: Where an adapter's training data is looked for below the data folder, in this order.
_PLACES = ("{name}/train{suffix}", "{name}{suffix}", "{name}_train{suffix}")


@dataclass(frozen=True)
class FoundAdapter:
    """An adapter that could be registered: its id, its PEFT folder, and its training data."""

    name: str
    checkpoint: Path
    examples: Path


@dataclass(frozen=True)
class WithoutExamples:
    """An adapter whose training data was not found, and where it was looked for."""

    name: str
    problem: str


def find_adapters(folder: Path, data: Path) -> list[FoundAdapter | WithoutExamples]:
    """Return the adapters in the subfolders of `folder`, or `folder` itself if it is a PEFT folder, by name.

    An adapter is named by its folder. Its training data is DATA/NAME/train.jsonl, DATA/NAME.jsonl or
    DATA/NAME_train.jsonl, or .json instead, or the only such file in DATA/NAME. `data` may also be the file of a single
    adapter. Raises InvalidArgumentError if there is no adapter.
    """
    if (folder / _CONFIG).is_file():
        found = [folder.resolve()]
    else:
        found = sorted(child.resolve() for child in folder.iterdir() if (child / _CONFIG).is_file())
    if not found:
        raise InvalidArgumentError("name", _no_adapters(folder))
    if data.is_file():
        if len(found) > 1:
            raise InvalidArgumentError(
                "examples", f"{data} is one file for {len(found)} adapters; give the folder that holds a file of each"
            )
        return [FoundAdapter(found[0].name, found[0], data)]
    if not data.is_dir():
        raise InvalidArgumentError("examples", f"{data} does not exist; give the folder of the adapters' training data")
    return [_with_examples(checkpoint, data) for checkpoint in found]


def _with_examples(checkpoint: Path, data: Path) -> FoundAdapter | WithoutExamples:
    name = checkpoint.name
    places = [data / place.format(name=name, suffix=suffix) for place in _PLACES for suffix in _SUFFIXES]
    for place in places:
        if place.is_file():
            return FoundAdapter(name, checkpoint, place)
    own = sorted(file for suffix in _SUFFIXES for file in (data / name).glob(f"*{suffix}"))
    if len(own) == 1:
        return FoundAdapter(name, checkpoint, own[0])
    if own:
        return WithoutExamples(name, f"{data / name} holds {len(own)} data files, none of them named train.jsonl")
    return WithoutExamples(name, f"no training data: there is no {places[0]}, {places[2].name} or {places[4].name}")


def _no_adapters(folder: Path) -> str:
    deeper = next(iter(sorted(folder.glob(f"*/*/{_CONFIG}"))), None)
    if deeper is not None:
        return (
            f"no subfolder of {folder} holds an {_CONFIG}, but {deeper.parent} does; give the folder above the "
            "adapters, one subfolder each, named by its adapter"
        )
    return f"neither {folder} nor a subfolder of it holds an {_CONFIG}; give a PEFT folder, or a folder of them"
