"""Measure the size and shape of the code: `python -m infra.tools.code_metrics [ROOT] [--json]`.

Reads the source only, so that a checkout can be measured without installing its packages.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

TIERS = ("generation_service", "orchestrator", "retrieval_service", "infra")
LONG_FUNCTION, TOO_LONG_FUNCTION = 40, 60
SMALL_MODULE = 70
_TIER_SETTINGS = {"TierSettings", "SettingsGroup"}
_SETTINGS_GROUP = re.compile(r"(Settings|Options|Defaults)$")
_PRAGMA = re.compile(r"#\s*(noqa|type:|pragma|hadolint|fmt:|ruff:)")


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    lines: int
    comments: int
    function_lengths: tuple[int, ...]
    settings: int
    parameters: int
    imports: frozenset[str]

    @property
    def package(self) -> str:
        """The dotted name of the package that holds the module."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True)
class TierMetrics:
    """Figures of one tier. Lines are counted per file, comments are `#` comments without pragmas."""

    files: int
    lines: int
    median_lines: float
    p90_lines: float
    max_lines: int
    functions_over_40: int
    functions_over_60: int
    comments: int

    @property
    def comment_share(self) -> float:
        """Comments per line."""
        return self.comments / self.lines if self.lines else 0.0


@dataclass(frozen=True)
class Metrics:
    """Figures of a checkout. Cycles are lists of names that import each other, directly or through the others."""

    tiers: Mapping[str, TierMetrics]
    package_cycles: Sequence[Sequence[str]] = field(default_factory=list)
    module_cycles: Sequence[Sequence[str]] = field(default_factory=list)
    one_importer_modules: Sequence[str] = field(default_factory=list)
    settings: int = 0
    cli_parameters: int = 0


def main() -> int:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description="Measure the size and shape of the code.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(), help="folder of the checkout (default: .)")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args()
    metrics = measure(options.root)
    sys.stdout.write(json.dumps(asdict(metrics), indent=2) + "\n" if options.json else as_text(metrics))
    return 0


def measure(root: Path, tiers: Sequence[str] = TIERS) -> Metrics:
    """Return the figures of the tiers below `root`."""
    files = {tier: sorted((root / tier).rglob("*.py")) for tier in tiers}
    names = {_name(file, root) for tier_files in files.values() for file in tier_files}
    modules = {tier: [_read(file, root, names) for file in tier_files] for tier, tier_files in files.items()}
    everything = [module for tier_modules in modules.values() for module in tier_modules]
    graph = {module.name: module.imports for module in everything}
    importers: dict[str, set[str]] = {}
    for module in everything:
        for imported in module.imports:
            importers.setdefault(imported, set()).add(module.name)
    small = [
        module.name
        for module in everything
        if module.lines < SMALL_MODULE and module.name not in _packages(names) and not module.name.endswith("__main__")
    ]
    return Metrics(
        tiers={tier: _tier(tier_modules) for tier, tier_modules in modules.items() if tier_modules},
        package_cycles=package_cycles(graph),
        module_cycles=cycles(graph),
        one_importer_modules=[name for name in small if len(importers.get(name, ())) == 1],
        settings=sum(module.settings for module in everything),
        cli_parameters=sum(module.parameters for module in everything),
    )


