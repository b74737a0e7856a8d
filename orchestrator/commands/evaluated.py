"""What the words of `evaluate run` mean: datasets and strategies of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.evaluation.dataset_files import expand, name_of
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy

OUT_OF_DOMAIN = "-out-of-domain"
FUSION_PREFIX = f"{AnswerStrategy.FUSION.value}-"


@dataclass(frozen=True)
class AdapterLabels:
    """How the adapter trained for each row is known.

    `words` are "DATASET=ADAPTER", or a form such as "app_lora_{}" for all; `by_name`: it is called as the dataset;
    `row_field`: the rows say it, by way of `mapping` where there is one; without a field `mapping` is by dataset.
    """

    words: Sequence[str] = ()
    by_name: bool = False
    row_field: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)

    def apply(self, datasets: Sequence[DatasetSpec]) -> tuple[DatasetSpec, ...]:
        """Return the datasets with their adapters. Raises InvalidArgumentError for words that name no dataset."""
        if self.row_field:
            pairs = tuple(sorted(self.mapping.items()))
            return tuple(replace(each, adapter_field=self.row_field, adapter_of=pairs) for each in datasets)
        names = [dataset.name for dataset in datasets]
        forms = [word for word in self.words if "{}" in word]
        adapter_of = {name: name for name in names} if self.by_name else {}
        adapter_of |= {name: form.replace("{}", name) for form in forms for name in names}
        adapter_of |= {name: adapter for name, adapter in self.mapping.items() if name in names}
        for word in self.words:
            if word not in forms:
                name, adapter = _pair(word, names)
                adapter_of[name] = adapter
        return tuple(replace(each, adapter_id=adapter_of.get(each.name, each.adapter_id)) for each in datasets)


def read_mapping(file: Path | None) -> dict[str, str]:
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

    A file may be a folder or a pattern: each JSONL file in it is a dataset. A file without a name is called as it is,
    or as its folder when it is called test.jsonl. What is not on this machine is the orchestrator's to find.
    """
    named = [dataset for file in files for dataset in _named(file)]
    return (labels or AdapterLabels()).apply([replace(dataset, kind=kind) for dataset in named])


def strategies_of(words: Sequence[str]) -> tuple[EvaluatedStrategy, ...]:
    """Return the strategies that words such as "mixture", "fusion-concat" or "mixture-out-of-domain" name."""
    return tuple(_strategy(word) for given in words for word in given.split(",") if word)


def _pair(word: str, names: Sequence[str]) -> tuple[str, str]:
    name, equals, adapter = word.partition("=")
    if not equals and len(names) == 1:
        return names[0], word
    if not equals or name not in names:
        raise InvalidArgumentError("adapter", f"{word!r} names no dataset; say DATASET=ADAPTER, of {', '.join(names)}")
    return name, adapter


def _named(given: str) -> list[DatasetSpec]:
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = "", given
    if Path(path).is_dir():
        path = f"{path.rstrip('/')}/"
    dataset = DatasetSpec(name or "unnamed", path)
    if not dataset.is_many or Path(path).is_file():
        return [DatasetSpec(name or name_of(Path(path)), _absolute(path))]
    try:
        return expand(replace(dataset, name=name), [Path("/")])
    except NotFoundError:
        return [replace(dataset, name=name)]


def _absolute(file: str) -> str:
    """Return the whole path of a file that is here; others are the orchestrator's to find."""
    return str(Path(file).resolve()) if Path(file).exists() else file


def _strategy(word: str) -> EvaluatedStrategy:
    plain = word.removesuffix(OUT_OF_DOMAIN)
    hides = word.endswith(OUT_OF_DOMAIN)
    try:
        if plain.startswith(FUSION_PREFIX):
            method = FusionMethod(plain.removeprefix(FUSION_PREFIX))
            return EvaluatedStrategy(AnswerStrategy.FUSION, method, exclude_own_adapter=hides)
        strategy = AnswerStrategy(plain)
    except ValueError:
        names = ", ".join(each.value for each in AnswerStrategy)
        methods = ", ".join(f"{FUSION_PREFIX}{each.value}" for each in FusionMethod)
        raise InvalidArgumentError("strategy", f"{word!r} is none of {names}, {methods}") from None
    return EvaluatedStrategy(strategy, exclude_own_adapter=hides)
