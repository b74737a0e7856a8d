"""`import loraretriever`: complete, typed and light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import loraretriever
import pytest

from infra.contract import errors

SOURCE = Path(loraretriever.__file__)
EXTRAS = (
    "celery",
    "fastapi",
    "numpy",
    "qdrant_client",
    "redis",
    "rich",
    "safetensors",
    "torch",
    "transformers",
    "typer",
)
"""Top-level packages of the extras that an installation without extras lacks."""


def run(code: str, *arguments: str, without: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter in which the packages `without` cannot be imported."""
    blocked = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    command = [sys.executable, "-c", blocked + code, *arguments]
    path = {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, env=path, capture_output=True, text=True, check=False)


def test_import_alone_loads_no_other_package() -> None:
    code = "import loraretriever\nprint({'grpc', 'google', 'infra', 'pydantic'} & set(sys.modules))"
    assert run(code).stdout == "set()\n"


def test_contract_types_load_no_grpc() -> None:
    code = "from loraretriever import Prompt, LoraRetrieverError, Mixture\nprint('grpc' in sys.modules)"
    assert run(code).stdout == "False\n"


def test_every_public_name_resolves_without_extras() -> None:
    code = "from loraretriever import *\nprint(AnswerClient.__name__, EvaluationClient.__name__, Prompt.__name__)"
    done = run(code, without=EXTRAS)
    assert done.stdout == "AnswerClient EvaluationClient Prompt\n", done.stderr


def test_names_for_type_checkers_are_the_public_names() -> None:
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom) and node.module]
    typed = {
        alias.name: node.module
        for node in imports
        for alias in node.names
        if node.module and not node.module.startswith(("collections", "types"))
    }
    assert {*typed, "__version__"} == set(loraretriever.__all__)
    for name, module in typed.items():
        assert getattr(loraretriever, name) is getattr(sys.modules[module], name)


def test_every_error_of_the_contract_is_public() -> None:
    tree = [errors.LoraRetrieverError]
    for cls in tree:
        tree += [child for child in cls.__subclasses__() if child.__module__ == errors.__name__]
    assert {cls.__name__ for cls in tree} <= set(loraretriever.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'loraretriever' has no attribute 'Prompts'"):
        _ = loraretriever.Prompts  # type: ignore[attr-defined]
    assert "Prompt" in dir(loraretriever)


def test_package_is_marked_as_typed() -> None:
    assert SOURCE.with_name("py.typed").exists()


def test_version_needs_no_extra() -> None:
    done = run("from loraretriever.__main__ import main\nmain()", "--version", without=EXTRAS)
    assert (done.returncode, done.stdout) == (0, f"loraretriever {loraretriever.__version__}\n"), done.stderr


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        (EXTRAS, ["--help"], "orchestrator"),
        (EXTRAS, ["ask", "hello"], "orchestrator"),
        (("rich",), ["evaluate", "status"], "orchestrator"),
        (("torch", "transformers"), ["serve", "generation"], "generation"),
        (("qdrant_client",), ["serve", "retrieval"], "retrieval"),
        (("torch", "transformers"), ["inspect", "folder"], "generation"),
    ],
)
def test_missing_package_is_one_sentence_that_names_the_extra(
    missing: tuple[str, ...], arguments: list[str], extra: str
) -> None:
    done = run("from loraretriever.__main__ import main\nmain()", *arguments, without=missing)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert f"pip install 'loraretriever[{extra}]'" in done.stderr