def cycles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node, sorted (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for successor in sorted(graph.get(node, ())):
            if successor not in index:
                visit(successor)
                low[node] = min(low[node], low[successor])
            elif successor in stack:
                low[node] = min(low[node], index[successor])
        if low[node] == index[node]:
            position = stack.index(node)
            component = sorted(stack[position:])
            del stack[position:]
            if len(component) > 1:
                components.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(components)


def package_cycles(graph: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the cycles among siblings, the modules and packages of one package, in which a package takes part.

    A package stands for every module below it.
    """
    packages = _packages(graph)
    siblings: dict[str, dict[str, set[str]]] = {}
    for importer, imports in graph.items():
        for imported in imports:
            parent, source, target = _split(importer, imported)
            if parent and source != target:
                siblings.setdefault(parent, {}).setdefault(source, set()).add(target)
    return [
        cycle
        for _, edges in sorted(siblings.items())
        for cycle in cycles({source: frozenset(targets) for source, targets in edges.items()})
        if packages & set(cycle)
    ]


def as_text(metrics: Metrics) -> str:
    """Return the figures as a Markdown table and a list."""
    lines = [
        "| tier | files | lines | median / p90 / max | functions >40 / >60 | `#` comments |",
        "|---|---|---|---|---|---|",
    ]
    for name, tier in metrics.tiers.items():
        lines.append(
            f"| {name} | {tier.files} | {tier.lines:,} | {tier.median_lines:.0f} / {tier.p90_lines:.0f} / "
            f"{tier.max_lines} | {tier.functions_over_40} / {tier.functions_over_60} | "
            f"{tier.comments} ({tier.comment_share:.1%}) |"
        )
    lines += [
        "",
        f"- package cycles: {len(metrics.package_cycles)}" + _listed(metrics.package_cycles),
        f"- module cycles: {len(metrics.module_cycles)}" + _listed(metrics.module_cycles),
        f"- modules below {SMALL_MODULE} lines with one importer: {len(metrics.one_importer_modules)}",
        f"- settings: {metrics.settings}, CLI parameters: {metrics.cli_parameters}",
    ]
    return "\n".join(lines) + "\n"


def _listed(cycles_found: Sequence[Sequence[str]]) -> str:
    return "".join(f"\n  - {' <-> '.join(cycle)}" for cycle in cycles_found)


def _tier(modules: Sequence[Module]) -> TierMetrics:
    sizes = [module.lines for module in modules if module.lines]
    lengths = [length for module in modules for length in module.function_lengths]
    return TierMetrics(
        files=len(modules),
        lines=sum(sizes),
        median_lines=statistics.median(sizes),
        p90_lines=statistics.quantiles(sizes, n=10, method="inclusive")[8] if len(sizes) > 1 else sizes[0],
        max_lines=max(sizes),
        functions_over_40=sum(length > LONG_FUNCTION for length in lengths),
        functions_over_60=sum(length > TOO_LONG_FUNCTION for length in lengths),
        comments=sum(module.comments for module in modules),
    )


def _read(file: Path, root: Path, names: set[str]) -> Module:
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text, str(file))
    name = _name(file, root)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Module(
        name=name,
        lines=len(text.splitlines()),
        comments=sum(_is_comment(token) for token in tokenize.generate_tokens(io.StringIO(text).readline)),
        function_lengths=tuple((node.end_lineno or node.lineno) - node.lineno + 1 for node in functions),
        settings=sum(_settings_fields(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)),
        parameters=sum(_is_cli_parameter(node) for node in ast.walk(tree)),
        imports=frozenset(_imports(tree, name, file.name == "__init__.py", names)) - {name},
    )


def _is_comment(token: tokenize.TokenInfo) -> bool:
    return token.type == tokenize.COMMENT and not _PRAGMA.match(token.string)


def _settings_fields(node: ast.ClassDef) -> int:
    """Return the settings of a tier, or of a group of them, that a class declares; a group itself is none."""
    if not _TIER_SETTINGS & {node.name, *map(ast.unparse, node.bases)}:
        return 0
    fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
    return sum(not _SETTINGS_GROUP.search(ast.unparse(statement.annotation)) for statement in fields)


def _is_cli_parameter(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Option", "typer.Argument")


def _imports(tree: ast.Module, name: str, is_package: bool, names: set[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                candidate = f"{module}.{alias.name}"
                target = candidate if candidate in names else module
                if target in names:
                    yield target


def _name(file: Path, root: Path) -> str:
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _packages(names: Mapping[str, object] | set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in names} - {""}


def _split(importer: str, imported: str) -> tuple[str, str, str]:
    """Return the nearest common package of two modules, and the child of it that holds each of them."""
    first, second = importer.split("."), imported.split(".")
    depth = 0
    while depth < min(len(first), len(second)) and first[depth] == second[depth]:
        depth += 1
    return ".".join(first[:depth]), ".".join(first[: depth + 1]), ".".join(second[: depth + 1])


if __name__ == "__main__":
    raise SystemExit(main())
