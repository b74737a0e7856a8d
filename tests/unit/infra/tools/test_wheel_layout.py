"""The build hook rewrites imports and refuses what it cannot rewrite."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.tools.wheel_layout import LayoutError, modules_of, rewrite, stage

ROOT = Path(__file__).parents[4]
MODULES = frozenset({"infra", "infra.runtime", "infra.runtime.logs", "orchestrator", "orchestrator.jobs"})


@pytest.mark.parametrize(
    ("source", "rewritten"),
    [
        ("from infra.runtime import logs", "from loraretriever.infra.runtime import logs"),
        ("import orchestrator", "from loraretriever import orchestrator"),
        ("import infra.runtime.logs as logs", "from loraretriever.infra.runtime import logs as logs"),
        (
            "from orchestrator import (\n    jobs,\n    cli,\n)",
            "from loraretriever.orchestrator import (\n    jobs,\n    cli,\n)",
        ),
        (
            "def f():\n    from infra import a; é = 'ü'; from infra import b",
            "def f():\n    from loraretriever.infra import a; é = 'ü'; from loraretriever.infra import b",
        ),
        ("from loraretriever.v1 import prompt_pb2", "from loraretriever.v1 import prompt_pb2"),
        ("from . import infra", "from . import infra"),
        ("from infrared import x", "from infrared import x"),
        ("run(module_name('orchestrator.jobs'))", "run(module_name('orchestrator.jobs'))"),
        ('"""See infra.runtime.logs."""', '"""See infra.runtime.logs."""'),
        ("text = 'orchestrator.yaml and infra.runtimes'", "text = 'orchestrator.yaml and infra.runtimes'"),
    ],
)
def test_imports_move_below_namespace(source: str, rewritten: str) -> None:
    assert rewrite(source, "module.py", MODULES) == rewritten


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("import infra.runtime.logs", r"module.py:1: write 'from ... import ...'"),
        ("import os, infra", r"module.py:1: write 'from ... import ...'"),
        ("x = 1\nrun('python -m orchestrator.jobs')", r"module.py:2: the string names the module orchestrator.jobs"),
        ("files('infra.runtime')", r"use __name__, __package__ or module_name of infra.runtime.layout"),
    ],
)
def test_import_that_cannot_be_rewritten_fails_build(source: str, problem: str) -> None:
    with pytest.raises(LayoutError, match=problem):
        rewrite(source, "module.py", MODULES)


def test_checkout_is_staged_with_its_line_numbers(tmp_path: Path) -> None:
    stage(ROOT, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {"infra", "orchestrator", "v1"}
    assert not list(tmp_path.rglob("*.pyc"))
    for name in modules_of(tmp_path):
        relative = Path(*name.split("."))
        file = (
            relative.with_suffix(".py")
            if (tmp_path / relative.with_suffix(".py")).exists()
            else relative / "__init__.py"
        )
        original, staged = (ROOT / file).read_text(encoding="utf-8"), (tmp_path / file).read_text(encoding="utf-8")
        assert staged.count("\n") == original.count("\n"), file
        assert "from orchestrator" not in staged
