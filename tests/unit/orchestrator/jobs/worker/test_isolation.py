"""Work of one worker runs together, or alone."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.jobs.worker.isolation import Isolation, StoppedWaitingError


class Floor:
    """Notes who is in: `together` and `alone` enter and leave by name."""

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


async def test_who_is_alone_waits_for_the_others_and_lets_nobody_in() -> None:
    floor = Floor()
    tasks = [asyncio.create_task(floor.enter(name, alone=False)) for name in "ab"]
    await settled()
    tasks += [asyncio.create_task(floor.enter(name, alone=True)) for name in "xy"]
    await settled()
    tasks.append(asyncio.create_task(floor.enter("c", alone=False)))
    await settled()
    assert floor.inside == ["a", "b"]
    floor.leave.set()
    await asyncio.gather(*tasks)
    assert floor.seen[:2] == [["a"], ["a", "b"]]
    assert [seen for seen in floor.seen if {"x", "y"}.intersection(seen)] == [["x"], ["y"]]


@pytest.mark.parametrize("alone", [True, False])
async def test_who_gives_up_waiting_blocks_nobody(alone: bool) -> None:
    floor = Floor()
    inside = asyncio.create_task(floor.enter("a", alone=not alone))
    await settled()
    waiting = asyncio.create_task(floor.enter("x", alone=alone))
    await settled()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    floor.leave.set()
    await inside
    async with asyncio.timeout(5):
        await floor.enter("b", alone=False)
        await floor.enter("y", alone=True)
    assert floor.seen == [["a"], ["b"], ["y"]]


@pytest.mark.parametrize("alone", [True, False])
async def test_who_is_told_to_stop_waits_no_longer(alone: bool) -> None:
    floor = Floor()
    inside = asyncio.create_task(floor.enter("a", alone=not alone))
    await settled()
    waiting = asyncio.create_task(floor.enter("x", alone=alone))
    await settled()
    floor.stop.set()
    with pytest.raises(StoppedWaitingError):
        await waiting
    floor.leave.set()
    await inside
    assert floor.seen == [["a"]]
