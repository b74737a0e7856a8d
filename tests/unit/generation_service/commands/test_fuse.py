"""`loraretriever fuse`: a PEFT folder of the weighted sum, and its bad inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from peft import LoraConfig
from safetensors.torch import load_file
from typer.testing import CliRunner

from generation_service.commands.fuse import fuse
from infra.contract.errors import InvalidArgumentError
from tests.support.harness.generation_stack import tiny_adapter
from tests.support.harness.inspecting import SHAPE, run_inspect

app = typer.Typer()
app.command()(fuse)


def delta(folder: Path, module: str) -> torch.Tensor:
    tensors = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    scaling = config["lora_alpha"] / config["r"]
    key = f"base_model.model.{module}.lora_{{}}.weight"
    return scaling * tensors[key.format("B")] @ tensors[key.format("A")]


def test_concat_is_weighted_sum_and_can_be_inspected(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tiny_adapter(SHAPE, 1, rank=4).write(tmp_path / "first")
    second = tiny_adapter(SHAPE, 2, rank=3).write(tmp_path / "second")
    fused = tmp_path / "fused"
    arguments = [str(fused), f"{first}=0.5", str(second), "--base-model", str(base)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert (result.exit_code, "rank 7" in result.output) == (0, True)
    modules = LoraConfig.from_pretrained(str(fused)).target_modules
    assert modules
    for module in modules:
        torch.testing.assert_close(delta(fused, module), 0.5 * delta(first, module) + delta(second, module))
    status, report = run_inspect(capsys, fused, "--base-model", base)
    assert (status, report["rank"], report["problems"]) == (0, 7, [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["taken", "first"], "taken is not an empty folder"),
        (["fused", "first=much"], "'much' is not a weight; give PATH=0.5"),
        (["fused", "first=0"], "give at least one weight other than 0"),
        (["fused", "first", "--density", "0"], "must be above 0"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_adapter(SHAPE, 1).write(tmp_path / "first")
    tiny_adapter(SHAPE, 1).write(tmp_path / "taken")
    with pytest.raises(InvalidArgumentError, match=words):
        CliRunner().invoke(app, [*arguments, "--base-model", str(base)], catch_exceptions=False)
    assert not (tmp_path / "fused" / "adapter_config.json").exists()
