"""The built wheel: one top-level name, every module importable, and the whole system runs from it."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.support.harness.cli_process import assert_nothing_runs_in
from tests.support.harness.installed_wheel import ROOT, InstalledWheel, build_wheel, install_wheel

pytestmark = pytest.mark.timeout(300)

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
import loraretriever
failed = {}
names = [module.name for module in pkgutil.walk_packages(loraretriever.__path__, "loraretriever.")]
for name in names:
    if name.endswith(("__main__", "triton_kernels")):
        continue
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = repr(error)
flat = [name for name in sys.modules if name.partition(".")[0] in ("infra", "orchestrator", "generation_service")]
print(len(names), failed, flat)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> InstalledWheel:
    return install_wheel(wheel, tmp_path_factory.mktemp("installed"))


def test_only_top_level_name_is_loraretriever(wheel: Path, installed: InstalledWheel) -> None:
    names = {entry.partition("/")[0] for entry in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"loraretriever"}
    added = {path.name for path in installed.packages.iterdir() if not path.name.endswith((".dist-info", ".pth"))}
    assert added == {"loraretriever"}


def test_two_builds_are_identical(wheel: Path, tmp_path: Path) -> None:
    assert build_wheel(tmp_path).read_bytes() == wheel.read_bytes()


def test_wheel_is_typed_and_holds_data_files(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "loraretriever/py.typed" in names
    assert "loraretriever/orchestrator/evaluation/report/summary.schema.json" in names
    assert not any(name.startswith(("loraretriever/infra/docker", "loraretriever/infra/tools")) for name in names)


def test_version_is_printed(installed: InstalledWheel) -> None:
    done = installed.run([installed.command, "--version"])
    assert (done.returncode, done.stdout) == (0, "loraretriever 0.1.0\n"), done.stderr


def test_every_module_imports_below_the_namespace(installed: InstalledWheel) -> None:
    done = installed.run([installed.python, "-c", IMPORT_EVERYTHING])
    count, _, problems = done.stdout.partition(" ")
    assert problems.strip() == "{} []", done.stderr
    assert int(count) > 200


@pytest.mark.parametrize(
    "tier", ["retrieval_service", "generation_service", "orchestrator", "orchestrator.jobs.worker"]
)
def test_each_tier_runs_as_a_module(installed: InstalledWheel, tier: str) -> None:
    done = installed.run([installed.python, "-m", f"loraretriever.{tier}", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--address" in done.stdout


def test_tiers_add_their_commands(installed: InstalledWheel) -> None:
    shown = installed.run([installed.command, "--help"]).stdout
    assert "inspect" in shown
    assert "retrieval" in shown


def test_serve_starts_a_tier_by_its_name_in_the_wheel(installed: InstalledWheel) -> None:
    done = installed.run([installed.command, "serve", "orchestrator", "--help"])
    assert done.returncode == 0, done.stderr
    assert "--redis-url" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_runs_from_the_wheel(installed: InstalledWheel, tmp_path: Path) -> None:
    world, work_dir = ROOT / "examples" / "pocket_phone", tmp_path / "demo"
    words = ["--world", str(world), "--work-dir", str(work_dir), "--datasets", "adidas", "--episodes", "1", "--json"]
    done = installed.run([installed.command, "demo", *words], timeout_s=580)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_nothing_runs_in(work_dir)
    result = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert result["answers"][0]["retrieved"][0]["adapter_id"] == "adidas"
    assert result["summary"]["failed_samples"] == 0
    assert list(work_dir.glob("evaluations/*/report.html"))
