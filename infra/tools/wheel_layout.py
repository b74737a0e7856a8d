"""Build the wheel with every package below `loraretriever`, so that `pip install` adds one top-level name.

A checkout has the service packages at its top (`orchestrator`, `infra`, ...). In the wheel they are
`loraretriever.orchestrator`, `loraretriever.infra`, ..., and the build rewrites their absolute imports accordingly.
Line numbers stay. The editable install keeps the layout of the checkout. See docs/decisions/0020.

This file runs inside isolated build environments: it imports the standard library and hatchling only.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NAMESPACE = "loraretriever"
PACKAGES = ("generation_service", "infra", "orchestrator", "retrieval_service")
# Used in a checkout only: images are built from one, and the tools read proto/ and the tests.
_LEFT_OUT = ("infra/docker", "infra/tools")
_PUBLIC = Path("proto") / NAMESPACE
_MODULE_PATH = re.compile(rf"\b(?:{'|'.join(PACKAGES)})(?:\.[a-z]\w*)+")


class LayoutError(Exception):
    """Source that would not work below the namespace: file, line and what to write instead."""


class WheelLayout(BuildHookInterface[Any]):
    """Hatch's build hook: stage the rewritten packages and add them to a standard wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the staged tree to a standard wheel; leave an editable one as it is."""
        if version != "standard":
            return
        self._stage = Path(tempfile.mkdtemp(prefix="loraretriever-wheel-"))
        stage(Path(self.root), self._stage)
        build_data["force_include"][str(self._stage)] = NAMESPACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the staged tree."""
        if version == "standard":
            shutil.rmtree(self._stage, ignore_errors=True)


def stage(root: Path, target: Path) -> None:
    """Write to `target` what the wheel holds below `loraretriever`, from the checkout `root`.

    Raises:
        LayoutError: a module imports or names another one in a form that cannot be rewritten.
    """
    modules = modules_of(root)
    for package in (*PACKAGES, str(_PUBLIC)):
        for source in sorted((root / package).rglob("*")):
            relative = source.relative_to(root)
            if not source.is_file() or "__pycache__" in relative.parts or str(relative).startswith(_LEFT_OUT):
                continue
            below = relative.relative_to(_PUBLIC) if relative.is_relative_to(_PUBLIC) else relative
            staged = target / below
            staged.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".py":
                text = rewrite(source.read_text(encoding="utf-8"), str(relative), modules)
                staged.write_text(text, encoding="utf-8")
            else:
                shutil.copyfile(source, staged)


def modules_of(root: Path) -> frozenset[str]:
    """Return the dotted names of every module and package that the wheel moves."""
    names = set()
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            names.add(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return frozenset(names)


def rewrite(text: str, file: str, modules: frozenset[str]) -> str:
    """Return the source of one module with the absolute imports of moved packages below `loraretriever`.

    `from infra.runtime import logs` becomes `from loraretriever.infra.runtime import logs`, and `import infra` becomes
    `from loraretriever import infra`.

    Raises:
        LayoutError: `import infra.runtime.logs` without a name, or a string that names a module outside
            `module_name(...)`.
    """
    tree = ast.parse(text, file)
    _check_strings(tree, file, modules)
    # (line, column, end column) of each replaced part and its new text; ast counts columns in UTF-8 bytes.
    edits = sorted(_import_edits(tree, file), reverse=True)
    lines = text.encode().splitlines(keepends=True)
    for line, column, end_column, replacement in edits:
        content = lines[line - 1]
        lines[line - 1] = content[:column] + replacement.encode() + content[end_column:]
    return b"".join(lines).decode()


def _import_edits(tree: ast.Module, file: str) -> Iterator[tuple[int, int, int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module and _is_moved(node.module):
            column = node.col_offset + len("from ")
            yield node.lineno, column, column + len(node.module), f"{NAMESPACE}.{node.module}"
        elif isinstance(node, ast.Import) and any(_is_moved(alias.name) for alias in node.names):
            alias = node.names[0]
            parent, _, name = f"{NAMESPACE}.{alias.name}".rpartition(".")
            if len(node.names) > 1 or (alias.asname is None and "." in alias.name):
                raise LayoutError(f"{file}:{node.lineno}: write 'from ... import ...' for a module of this project")
            bound = f" as {alias.asname}" if alias.asname else ""
            yield node.lineno, node.col_offset, node.end_col_offset or 0, f"from {parent} import {name}{bound}"


def _check_strings(tree: ast.Module, file: str, modules: frozenset[str]) -> None:
    """Raise LayoutError for a string that names a moved module and would name nothing in the wheel."""
    allowed = {id(text) for text in _docstrings(tree)} | {id(text) for text in _module_name_arguments(tree)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in allowed:
            continue
        for match in _MODULE_PATH.finditer(node.value):
            if match[0] in modules:
                raise LayoutError(
                    f"{file}:{node.lineno}: the string names the module {match[0]}, which is "
                    f"{NAMESPACE}.{match[0]} in the wheel; use __name__, __package__ or module_name of "
                    "infra.runtime.layout"
                )


def _docstrings(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            yield node.value


def _module_name_arguments(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "module_name":
            yield from node.args


def _is_moved(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES
