"""Blocks of one worker that run together or alone."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError


class Blocks:
    """Records which named blocks run, and those that ran at the same time."""

    def __init__(self) -> None:
        self.isolation = Isolation()
        self.inside: list[str] = []
        self.seen: list[list[str]] = []
        self.leave = asyncio.Event()
        self.stop = asyncio.Event()

    async def enter(self, name: str, *, alone: bool) -> None:
        async with self.isolation.alone(self.stop) if alone else self.isolation.together(self.stop):
            self.inside.append(name)
            self.seen.append(sorted(self.inside))
            try:
                await self.leave.wait()
            finally:
                self.inside.remove(name)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_lone_block_waits_for_others_and_keeps_new_ones_out() -> None:
    blocks = Blocks()
    tasks = [asyncio.create_task(blocks.enter(name, alone=False)) for name in "ab"]
    await settled()
    tasks += [asyncio.create_task(blocks.enter(name, alone=True)) for name in "xy"]
    await settled()
    tasks.append(asyncio.create_task(blocks.enter("c", alone=False)))
    await settled()
    assert blocks.inside == ["a", "b"]
    blocks.leave.set()
    await asyncio.gather(*tasks)
    assert blocks.seen[:2] == [["a"], ["a", "b"]]
    assert [seen for seen in blocks.seen if {"x", "y"}.intersection(seen)] == [["x"], ["y"]]


@pytest.mark.parametrize("alone", [True, False])
async def test_cancelled_wait_blocks_no_other(alone: bool) -> None:
    blocks = Blocks()
    inside = asyncio.create_task(blocks.enter("a", alone=not alone))
    await settled()
    waiting = asyncio.create_task(blocks.enter("x", alone=alone))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    blocks.leave.set()
    await inside
    async with asyncio.timeout(5):
        await blocks.enter("b", alone=False)
        await blocks.enter("y", alone=True)
    assert blocks.seen == [["a"], ["b"], ["y"]]


@pytest.mark.parametrize("alone", [True, False])
async def test_stop_ends_wait(alone: bool) -> None:
    blocks = Blocks()
    inside = asyncio.create_task(blocks.enter("a", alone=not alone))
    await settled()
    waiting = asyncio.create_task(blocks.enter("x", alone=alone))
    await settled()
    blocks.stop.set()
    with pytest.raises(StoppedWaitingError):
        await waiting
    blocks.leave.set()
    await inside
    assert blocks.seen == [["a"]]
