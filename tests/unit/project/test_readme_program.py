"""The README's Python programs, run as they are written."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.support.harness.images import picture
from tests.support.servers.answer_server import answer_server
from tests.support.servers.gateway import gateway_server
from tests.support.servers.tiers import fake_tiers

ROOT = Path(__file__).parents[3]


def program_with(words: str) -> str:
    """Return the only Python program of the README that contains `words`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
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


async def test_grpc_program_prints_the_answer_and_its_adapters(tmp_path: Path) -> None:
    picture(8, 8).save(tmp_path / "screen.png")
    async with fake_tiers() as tiers, answer_server(tiers) as address:
        program = program_with("127.0.0.1:50053").replace("127.0.0.1:50053", address)
        lines = await output_of(program, tmp_path)
    assert len(lines) == 2
    assert lines[0].startswith("mixture(")
    assert lines[0].endswith("saw 1: Order the running shoes.")
    assert lines[1].count(": 0.33") == 3


async def test_openai_program_prints_the_answer_and_its_adapters(tmp_path: Path) -> None:
    async with fake_tiers() as tiers, gateway_server(tiers) as address:
        program = program_with("127.0.0.1:50080").replace("127.0.0.1:50080", address)
        lines = await output_of(program, tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("mixture(")
    assert lines[0].count("'weight': 0.5") == 2
