"""The figures of a small tree."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.tools.code_metrics import Metrics, as_text, cycles, measure, package_cycles

TREE = {
    "app/__init__.py": "",
    "app/settings.py": "class App(TierSettings):\n    port: int = 1\n    host: str = ''\n    server: ServerOptions\n",
    "app/front/__init__.py": '"""Front."""\n',
    "app/front/page.py": "from app.back.store import load\n\n# A reason.\nx = 1  # noqa: E501\n",
    "app/front/flags.py": "import typer\n\na = typer.Option(help='a')\nb = typer.Argument()\n",
    "app/back/__init__.py": '"""Back."""\n',
    "app/back/store.py": "def load():\n    from ..front import flags\n" + "    x = 1\n" * 39,
    "app/back/big.py": "import app.settings\n\n\nasync def run():\n" + "    x = 1\n" * 60 + "\n" * 20,
}


@pytest.fixture
def metrics(tmp_path: Path) -> Metrics:
    for name, text in TREE.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return measure(tmp_path, ["app"])


def test_sizes_leave_empty_files_out(metrics: Metrics) -> None:
    tier = metrics.tiers["app"]
    assert (tier.files, tier.lines, tier.median_lines, tier.max_lines) == (8, 139, 4, 84)


def test_functions_are_counted_by_length(metrics: Metrics) -> None:
    tier = metrics.tiers["app"]
    assert (tier.functions_over_40, tier.functions_over_60) == (2, 1)


def test_pragmas_are_no_comments(metrics: Metrics) -> None:
    assert metrics.tiers["app"].comments == 1


def test_packages_that_import_each_other_are_cycle_without_module_cycle(metrics: Metrics) -> None:
    assert metrics.package_cycles == [["app.back", "app.front"]]
    assert metrics.module_cycles == []


def test_one_importer_modules_are_small(metrics: Metrics) -> None:
    assert metrics.one_importer_modules == ["app.back.store", "app.front.flags", "app.settings"]


def test_settings_and_parameters_are_counted(metrics: Metrics) -> None:
    assert (metrics.settings, metrics.cli_parameters) == (2, 2)


def test_text_names_members_of_cycle(metrics: Metrics) -> None:
    text = as_text(metrics)
    assert "| app | 8 | 139 | 4 / " in text
    assert "app.back <-> app.front" in text


def test_cycle_of_three_is_one_component() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("a"), "d": frozenset("a")}
    assert cycles(graph) == [["a", "b", "c"]]


def test_package_and_sibling_module_are_cycle() -> None:
    graph = {"app.page": frozenset({"app.data.spec"}), "app.data.spec": frozenset({"app.page"})}
    assert package_cycles(graph) == [["app.data", "app.page"]]
    assert package_cycles({"app.a": frozenset({"app.b"}), "app.b": frozenset({"app.a"})}) == []
