"""Validation of job specs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.answering.strategy import AnswerStrategy
from orchestrator.evaluation.data.files import expand_pattern
from orchestrator.evaluation.spec import DatasetSpec, EvaluatedStrategy, EvaluationSpec

SPEC = EvaluationSpec((DatasetSpec("clock", "clock.jsonl"),), (EvaluatedStrategy(AnswerStrategy.BASE),))


@pytest.mark.parametrize("uri", ["apps/", "apps/*.jsonl", "apps/*/test.jsonl"])
def test_folder_or_pattern_may_have_adapter_template(tmp_path: Path, uri: str) -> None:
    file = tmp_path / ("apps/gmail/test.jsonl" if "test" in uri else "apps/gmail.jsonl")
    file.parent.mkdir(parents=True)
    file.touch()
    for name, form, adapter in (("", "app_lora_{}", "app_lora_gmail"), ("mail", "{}", "gmail"), ("", "same", "same")):
        dataset = DatasetSpec(name, f"{tmp_path}/{uri}", form)
        assert dataset.names_adapter
        (expanded,) = expand_pattern(dataset, [tmp_path])
        assert (expanded.name, expanded.adapter_id) == ("mail.gmail" if name else "gmail", adapter)


@pytest.mark.parametrize("adapter_id", ["app_lora_{}", "{}"])
def test_single_file_has_adapter_without_template(adapter_id: str) -> None:
    with pytest.raises(InvalidArgumentError, match="adapter_id"):
        DatasetSpec("clock", "clock.jsonl", adapter_id)


def test_adapter_template_must_give_valid_ids() -> None:
    for form in ("app lora {}", "{}/x", "{name}"):
        with pytest.raises(InvalidArgumentError, match="adapter_id"):
            DatasetSpec("", "apps/", form)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("legacy_threshold", -0.1),
        ("legacy_threshold", 1.1),
        ("legacy_threshold", float("nan")),
        ("point_tolerance_px", -1),
        ("point_tolerance_px", float("inf")),
        ("point_tolerance_px", float("nan")),
    ],
)
def test_invalid_scoring_options_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{field}: "):
        replace(SPEC, **{field: value})


def test_spec_without_scoring_options_has_defaults() -> None:
    old = {
        name: value for name, value in SPEC.to_json().items() if name not in ("legacy_threshold", "point_tolerance_px")
    }
    assert EvaluationSpec.from_json(old) == SPEC
