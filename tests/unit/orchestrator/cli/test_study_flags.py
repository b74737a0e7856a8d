"""Every flag of the study is an option of `study`, or is answered by what replaces it."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from orchestrator.cli.commands.study import study
from orchestrator.cli.main import run
from orchestrator.cli.options.binding import option_names
from orchestrator.cli.study_flags import ENVIRONMENT, KEPT, REPLACED

GUIDE = (Path(__file__).parents[4] / "docs" / "from_the_study.md").read_text(encoding="utf-8")


def underscored(flag: str) -> str:
    return "--" + flag.removeprefix("--").replace("-", "_")


def test_kept_flags_are_options_of_study() -> None:
    options = set(option_names(list(inspect.signature(study).parameters.values())).values())
    assert set(KEPT) <= options


@pytest.mark.parametrize("flag", sorted(set(REPLACED) - set(KEPT)))
def test_flag_without_counterpart_is_answered_by_its_replacement(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["study", "--test_data", "x"], ["evaluate", "run", "x"], ["ask", "hi"]):
        assert run([*command, underscored(flag), "x"]) == 2
        assert REPLACED[flag] in capsys.readouterr().err


@pytest.mark.parametrize("flag", sorted({*REPLACED, *KEPT}))
def test_guide_names_every_flag(flag: str) -> None:
    assert f"`{underscored(flag)}`" in GUIDE.partition("## Flags")[2].partition("## Environment")[0]


def test_guide_names_every_variable() -> None:
    assert all(f"| `{name}` |" in GUIDE for name in ENVIRONMENT)


def test_guide_gives_pixels_of_inference_and_of_training() -> None:
    (line,) = re.findall(r"\| `MAX_PIXELS` \|.*", GUIDE)
    assert "100000 at inference, 602112 in training" in line


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--lora_type", "apps"], "'apps' is not one of 'all', 'app', 'category'"),
        (["--merge_method", "mix"], "'mix' is not one of 'mixture', 'fusion'"),
        (["--top_k", "0"], "--top-k: must be at least 1"),
        (["--num_samples", "0"], "--num-samples: must be at least 1"),
        (["--max_images", "0"], "--max-images: must be at least 1"),
    ],
)
def test_wrong_value_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], problem: str
) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text("{}", encoding="utf-8")
    assert run(["study", "--test_data", str(file), *words]) == 2
    assert problem in capsys.readouterr().err


def test_max_num_that_is_no_number_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAX_NUM", "many")
    assert run(["study", "--test_data", str(tmp_path)]) == 2
    assert "MAX_NUM is 'many'" in capsys.readouterr().err


def test_variable_without_effect_is_mentioned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JINA_MAX_PIXELS", "200000")
    run(["study", "--test_data", str(tmp_path), "--top_k", "0"])
    assert "JINA_MAX_PIXELS has no effect here" in capsys.readouterr().err
