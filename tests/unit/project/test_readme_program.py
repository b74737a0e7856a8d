"""The Python programs of the README and of docs/python_client.md, run as they are written."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

from loraretriever import AsyncClient

from infra.contract import errors
from tests.support.harness.images import picture
from tests.support.servers.gateway import gateway_server
from tests.support.servers.retrieval_server import retrieval_service
from tests.support.servers.tiers import fake_tiers

ROOT = Path(__file__).parents[3]


def program_with(words: str, file: str = "README.md") -> str:
    """Return the only Python program of a document that contains `words`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / file).read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (block for block in blocks if words in block)
    return str(program)


async def output_of(program: str, folder: Path) -> list[str]:
    """Run a program in a folder and return the lines that it prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program),
        cwd=folder,
        env={"PYTHONPATH": ":".join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, problems = await process.communicate()
    assert process.returncode == 0, problems.decode()
    return output.decode().splitlines()


async def test_client_program_prints_the_answer_and_its_adapters(tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "screen.png")
    async with fake_tiers() as tiers, gateway_server(tiers) as address:
        program = program_with("loraretriever import Client").replace("127.0.0.1:50080", address)
        lines = await output_of(program, tmp_path)
    assert len(lines) == 2
    assert lines[0].startswith("mixture(")
    assert lines[0].endswith("saw 1: Order the running shoes.")
    assert lines[1].count(": 0.33") == 3


async def test_openai_program_prints_the_answer_and_its_adapters(tmp_path: Path) -> None:
    async with fake_tiers() as tiers, gateway_server(tiers) as address:
        program = program_with("import OpenAI").replace("127.0.0.1:50080", address)
        lines = await output_of(program, tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("mixture(")
    assert lines[0].count("'weight': 0.5") == 2


async def test_program_of_the_client_document_runs(tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "screen.png")
    with retrieval_service(tmp_path / "catalogue") as service:
        async with fake_tiers() as tiers, gateway_server(replace(tiers, retrieval_target=service.address)) as address:
            async with AsyncClient(f"http://{address}") as client:
                await client.adapters.add("boots", "adapters/boots", ["Order the running boots."])
            program = program_with("import Client", "docs/python_client.md").replace("127.0.0.1:50080", address)
            lines = await output_of(program, tmp_path)
    assert lines[0].startswith("mixture(boots*1.00) saw 1: Order the running shoes.")
    assert "AdapterShare(id='boots', weight=1.0" in lines[0]
    assert lines[-1].count("adapter_id='shoes'") == 2


def test_client_document_shows_every_error_below_its_parent() -> None:
    text = (ROOT / "docs" / "python_client.md").read_text(encoding="utf-8")
    documented: dict[str, str] = {}
    parents: list[str] = []
    for indent, name in re.findall(r"^([│├└─ ]*)(\w+Error)\b", text, re.MULTILINE):
        parents = [*parents[: len(indent) // 4], name]
        documented[name] = parents[-2] if len(parents) > 1 else "Exception"
    assert documented == {
        name: cls.__base__.__name__
        for name, cls in vars(errors).items()
        if isinstance(cls, type) and issubclass(cls, errors.LoraRetrieverError)
    }
