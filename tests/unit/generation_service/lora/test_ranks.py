"""The rank allocator: first fit, joined gaps, and no column with two owners."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generation_service.lora.ranks import RankAllocator, RankRange
from infra.contract.errors import CapacityError


def test_ranges_are_contiguous_disjoint_and_first_fit() -> None:
    ranks = RankAllocator(10)
    first, second, third = ranks.acquire(3), ranks.acquire(4), ranks.acquire(3)
    assert [(r.start, r.stop) for r in (first, second, third)] == [(0, 3), (3, 7), (7, 10)]
    ranks.release(second)
    assert ranks.acquire(2).start == 3


def test_adjacent_gaps_are_merged() -> None:
    ranks = RankAllocator(10)
    held = [ranks.acquire(2) for _ in range(5)]
    for place in (1, 3, 2):
        ranks.release(held[place])
    assert ranks.largest_free == 6
    assert ranks.acquire(6).start == 2


def test_full_bank_error_names_need_and_limit() -> None:
    ranks = RankAllocator(8)
    ranks.acquire(3)
    middle = ranks.acquire(2)
    ranks.acquire(1)
    ranks.release(middle)
    with pytest.raises(CapacityError) as caught:
        ranks.acquire(3)
    assert "rank 3" in caught.value.message
    assert "4 of its 8 ranks are free, 2 of them contiguous" in caught.value.message
    assert caught.value.metadata == {"rank": "3", "bank_ranks": "8", "free_ranks": "4"}


def test_range_cannot_be_released_twice_even_if_successor_has_same_columns() -> None:
    ranks = RankAllocator(8)
    first = ranks.acquire(4)
    ranks.release(first)
    successor = ranks.acquire(4)
    assert (successor.start, successor.rank) == (first.start, first.rank)
    with pytest.raises(ValueError, match="not held"):
        ranks.release(first)
    ranks.check(successor)


@pytest.mark.parametrize("rank", [-1, -8])
def test_negative_rank_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        RankAllocator(8).acquire(rank)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 24), max_size=60), st.randoms(use_true_random=False))
def test_columns_are_never_shared_or_lost(needs: list[int], random: object) -> None:
    choice = random.randrange  # type: ignore[attr-defined]
    ranks = RankAllocator(32)
    held: list[RankRange] = []
    for need in needs:
        if held and choice(2):
            ranks.release(held.pop(choice(len(held))))
        before = ranks.largest_free
        try:
            held.append(ranks.acquire(need))
            assert need <= before
        except CapacityError:
            assert need > before
        columns = [column for owned in held for column in range(owned.start, owned.stop)]
        assert len(columns) == len(set(columns)) == 32 - ranks.free
    for owned in held:
        ranks.release(owned)
    assert ranks.free == ranks.largest_free == 32


def test_concurrent_acquisitions_never_share_column() -> None:
    ranks = RankAllocator(64)
    owners = [0] * 64
    clashes: list[RankRange] = []

    def churn() -> None:
        for _ in range(200):
            owned = ranks.acquire(8)
            for column in range(owned.start, owned.stop):
                owners[column] += 1
                if owners[column] != 1:
                    clashes.append(owned)
            for column in range(owned.start, owned.stop):
                owners[column] -= 1
            ranks.release(owned)

    threads = [threading.Thread(target=churn) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
    assert ranks.largest_free == 64
