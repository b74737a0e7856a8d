"""A thousand adapters through a bank for sixty-four, and any order of leases, pins and failures."""

from __future__ import annotations

import random
from collections import deque

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_service.adapters.leases import BankLease
from infra.contract.composition import Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CapacityError, CheckpointError
from tests.support.harness.residency_harness import House

KNOWN = 1000
NAMES = [f"r{1 + number % 3}-{number}" for number in range(KNOWN)]
RANKS = 64 * 2
LEASED = 12


def zipf(draw: random.Random) -> list[float]:
    """Return how popular each adapter is: 1 / place, the places dealt at random."""
    popularity = [1 / (1 + place) for place in range(KNOWN)]
    draw.shuffle(popularity)
    return popularity


def test_zipf_traffic_over_a_thousand_adapters_gets_the_right_adapters_and_leaks_nothing() -> None:
    draw = random.Random(0)
    popularity = zipf(draw)
    bytes_each = (6 + 5) * 4 * 2
    house = House(ranks=RANKS, host_bytes=200 * bytes_each)
    x = torch.randn(1, 2, 6)
    leases: deque[BankLease] = deque()
    asked: set[str] = set()
    shares = 0
    for number in range(1500):
        names = list(dict.fromkeys(draw.choices(NAMES, popularity, k=draw.randint(1, 3))))
        adapters = tuple(WeightedAdapter(name, draw.random()) for name in names)
        composition = Fusion(adapters, FusionMethod.CONCAT) if draw.random() < 0.1 else Mixture(adapters)
        lease = house.lease(composition)
        leases.append(lease)
        asked |= set(names)
        shares += len(names)
        if number % 5 == 0:
            chosen = draw.choice(leases)
            revisions = {share.adapter_id: share.revision for share in chosen.applied}
            added = house.applied(chosen, x)
            if len(chosen.ranges) == len(chosen.applied):
                torch.testing.assert_close(added, house.expected(Mixture(chosen.applied), revisions, x))
        assert house.residency.ranks + house.bank.free == RANKS
        assert house.store.bytes <= 200 * bytes_each
        if len(leases) > LEASED:
            leases.popleft().release()
    assert len(asked) > 400
    assert len(asked) < len(house.disk.read) < shares / 2
    while leases:
        leases.pop().release()
    assert house.residency.leased_ranks == 0
    assert len(house.names) > 40


ACTIONS = ["mixture", "concat", "pin", "unpin", "break", "mend", "replace"]
NAMED = ["r1-a", "r2-b", "r3-c", "r5-d", "r8-e", "r13-f"]
scripts = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.lists(st.sampled_from(NAMED), min_size=1, max_size=3, unique=True)),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(scripts)
def test_any_order_of_requests_pins_and_failures_keeps_the_books(script: list[tuple[str, list[str]]]) -> None:
    house = House(ranks=16, host_bytes=1000)
    for action, names in script:
        match action:
            case "mixture" | "concat":
                ask_and_compare(house, action, tuple(WeightedAdapter(name, 0.5) for name in names))
            case "pin":
                error = house.residency.pin(names[0]).exception(timeout=20)
                assert error is None or isinstance(error, CapacityError | CheckpointError)
            case "unpin" if names[0] in house.names:
                house.residency.unpin(names[0])
            case "break":
                house.disk.broken.add(names[0])
            case "mend":
                house.disk.broken.clear()
            case "replace":
                house.disk.revision = str(int(house.disk.revision) + 1)
        assert house.residency.leased_ranks == 0
        assert house.residency.ranks + house.bank.free == 16
        assert sum(resident.rank for resident in house.residency.residents() if resident.pinned) <= 8
    house.residency.close()


def ask_and_compare(house: House, kind: str, adapters: tuple[WeightedAdapter, ...]) -> None:
    asked = Mixture(adapters)
    composition = asked if kind == "mixture" else Fusion(adapters, FusionMethod.CONCAT)
    outcome = house.ask(composition)[1].get(timeout=20)
    if not isinstance(outcome, BankLease):
        assert isinstance(outcome, CapacityError | CheckpointError)
        return
    x = torch.ones(1, 1, 6)
    revisions = {share.adapter_id: share.revision for share in outcome.applied}
    torch.testing.assert_close(house.applied(outcome, x), house.expected(asked, revisions, x), rtol=1e-4, atol=1e-5)
    outcome.release()
