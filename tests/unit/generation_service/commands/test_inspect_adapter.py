"""`loraretriever inspect` of adapters, whole and broken: what it says, and its exit status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from generation_service.adapters.checkpoint.reader import content_revision
from generation_service.adapters.source import AdapterRoots, FolderResolver
from generation_service.models.base import LoadOptions
from generation_service.models.registry import load_base_model
from tests.support.checkpoints.internvl2 import TinyInternVL, language_linears, write_internvl2
from tests.support.checkpoints.peft_adapters import PREFIX, TinyAdapter
from tests.support.harness.generation_stack import language_shapes, tiny_adapter
from tests.support.harness.inspecting import SHAPE, run_inspect


def test_adapter_is_checked_against_given_base_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    adapter = tiny_adapter(SHAPE, 1, rank=4, vision=True, use_rslora=True, lora_dropout=0.05)
    folder = adapter.write(tmp_path / "adapter")
    for name in ("args.json", "additional_config.json", "training_args.bin"):
        (folder / name).write_text("{}")
    status, report = run_inspect(capsys, folder, "--base-model", base)
    targets = load_base_model(base, LoadOptions()).description.targets
    assert (status, report["kind"], report["supported"], report["problems"]) == (0, "adapter", True, [])
    assert (report["rank"], report["rank_range"], report["alpha"]) == (4, [4, 4], 2.0)
    assert report["scaling_range"] == [1.0, 1.0]
    assert report["tensors"] == report["bound_tensors"] == len(adapter.tensors)
    assert report["adapted_modules"] == len(targets)
    assert (report["rank_columns"], report["bank_bytes"]) == (4, 2 * 4 * sum(map(sum, targets.values())))
    assert report["bytes"] == 2 * sum(tensor.numel() for tensor in adapter.tensors.values())
    assert report["revision"] == content_revision(folder)
    assert report["short_revision"] == FolderResolver(AdapterRoots([tmp_path])).resolve("adapter", "").revision
    notes = " ".join(report["warnings"])
    assert "lora_dropout 0.05" in notes
    assert "pickles, which are never opened: training_args.bin" in notes
    assert "ignored files: additional_config.json, args.json" in notes


def test_base_model_folder_named_by_adapter_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    folder = tiny_adapter(SHAPE, 1, base_model_name_or_path=str(base)).write(tmp_path / "adapter")
    status, report = run_inspect(capsys, folder)
    assert (status, report["checked_against"], report["bound_tensors"]) == (0, str(base), report["tensors"])
    assert report["warnings"] == []


def test_binding_is_unknown_without_base_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, report = run_inspect(capsys, tiny_adapter(SHAPE, 1).write(tmp_path / "adapter"))
    assert (status, report["bound_tensors"], report["bank_bytes"]) == (0, None, None)
    assert "whether its tensors bind is unknown" in " ".join(report["warnings"])


def test_ranks_and_scalings_are_reported_as_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    adapter = tiny_adapter(SHAPE, 1, rank=4, rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 8})
    for path in language_shapes(SHAPE):
        if path.endswith("q_proj"):
            adapter.tensors[f"{PREFIX}{path}.lora_A.weight"] = adapter.a(path)[:2]
            adapter.tensors[f"{PREFIX}{path}.lora_B.weight"] = adapter.b(path)[:, :2]
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"), "--base-model", base)
    assert (status, report["rank"], report["rank_range"], report["scaling_range"]) == (0, 4, [2, 4], [0.5, 2.0])


def test_fused_internvl_adapter_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = TinyInternVL()
    folder = write_internvl2(tmp_path / "InternVL2-tiny", shape)
    adapter = TinyAdapter.random(language_linears(shape), base_model_name_or_path="OpenGVLab/InternVL2-tiny")
    assert any("wqkv" in key for key in adapter.tensors)
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"), "--base-model", folder)
    assert (status, report["bound_tensors"], report["problems"]) == (0, len(adapter.tensors), [])


def test_unbound_tensors_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path) -> None:
    adapter = tiny_adapter(SHAPE, 1)
    adapter.tensors |= TinyAdapter.random({"model.layers.9.mlp.up_proj": (64, 96)}).tensors
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"), "--base-model", base)
    assert (status, report["tensors"] - report["bound_tensors"]) == (1, 2)
    assert "nearest are model.language_model.layers" in " ".join(report["problems"])


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ],
)
def test_unsupported_adapter_features_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path, option: dict[str, Any], problem: str
) -> None:
    status, report = run_inspect(
        capsys, tiny_adapter(SHAPE, 1, **option).write(tmp_path / "adapter"), "--base-model", base
    )
    assert (status, report["supported"]) == (1, False)
    assert problem in " ".join(report["problems"])
    assert report["tensors"] > 0


def test_embedding_lora_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path) -> None:
    adapter = tiny_adapter(SHAPE, 1)
    adapter.tensors[f"{PREFIX}model.embed_tokens.lora_embedding_A"] = torch.ones(4, 8)
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"), "--base-model", base)
    assert status == 1
    assert "embedding LoRA is not applied" in " ".join(report["problems"])


def test_pickled_adapter_report_explains_conversion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_adapter(SHAPE, 1).write(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    status, report = run_inspect(capsys, folder)
    assert status == 1
    assert "convert it" in " ".join(report["problems"])


def test_adapter_of_another_model_name_needs_alias(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path
) -> None:
    folder = tiny_adapter(SHAPE, 1, base_model_name_or_path="Qwen/Qwen2-VL-other").write(tmp_path / "adapter")
    status, report = run_inspect(capsys, folder, "--base-model", base)
    assert (status, report["bound_tensors"]) == (1, None)
    (problem,) = report["problems"]
    assert problem.startswith("adapter 'adapter' was trained on Qwen2-VL-other; this server runs Qwen2-VL-tiny")
    assert problem.endswith("start the server with --model-aliases Qwen2-VL-other")
    status, report = run_inspect(capsys, folder, "--base-model", base, "--model-aliases", "Qwen2-VL-other")
    assert (status, report["problems"], report["bound_tensors"]) == (0, [], report["tensors"])


def test_rank_beyond_bank_names_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str], base: Path) -> None:
    folder = tiny_adapter(SHAPE, 1, rank=8).write(tmp_path / "adapter")
    status, report = run_inspect(capsys, folder, "--base-model", base, "--bank-ranks", 4)
    assert status == 1
    assert "has rank 8, and the adapter bank takes 4 at most" in report["problems"][0]
    assert "--bank-ranks" in report["problems"][0]
    assert run_inspect(capsys, folder, "--base-model", base, "--bank-ranks", 8)[0] == 0


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte"], ids=["too long", "with a NUL"])
def test_impossible_base_model_path_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    adapter = TinyAdapter.random(language_shapes(SHAPE), base_model_name_or_path=name)
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"))
    assert (status, report["supported"], report["checked_against"]) == (0, True, None)
    assert "give the folder of its base model" in " ".join(report["warnings"])


def test_unreadable_base_model_path_is_not_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    is_dir = Path.is_dir

    def refused(self: Path) -> bool:
        if str(self) == "/secret/model":
            raise PermissionError(13, "Permission denied", str(self))
        return is_dir(self)

    monkeypatch.setattr(Path, "is_dir", refused)
    adapter = TinyAdapter.random(language_shapes(SHAPE), base_model_name_or_path="/secret/model")
    status, report = run_inspect(capsys, adapter.write(tmp_path / "adapter"))
    assert (status, report["checked_against"]) == (0, None)
