"""What the words of `evaluate run` mean: datasets and strategies of a job."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError, NotFoundError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.cli import output as console
from orchestrator.evaluation.data.files import dataset_name, expand_pattern
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy

OUT_OF_DOMAIN = "-out-of-domain"
FUSION_PREFIX = f"{AnswerStrategy.FUSION.value}-"


@dataclass(frozen=True)
class AdapterLabels:
    """How the adapter trained for each row is known.

    `words` are "DATASET=ADAPTER", or a form such as "app_lora_{}" for all, with {} for the dataset's name (in a folder
    or a pattern the file's); `by_name`: it is called as that; `row_field`: the rows say it, by way of `mapping` where
    there is one; without a field `mapping` is by dataset. A word goes over the mapping, and both over a form.
    """

    words: Sequence[str] = ()
    by_name: bool = False
    row_field: str = ""
    mapping: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.row_field and (self.words or self.by_name):
            raise InvalidArgumentError(
                "adapter_field", "the rows say their adapters; leave --adapter and --adapters-by-name out"
            )

    @property
    def form(self) -> str:
        """What the adapter of a dataset is called where nothing names it, with {} for the name; empty: not known."""
        forms = [word for word in self.words if "{}" in word]
        return forms[-1] if forms else "{}" if self.by_name else ""

    def apply(self, datasets: Sequence[DatasetSpec]) -> tuple[DatasetSpec, ...]:
        """Return the datasets, which follow the form already, with what names their adapters one by one.

        Raises InvalidArgumentError for words and for keys of the mapping that name no dataset, and for those of
        datasets whose names the orchestrator alone knows.
        """
        if self.row_field:
            pairs = tuple(sorted(self.mapping.items()))
            return tuple(replace(each, adapter_field=self.row_field, adapter_of=pairs) for each in datasets)
        names = [dataset.name for dataset in datasets if not _is_elsewhere(dataset)]
        elsewhere = [dataset.uri for dataset in datasets if _is_elsewhere(dataset)]
        pairs = tuple(_pair(word, names, elsewhere) for word in self.words if "{}" not in word)
        unknown = [name for name in self.mapping if name not in names]
        if unknown:
            raise _no_dataset("adapter_map", ", ".join(unknown), names, elsewhere)
        adapter_of = {**self.mapping, **dict(pairs)}
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
    labels = labels or AdapterLabels()
    named = [dataset for file in files for dataset in _named(file, labels.form)]
    return labels.apply([replace(dataset, kind=kind) for dataset in named])


def files_of(data: Sequence[str] | None, test_data: Sequence[str] | None, gpu_id: str) -> list[str]:
    """Return what is to be evaluated on, by either of its names. Raises InvalidArgumentError when that is nothing."""
    files = [*(data or []), *(test_data or [])]
    if not files:
        raise InvalidArgumentError("", "name at least one JSONL file to evaluate on")
    if gpu_id:
        console.note(
            "--gpu-id has no effect on a job: the GPU is chosen where the model runs ('up', 'serve generation')"
        )
    return files


def strategies_of(words: Sequence[str]) -> tuple[EvaluatedStrategy, ...]:
    """Return the strategies that words such as "mixture", "fusion-concat" or "mixture-out-of-domain" name."""
    return tuple(_strategy(word) for given in words for word in given.split(",") if word)


def strategy_labels() -> tuple[str, ...]:
    """Return every word that `strategies_of` takes, in the order of the strategies."""
    labels = []
    for strategy in AnswerStrategy:
        methods = FusionMethod if strategy is AnswerStrategy.FUSION else (FusionMethod.LINEAR,)
        hides = (False, True) if strategy.retrieves or strategy.ignores_prompt else (False,)
        labels += [EvaluatedStrategy(strategy, method, each).label for each in hides for method in methods]
    return tuple(labels)


def complete_strategies(incomplete: str) -> list[str]:
    """Return what may stand where a shell's user has begun a strategy, or several divided by commas."""
    before, comma, begun = incomplete.rpartition(",")
    return [before + comma + label for label in strategy_labels() if label.startswith(begun)]


def absolute(path: str) -> str:
    """Return the whole path of a file or folder that is here; others are the orchestrator's to find."""
    return str(Path(path).resolve()) if path and Path(path).exists() else path


def _pair(word: str, names: Sequence[str], elsewhere: Sequence[str]) -> tuple[str, str]:
    name, equals, adapter = word.partition("=")
    if not equals and len(names) == 1 and not elsewhere:
        return names[0], word
    if not equals or name not in names:
        raise _no_dataset("adapter", repr(word), names, elsewhere)
    return name, adapter


def _no_dataset(option: str, said: str, names: Sequence[str], elsewhere: Sequence[str]) -> InvalidArgumentError:
    if elsewhere:
        unknown = f"the orchestrator alone knows what {', '.join(elsewhere)} holds"
        advice = f"{unknown}, so say a form such as --adapter 'app_lora_{{}}', or --adapter-field"
    else:
        known = ", ".join(names)
        advice = f"say DATASET=ADAPTER, of {known}" if option == "adapter" else f"there are {known}"
    return InvalidArgumentError(option, f"{said} names no dataset; {advice}")


def _is_elsewhere(dataset: DatasetSpec) -> bool:
    """Whether a dataset stands for files that are not on this machine, so that nobody here knows their names."""
    return dataset.is_pattern and not Path(dataset.uri).is_file()


def _named(given: str, form: str) -> list[DatasetSpec]:
    name, equals, path = given.partition("=")
    if not equals or Path(given).exists():
        name, path = "", given
    if Path(path).is_dir():
        path = f"{path.rstrip('/')}/"
    dataset = DatasetSpec(name or "unnamed", path)
    if not dataset.is_pattern or Path(path).is_file():
        name = name or dataset_name(Path(path))
        return [DatasetSpec(name, absolute(path), form.replace("{}", name))]
    dataset = replace(dataset, name=name, adapter_id=form)
    try:
        return expand_pattern(dataset, [Path("/")])
    except NotFoundError:
        return [dataset]


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
