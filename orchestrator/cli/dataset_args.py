"""Datasets as they are written on the command line, and the adapters trained for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.evaluation.data.files import dataset_name, expand_pattern
from orchestrator.evaluation.spec import DatasetSpec


@dataclass(frozen=True)
class AdapterLabels:
    """Where the adapter trained for each row comes from.

    `words` are "DATASET=ADAPTER", or a template for all datasets such as "app_lora_{}", with {} for the dataset's name
    (in a folder or a pattern the file's). `by_name`: the template "{}". `row_field`: the field of a row that names the
    adapter, through `mapping` where there is one; without a field, `mapping` is by dataset. Words override the
    mapping, and both override a template.
    """

    words: Sequence[str] = ()
    by_name: bool = False
    row_field: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.row_field and (self.words or self.by_name):
            raise InvalidArgumentError(
                "adapter_field", "the rows name their adapters; leave --adapter and --adapters-by-name out"
            )

    @property
    def template(self) -> str:
        """The adapter id of a dataset that nothing else labels, with {} for its name; empty: unknown."""
        templates = [word for word in self.words if "{}" in word]
        return templates[-1] if templates else "{}" if self.by_name else ""

    def apply(self, datasets: Sequence[DatasetSpec]) -> tuple[DatasetSpec, ...]:
        """Return the datasets, labelled by the template already, with the labels of single datasets.

        Raises:
            InvalidArgumentError: a word or a key of the mapping names no dataset, or one whose files are not on this
                machine, so that only the orchestrator knows the names.
        """
        if self.row_field:
            pairs = tuple(sorted(self.mapping.items()))
            return tuple(replace(dataset, adapter_field=self.row_field, adapter_of=pairs) for dataset in datasets)
        names = [dataset.name for dataset in datasets if not _is_remote(dataset)]
        remote = [dataset.uri for dataset in datasets if _is_remote(dataset)]
        pairs = tuple(_label(word, names, remote) for word in self.words if "{}" not in word)
        unknown = [name for name in self.mapping if name not in names]
        if unknown:
            raise _no_dataset("adapter_map", ", ".join(unknown), names, remote)
        adapter_of = {**self.mapping, **dict(pairs)}
        return tuple(
            replace(dataset, adapter_id=adapter_of.get(dataset.name, dataset.adapter_id)) for dataset in datasets
        )


def read_adapter_map(file: Path | None) -> dict[str, str]:
    """Return the JSON object of a mapping file; empty without one. Raises InvalidArgumentError."""
    if file is None:
        return {}
    try:
        mapping = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidArgumentError("adapter_map", f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise InvalidArgumentError("adapter_map", f'{file} must hold an object such as {{"gmail": "app_lora_gmail"}}')
    return mapping


def dataset_specs(files: Sequence[str], labels: AdapterLabels | None = None, kind: str = "") -> tuple[DatasetSpec, ...]:
    """Return the datasets in `files`, each "FILE" or "NAME=FILE", with their adapters.

    A folder or a pattern stands for one dataset per JSONL file in it. A file without a name is named after itself, or
    after its folder when it is called test.jsonl. Paths that are not on this machine are left to the orchestrator.
    """
    labels = labels or AdapterLabels()
    datasets = [dataset for file in files for dataset in _datasets_in(file, labels.template)]
    return labels.apply([replace(dataset, kind=kind) for dataset in datasets])


def local_path(path: str) -> str:
    """Return the absolute path of a file or folder on this machine; another path is left to the orchestrator."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _label(word: str, names: Sequence[str], remote: Sequence[str]) -> tuple[str, str]:
    name, equals, adapter = word.partition("=")
    if not equals and len(names) == 1 and not remote:
        return names[0], word
    if not equals or name not in names:
        raise _no_dataset("adapter", repr(word), names, remote)
    return name, adapter


def _no_dataset(option: str, label: str, names: Sequence[str], remote: Sequence[str]) -> InvalidArgumentError:
    if remote:
        advice = (
            f"only the orchestrator knows the files of {', '.join(remote)}: give a template such as "
            "--adapter 'app_lora_{}', or --adapter-field"
        )
    else:
        known = ", ".join(names)
        advice = f"give DATASET=ADAPTER, with one of {known}" if option == "adapter" else f"the datasets are {known}"
    return InvalidArgumentError(option, f"{label} names no dataset; {advice}")


def _is_remote(dataset: DatasetSpec) -> bool:
    """Return whether a dataset stands for files that are not on this machine, whose names are unknown here."""
    return dataset.is_pattern and not Path(dataset.uri).is_file()


def _datasets_in(argument: str, template: str) -> list[DatasetSpec]:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        name, path = "", argument
    if Path(path).is_dir():
        path = f"{path.rstrip('/')}/"
    dataset = DatasetSpec(name or "unnamed", path)
    if not dataset.is_pattern or Path(path).is_file():
        name = name or dataset_name(Path(path))
        return [DatasetSpec(name, local_path(path), template.replace("{}", name))]
    dataset = replace(dataset, name=name, adapter_id=template)
    try:
        return expand_pattern(dataset, [Path("/")])
    except NotFoundError:
        return [dataset]
