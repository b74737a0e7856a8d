"""The wheel of this checkout, installed in a virtual environment that sees this environment's dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class InstalledWheel:
    """A virtual environment with the wheel."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.folder / "bin" / "python"

    @property
    def command(self) -> Path:
        """The console script `loraretriever`."""
        return self.folder / "bin" / "loraretriever"

    @property
    def packages(self) -> Path:
        """The folder that holds what the wheel installed, and nothing else but the list of dependencies."""
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, arguments: Sequence[str | Path], timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
        """Run a program outside the checkout, without its packages on the path."""
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return subprocess.run(
            list(map(str, arguments)),
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )


def build_wheel(folder: Path) -> Path:
    """Build the wheel into `folder` and return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def install_wheel(wheel: Path, folder: Path) -> InstalledWheel:
    """Install `wheel` without dependencies in a new environment below `folder`.

    The site-packages of this process become importable there through a .pth file. Python does not process the .pth
    files of such a folder, so the editable install of the checkout stays invisible.
    """
    environment = folder / "venv"
    venv.create(environment, with_pip=False, symlinks=True)
    installed = InstalledWheel(environment)
    pip = [sys.executable, "-m", "pip", "--python", str(installed.python), "install", "--quiet"]
    command = [*pip, "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    dependencies = [entry for entry in sys.path if entry.endswith("site-packages")]
    (installed.packages / "dependencies.pth").write_text("\n".join(dependencies) + "\n", encoding="utf-8")
    return installed
