"""A thousand adapters through a bank for 64 of them, and arbitrary orders of leases, pins and failures."""

from __future__ import annotations

import random
from collections import deque
from contextlib import suppress

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_service.adapters.leases import BankLease
from infra.contract.composition import Fusion, FusionMethod, Mixture, WeightedAdapter
from infra.contract.errors import CapacityError, CheckpointError
from tests.support.harness.residency_harness import ResidencyHarness

KNOWN = 1000
NAMES = [f"r{1 + number % 3}-{number}" for number in range(KNOWN)]
RANKS = 64 * 2
LEASED = 12


def zipf(draw: random.Random) -> list[float]:
    """Return the popularity of each adapter: 1 / rank, the ranks assigned at random."""
    popularity = [1 / (1 + place) for place in range(KNOWN)]
    draw.shuffle(popularity)
    return popularity


def test_zipf_traffic_over_a_thousand_adapters_applies_the_right_ones_and_leaks_nothing() -> None:
    draw = random.Random(0)
    popularity = zipf(draw)
    bytes_each = (6 + 5) * 4 * 2
    harness = ResidencyHarness(ranks=RANKS, host_bytes=200 * bytes_each)
    x = torch.randn(1, 2, 6)
    leases: deque[BankLease] = deque()
    asked: set[str] = set()
    shares = 0
    for number in range(1500):
        names = list(dict.fromkeys(draw.choices(NAMES, popularity, k=draw.randint(1, 3))))
        adapters = tuple(WeightedAdapter(name, draw.random()) for name in names)
        composition = Fusion(adapters, FusionMethod.CONCAT) if draw.random() < 0.1 else Mixture(adapters)
        lease = harness.lease(composition)
        leases.append(lease)
        asked |= set(names)
        shares += len(names)
        if number % 5 == 0:
            chosen = draw.choice(leases)
            revisions = {share.adapter_id: share.revision for share in chosen.applied}
            added = harness.applied(chosen, x)
            if len(chosen.ranges) == len(chosen.applied):
                torch.testing.assert_close(added, harness.expected(Mixture(chosen.applied), revisions, x))
        assert harness.residency.ranks + harness.bank.free == RANKS
        assert harness.host_cache.bytes <= 200 * bytes_each
        if len(leases) > LEASED:
            leases.popleft().release()
    assert len(asked) > 400
    assert len(asked) < len(harness.disk.read) < shares / 2
    while leases:
        leases.pop().release()
    assert harness.residency.leased_ranks == 0
    assert len(harness.names) > 40


ACTIONS = ["mixture", "concat", "pin", "unpin", "break", "repair", "replace"]
NAMED = ["r1-a", "r2-b", "r3-c", "r5-d", "r8-e", "r13-f"]
scripts = st.lists(
    st.tuples(st.sampled_from(ACTIONS), st.lists(st.sampled_from(NAMED), min_size=1, max_size=3, unique=True)),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(scripts)
def test_any_order_of_requests_pins_and_failures_accounts_for_every_rank(script: list[tuple[str, list[str]]]) -> None:
    harness = ResidencyHarness(ranks=16, host_bytes=1000)
    for action, names in script:
        match action:
            case "mixture" | "concat":
                request_and_compare(harness, action, tuple(WeightedAdapter(name, 0.5) for name in names))
            case "pin":
                with suppress(CapacityError, CheckpointError):
                    harness.pin(names[0])
            case "unpin" if names[0] in harness.names:
                harness.residency.unpin(names[0])
            case "break":
                harness.disk.broken.add(names[0])
            case "repair":
                harness.disk.broken.clear()
            case "replace":
                harness.disk.revision = str(int(harness.disk.revision) + 1)
        assert harness.residency.leased_ranks == 0
        assert harness.residency.ranks + harness.bank.free == 16
        assert sum(resident.rank for resident in harness.residency.residents() if resident.pinned) <= 8
    harness.residency.close()


def request_and_compare(harness: ResidencyHarness, kind: str, adapters: tuple[WeightedAdapter, ...]) -> None:
    asked = Mixture(adapters)
    composition = asked if kind == "mixture" else Fusion(adapters, FusionMethod.CONCAT)
    try:
        outcome = harness.request(composition)[1].get(timeout=20)
    except CapacityError:
        return
    if not isinstance(outcome, BankLease):
        assert isinstance(outcome, CapacityError | CheckpointError)
        return
    x = torch.ones(1, 1, 6)
    revisions = {share.adapter_id: share.revision for share in outcome.applied}
    torch.testing.assert_close(harness.applied(outcome, x), harness.expected(asked, revisions, x), rtol=1e-4, atol=1e-5)
    outcome.release()
