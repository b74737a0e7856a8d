"""The README's Python program, run as it is written."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from tests.support.harness.images import picture
from tests.support.servers.answer_server import answer_server
from tests.support.servers.tiers import fake_tiers

ROOT = Path(__file__).parents[3]


async def test_readme_program_prints_the_answer_and_its_adapters(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    picture(8, 8).save(tmp_path / "screen.png")
    async with fake_tiers() as tiers, answer_server(tiers) as address:
        program = block[1].replace("127.0.0.1:50053", address)
        assert program != block[1]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            cwd=tmp_path,
            env={"PYTHONPATH": ":".join(sys.path)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, problems = await process.communicate()
    lines = output.decode().splitlines()
    assert len(lines) == 2, problems.decode()
    assert lines[0].startswith("mixture(")
    assert lines[0].endswith("saw 1: Order the running shoes.")
    assert lines[1].count(": 0.33") == 3
