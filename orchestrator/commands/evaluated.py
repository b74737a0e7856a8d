"""What the words of `evaluate run` mean: datasets and strategies of a job."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.contract.composition import FusionMethod
from infra.contract.errors import InvalidArgumentError
from orchestrator.evaluation.spec import AnswerStrategy, DatasetSpec, EvaluatedStrategy

OUT_OF_DOMAIN = "-out-of-domain"
SPLITS = ("train", "test", "validation", "dev")


def dataset_specs(
    files: Sequence[str], adapters: Sequence[str], adapters_by_name: bool, kind: str = ""
) -> tuple[DatasetSpec, ...]:
    """Return the datasets in `files`, each "FILE" or "NAME=FILE", with their adapters, "DATASET=ADAPTER" each.

    A file without a name is called as it is, or as its folder when it is called test.jsonl. With one dataset,
    "ADAPTER" alone is its adapter.
    """
    named = [_named(file) for file in files]
    adapter_of = {name: name for name, _ in named} if adapters_by_name else {}
    for pair in adapters:
        dataset, equals, adapter = pair.partition("=")
        if not equals and len(named) == 1:
            dataset, adapter = named[0][0], pair
        if dataset not in dict(named):
            known = ", ".join(name for name, _ in named)
            raise InvalidArgumentError("adapter", f"{pair!r} names no dataset; say DATASET=ADAPTER, of {known}")
        adapter_of[dataset] = adapter
    return tuple(DatasetSpec(name, file, adapter_of.get(name, ""), kind) for name, file in named)


def strategies_of(words: Sequence[str]) -> tuple[EvaluatedStrategy, ...]:
    """Return the strategies that words such as "mixture", "fusion-concat" or "mixture-out-of-domain" name."""
    return tuple(_strategy(word) for given in words for word in given.split(",") if word)


def _named(file: str) -> tuple[str, str]:
    name, equals, path = file.partition("=")
    if equals and not Path(file).exists():
        return name, _absolute(path)
    stem = Path(file).stem
    return (Path(file).resolve().parent.name if stem in SPLITS else stem), _absolute(file)


def _absolute(file: str) -> str:
    """Return the whole path of a file that is here; others are the orchestrator's to find."""
    return str(Path(file).resolve()) if Path(file).exists() else file


def _strategy(word: str) -> EvaluatedStrategy:
    plain = word.removesuffix(OUT_OF_DOMAIN)
    name, _, method = plain.partition("-")
    try:
        strategy = AnswerStrategy(name)
        fusion = FusionMethod(method) if method else FusionMethod.LINEAR
        if method and strategy is not AnswerStrategy.FUSION:
            raise ValueError(word)
    except ValueError:
        names = ", ".join(each.value for each in AnswerStrategy)
        methods = ", ".join(f"fusion-{each.value}" for each in FusionMethod)
        raise InvalidArgumentError("strategy", f"{word!r} is none of {names}, {methods}") from None
    return EvaluatedStrategy(strategy, fusion, exclude_own_adapter=word.endswith(OUT_OF_DOMAIN))
