"""`loraretriever inspect` of base models, whole and broken: what it says, how it prints, and its exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation_service.commands.inspection import inspect_folder
from generation_service.models.base import LoadOptions
from generation_service.models.folder import read_config, stored_tensors
from generation_service.models.registry import load_base_model
from infra.contract.errors import CheckpointError, InvalidArgumentError
from orchestrator.cli.main import run
from tests.support.checkpoints.internvl2 import TinyInternVL
from tests.support.checkpoints.internvl_native import write_internvl_native
from tests.support.checkpoints.qwen2_vl import write_qwen2_vl
from tests.support.harness.generation_stack import tiny_adapter
from tests.support.harness.inspecting import SHAPE, WRITERS, run_inspect


@pytest.mark.parametrize("model_type", WRITERS)
def test_report_matches_loaded_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str) -> None:
    folder = WRITERS[model_type](tmp_path / "model", dtype=torch.bfloat16, shards=3)
    status, report = run_inspect(capsys, folder)
    loaded = load_base_model(folder, LoadOptions())
    described = loaded.description
    parameters = sum(parameter.numel() for parameter in loaded.module.parameters())
    targets = described.targets
    assert (status, report["kind"], report["supported"]) == (0, "base_model", True)
    assert (report["problems"], report["warnings"]) == ([], [])
    assert report["model_type"] == model_type
    assert (report["parameters"], report["stored_parameters"]) == (parameters, parameters)
    assert (report["dtype"], report["weight_files"]) == ("bfloat16", 3)
    assert (report["layers"], report["kv_heads"], report["head_dim"]) == (
        described.layers,
        described.kv_heads,
        described.head_dim,
    )
    assert report["max_positions"] == described.max_positions
    assert report["adaptable_modules"] == len(targets)
    assert report["adaptable_image_modules"] == sum(path.startswith(described.by_image) for path in targets)
    assert report["memory_bytes"] == {
        "weights": described.weight_bytes,
        "bank_512_ranks": 2 * 512 * sum(map(sum, targets.values())),
        "kv_cache_1000_tokens": 1000 * 2 * 2 * described.layers * described.kv_heads * described.head_dim,
    }
    assert report["tokenizer"]
    assert report["chat_template"]


def test_transformers_layout_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_internvl_native(tmp_path / "InternVL-hf", tmp_path / "original", TinyInternVL("qwen2"))
    status, report = run_inspect(capsys, folder)
    assert (status, report["model_type"], report["problems"]) == (0, "internvl", [])
    assert report["parameters"] == report["stored_parameters"]


@pytest.mark.parametrize(
    ("model_type", "limits"), [("qwen2_vl", {"max_pixels": 12845056}), ("internvl_chat", {"max_tiles": 12})]
)
def test_image_limits_are_those_of_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model_type: str, limits: dict[str, int]
) -> None:
    _, report = run_inspect(capsys, WRITERS[model_type](tmp_path / "model"))
    assert limits.items() <= report["image_limits"].items()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def more(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors") | {"extra": torch.ones(3)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def configured(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (configured(model_type="mamba"), "which this version does not serve; it serves"),
        (configured(quantization_config={"quant_method": "awq"}), "is quantised with AWQ"),
        (configured(hidden_size="wide"), "does not describe a Qwen2-VL model"),
        (without("model.safetensors"), "has neither model.safetensors nor"),
        (without("preprocessor_config.json"), "has no preprocessor_config.json"),
        (cut, "not a complete safetensors file"),
        (less, "download the folder again"),
        (more, "1 tensors in the files without a place in the model: extra"),
    ],
    ids=["family", "quantised", "config", "weights", "preprocessor", "cut", "tensor missing", "tensor too many"],
)
def test_unsupported_base_model_exits_1_with_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], problem: str
) -> None:
    folder = write_qwen2_vl(tmp_path / "model")
    spoil(folder)
    status, report = run_inspect(capsys, folder)
    assert (status, report["supported"]) == (1, False)
    assert problem in " ".join(report["problems"])


def test_config_is_reported_even_if_files_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_qwen2_vl(tmp_path / "model")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    status, report = run_inspect(capsys, folder)
    assert status == 1
    assert report["layers"] == SHAPE.layers
    assert "has no readable tokenizer" in report["problems"][0]


def test_report_is_printed_as_table(tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(base)]) == 0
    shown = capsys.readouterr().out
    assert "Qwen2-VL (qwen2_vl)" in shown
    assert "bf16 kv cache 1000 tokens" in shown
    adapter = tiny_adapter(SHAPE, 1, use_dora=True).write(tmp_path / "adapter")
    assert run(["inspect", str(adapter)]) == 1
    shown = capsys.readouterr().out
    assert "problem: DoRA (use_dora)" in shown
    assert "\x1b[" not in shown


def test_report_contains_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = tiny_adapter(SHAPE, 1, target_modules="\x1b[2J]all|.*", base_model_name_or_path="\x1b]0;title\x07model")
    assert run(["inspect", str(adapter.write(tmp_path / "adapter"))]) == 0
    assert not {"\x1b", "\x07"} & set(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["{tmp}/nowhere"], "PATH: there is no folder"),
        (["{tmp}/file"], "is a file; give the folder that contains it"),
        (["{tmp}"], "did you mean {tmp}/below/adapter?"),
        (["{tmp}/below/adapter", "--base-model", "{tmp}/nowhere"], "--base-model: there is no folder"),
        (["{base}", "--base-model", "{base}"], "the option applies to adapters"),
    ],
)
def test_wrong_path_exits_2_with_one_line(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    tiny_adapter(SHAPE, 1).write(tmp_path / "below" / "adapter")
    (tmp_path / "file").touch()
    places = {"tmp": str(tmp_path), "base": str(base)}
    assert run(["inspect", *(argument.format(**places) for argument in arguments)]) == 2
    output = capsys.readouterr()
    assert problem.format(**places) in output.err
    assert (output.out, output.err.count("\n")) == ("", 1)


def test_cli_without_torch_names_extra_and_imports_no_torch() -> None:
    load = "import sys; sys.modules['torch'] = None; from orchestrator.cli.main import run"
    code = f"{load}; sys.exit(run(['inspect', 'x']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "pip install 'loraretriever[generation]'" in done.stderr
    code = "import sys, orchestrator.cli.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("shards", [{"a": ["x"], "b": ["y"]}, {"a": "model.safetensors", "b": 3}, {"a": {}}])
def test_index_with_invalid_shard_names_is_refused(tmp_path: Path, shards: dict[str, object]) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(CheckpointError, match=r"index\.json names .*, which is not a file of the folder"):
        stored_tensors(tmp_path)


def test_deeply_nested_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_config(tmp_path)


def test_merged_model_beside_its_adapter_is_base_model_unless_base_is_given(
    tmp_path: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_qwen2_vl(tmp_path / "merged")
    tiny_adapter(SHAPE, 1).write(folder)
    assert run_inspect(capsys, folder)[1]["kind"] == "base_model"
    assert run_inspect(capsys, folder, "--base-model", base)[1]["kind"] == "adapter"


@pytest.mark.parametrize("kind", ["jina", "sentence-transformers"])
def test_embedder_is_named_as_one(tmp_path: Path, kind: str) -> None:
    folder = Path("examples/pocket_phone/checkpoints/jina_v4")
    if kind == "sentence-transformers":
        folder = write_qwen2_vl(tmp_path / "minilm", SHAPE)
        (folder / "modules.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidArgumentError, match=r"is an embedder, which .*--embedder-path"):
        inspect_folder(folder)
