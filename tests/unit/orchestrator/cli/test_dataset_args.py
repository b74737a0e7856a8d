"""Datasets as they are written on the command line, and the adapters trained for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from infra.contract.errors import InvalidArgumentError
from orchestrator.cli.dataset_args import AdapterLabels, dataset_specs, read_adapter_map
from orchestrator.evaluation.data.files import expand_pattern
from tests.support.harness.dataset_files import write_episodes


def test_folders_and_patterns_are_one_dataset_per_file(tmp_path: Path) -> None:
    for name in ("apps/gmail.jsonl", "apps/ebay.jsonl", "split/clock/test.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [spec.name for spec in dataset_specs([str(tmp_path / "apps"), f"s={tmp_path}/split/*/test.jsonl"])]
    assert names == ["ebay", "gmail", "s.clock"]
    (far,) = dataset_specs(["far/away/*.jsonl"])
    assert (far.name, far.uri) == ("", "far/away/*.jsonl")


def test_adapters_are_labelled_by_template_map_or_field(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{name}.jsonl") for name in ("gmail", "ebay")]
    mapping = tmp_path / "map.json"
    mapping.write_text('{"gmail": "mail"}')

    def adapters(labels: AdapterLabels) -> list[str]:
        return [spec.adapter_id for spec in dataset_specs(files, labels)]

    assert adapters(AdapterLabels(["app_lora_{}", "ebay=mine"])) == ["app_lora_gmail", "mine"]
    assert adapters(AdapterLabels(mapping=read_adapter_map(mapping))) == ["mail", ""]
    assert adapters(AdapterLabels(["app_lora_{}"], mapping=read_adapter_map(mapping))) == ["mail", "app_lora_ebay"]
    rows = dataset_specs(files, AdapterLabels(row_field="app", mapping=read_adapter_map(mapping)))
    assert {(spec.adapter_field, spec.adapter_of) for spec in rows} == {("app", (("gmail", "mail"),))}
    mapping.write_text("[]")
    with pytest.raises(InvalidArgumentError, match="must hold an object"):
        read_adapter_map(mapping)


@pytest.mark.parametrize("labels", [AdapterLabels(["app_{}"]), AdapterLabels(["{}"]), AdapterLabels(by_name=True)])
def test_template_labels_local_and_remote_files_alike(tmp_path: Path, labels: AdapterLabels) -> None:
    for name in ("gmail", "ebay"):
        (tmp_path / f"{name}.jsonl").touch()
    for pattern in ("*.jsonl", "./", "more=*.jsonl"):
        name, equals, path = pattern.rpartition("=")
        here = dataset_specs([f"{name}{equals}{tmp_path}/{path}"], labels)
        (elsewhere,) = dataset_specs([f"{name}{equals}no/such/{path}"], labels)
        found = expand_pattern(replace(elsewhere, uri=f"{tmp_path}/{path}"), [tmp_path])
        assert [(dataset.name, dataset.adapter_id) for dataset in here] == [
            (dataset.name, dataset.adapter_id) for dataset in found
        ]
        assert {dataset.adapter_id.removeprefix("app_") for dataset in here} == {"gmail", "ebay"}


@pytest.mark.parametrize(
    ("files", "labels", "message"),
    [
        (["far/*.jsonl"], AdapterLabels(["gmail=mail"]), "'gmail=mail' names no dataset; only the orchestrator knows"),
        (["far/*.jsonl"], AdapterLabels(["mail"]), r"the files of far/\*\.jsonl: give a template"),
        (["far/"], AdapterLabels(mapping={"gmail": "mail"}), "gmail names no dataset; only the orchestrator knows"),
        (
            ["x.jsonl"],
            AdapterLabels(mapping={"x": "a", "y": "b"}),
            "adapter_map: y names no dataset; the datasets are x",
        ),
        (
            ["x.jsonl", "y.jsonl"],
            AdapterLabels(["mail"]),
            "'mail' names no dataset; give DATASET=ADAPTER, with one of x, y",
        ),
    ],
)
def test_labels_of_unknown_datasets_are_refused(files: list[str], labels: AdapterLabels, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        dataset_specs(files, labels)


def test_local_dataset_keeps_its_adapter_next_to_remote_files() -> None:
    specs = dataset_specs(["x.jsonl", "far/*.jsonl"], AdapterLabels(["app_{}", "x=mine"], mapping={"x": "other"}))
    assert [spec.adapter_id for spec in specs] == ["mine", "app_{}"]


def test_adapter_field_excludes_other_labels() -> None:
    with pytest.raises(InvalidArgumentError, match="leave --adapter and --adapters-by-name out"):
        AdapterLabels(["app_{}"], row_field="app")


def test_datasets_are_named_by_file_folder_or_argument(tmp_path: Path) -> None:
    file = write_episodes(tmp_path / "gmail")
    specs = dataset_specs([str(file), f"mine={file}", "far/away/ebay.jsonl"], AdapterLabels(["mine=gmail"]), "app")
    assert [spec.name for spec in specs] == ["gmail", "mine", "ebay"]
    assert [spec.adapter_id for spec in specs] == ["", "gmail", ""]
    assert [spec.uri for spec in specs] == [str(file), str(file), "far/away/ebay.jsonl"]
    assert dataset_specs([str(file)], AdapterLabels(by_name=True))[0].adapter_id == "gmail"
    assert dataset_specs([str(file)], AdapterLabels(["other"]))[0].adapter_id == "other"
    with pytest.raises(InvalidArgumentError, match="names no dataset"):
        dataset_specs([str(file)], AdapterLabels(["gmial=gmail"]))
