"""Batching: shared passes, waiting callers, failures, deadlines, and parts that are embedded only once."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial

import numpy as np
import pytest
from prometheus_client import REGISTRY

from infra.contract.errors import (
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.prompt import ImagePart, Prompt
from infra.runtime.deadline import bind_deadline
from retrieval_service.embedders.base import FloatArray, normalise
from retrieval_service.embedders.batcher import BatchedEmbedder
from retrieval_service.embedders.part_embedder import batch_around
from retrieval_service.embedders.vector_cache import VectorCache
from retrieval_service.settings import BatchingOptions
from tests.support.harness.part_embedder import DIM, FakePartEmbedder, vector_of

UNCACHED = BatchingOptions(cache_bytes=0)


@pytest.fixture
def model() -> FakePartEmbedder:
    return FakePartEmbedder()


@pytest.fixture
def batched(model: FakePartEmbedder) -> Iterator[BatchedEmbedder]:
    with closing(BatchedEmbedder(model)) as embedder:
        yield embedder
        model.gate.set()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def image(name: str) -> ImagePart:
    return ImagePart(name.encode())


def texts(*names: str) -> list[Prompt]:
    return [Prompt.of(name) for name in names]


def until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < give_up, "the condition never became true"
        time.sleep(0.001)


def queued(embedder: BatchedEmbedder) -> int:
    return embedder.queue_length


def joined_parts() -> float:
    """Return how many parts joined pending work of an equal part, in all tests of this process."""
    values = (
        REGISTRY.get_sample_value("loraretriever_retrieval_parts_total", {"kind": kind, "source": "in_flight"})
        for kind in ("text", "image")
    )
    return sum(value or 0 for value in values)


def within(seconds: float | None, call: Callable[[], FloatArray]) -> FloatArray:
    bind_deadline(seconds)
    try:
        return call()
    finally:
        bind_deadline(None)


def held(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor, *prompts: Prompt
) -> list[Future[FloatArray]]:
    """Hold the embedder with one call, and queue one call per prompt behind it."""
    model.gate.clear()
    calls = [pool.submit(batched.embed, texts("first"))]
    until(lambda: model.passes == [["first"]])
    for count, prompt in enumerate(prompts, 1):
        calls.append(pool.submit(batched.embed, [prompt]))
        until(lambda count=count: queued(batched) == count)  # type: ignore[misc]
    return calls


def test_prompt_vector_is_weighted_sum_of_its_parts(batched: BatchedEmbedder) -> None:
    vectors = batched.embed([Prompt.of("a", [image("x"), image("y"), image("z")]), Prompt.of("b")])
    images = (vector_of("x").astype(np.float64) + vector_of("y")) / 2
    np.testing.assert_allclose(vectors[0], normalise(0.7 * vector_of("a").astype(np.float64) + 0.3 * images), atol=1e-7)
    np.testing.assert_allclose(vectors[1], vector_of("b"), atol=1e-7)
    assert batched.embed([]).shape == (0, DIM)


def test_idle_embedder_starts_at_once(model: FakePartEmbedder) -> None:
    with closing(BatchedEmbedder(model, BatchingOptions.model_construct(max_wait_s=60.0, cache_bytes=0))) as batched:
        started = time.monotonic()
        for turn in range(3):
            batched.embed(texts(f"t{turn}"))
        assert time.monotonic() - started < 60.0
    assert model.passes == [["t0"], ["t1"], ["t2"]]


def test_waiting_parts_of_similar_size_share_pass(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    waiting = ["s" * 3, "l" * 90, "m" * 4, "n" * 80, "o" * 5, "p" * 70, "q" * 60]
    calls = held(model, batched, pool, *texts(*waiting))
    model.gate.set()
    for call, name in zip(calls, ["first", *waiting], strict=True):
        np.testing.assert_allclose(call.result()[0], vector_of(name), atol=1e-7)
    assert [sorted(map(len, names)) for names in model.passes[1:]] == [[3, 4, 5, 60], [70, 80, 90]]


def test_texts_and_images_never_share_pass(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    calls = held(model, batched, pool, Prompt.of("a"), Prompt.of("", [image("i")]), Prompt.of("b"))
    model.gate.set()
    for call in calls:
        call.result()
    assert sorted(map(sorted, model.passes[1:])) == [["a", "b"], ["i"]]


def test_pass_waits_briefly_for_caller_that_is_still_preprocessing(
    model: FakePartEmbedder, pool: ThreadPoolExecutor
) -> None:
    with closing(BatchedEmbedder(model, BatchingOptions.model_construct(max_wait_s=60.0))) as batched:
        model.preparing.clear()
        slow = pool.submit(batched.embed, texts("slow to read"))
        until(lambda: batched.num_preparing == 1)
        quick = pool.submit(batched.embed, [Prompt.of("", [image("quick")])])
        until(lambda: queued(batched) == 1)
        assert model.passes == []
        model.preparing.set()
        slow.result()
        quick.result()


def test_long_call_does_not_delay_short_ones(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.gate.clear()
    long = pool.submit(batched.embed, texts(*(f"{index:03}" for index in range(30))))
    until(lambda: len(model.passes) == 1)
    short = pool.submit(batched.embed, texts("a short call " * 9))
    until(lambda: queued(batched) == 27)
    model.gate.set()
    short.result()
    long.result()
    assert "a short call" in str(model.passes[1:3])


def test_equal_parts_in_flight_are_embedded_once(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.gate.clear()
    joined_before = joined_parts()
    calls = [pool.submit(batched.embed, [Prompt.of("same", [image("screen")])]) for _ in range(16)]
    until(lambda: joined_parts() == joined_before + 2 * 15)
    model.gate.set()
    vectors = [call.result() for call in calls]
    assert sorted(model.embedded) == ["same", "screen"]
    for vector in vectors:
        np.testing.assert_array_equal(vector, vectors[0])


def test_known_screenshot_with_new_text_embeds_only_text(model: FakePartEmbedder, batched: BatchedEmbedder) -> None:
    before = REGISTRY.get_sample_value("loraretriever_retrieval_parts_total", {"kind": "image", "source": "cache"}) or 0
    for text in ("one", "two", "one"):
        batched.embed([Prompt.of(text, [image("screen")])])
    assert sorted(model.embedded) == ["one", "screen", "two"]
    hits = REGISTRY.get_sample_value("loraretriever_retrieval_parts_total", {"kind": "image", "source": "cache"})
    assert hits == before + 2


def test_text_and_image_of_same_bytes_have_different_digests(model: FakePartEmbedder, batched: BatchedEmbedder) -> None:
    batched.embed([Prompt.of("same"), Prompt.of("", [image("same")])])
    assert model.embedded == ["same", "same"]


def test_only_failing_part_of_batch_gets_error(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.broken["bad"] = RuntimeError("no such number")
    calls = held(model, batched, pool, *texts("good", "bad", "fine"))
    model.gate.set()
    for call, name in zip(calls, ["first", "good", "", "fine"], strict=True):
        if name:
            np.testing.assert_allclose(call.result()[0], vector_of(name), atol=1e-7)
        else:
            with pytest.raises(RuntimeError, match="no such number"):
                call.result()
    np.testing.assert_allclose(batched.embed(texts("next"))[0], vector_of("next"), atol=1e-7)
    with pytest.raises(RuntimeError):  # errors are not cached: the next call runs the part again
        batched.embed(texts("bad"))


def test_unavailable_embedder_fails_batch_without_repetition(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.broken["bad"] = UnavailableError("away")
    calls = held(model, batched, pool, *texts("good", "bad"))
    model.gate.set()
    for call in calls[1:]:
        with pytest.raises(UnavailableError, match="away"):
            call.result()
    assert len(model.passes) == 2


@pytest.mark.parametrize("wrong", [np.full((1, DIM), np.nan, np.float32), np.ones((1, DIM + 1), np.float32)])
def test_invalid_vectors_are_refused(wrong: FloatArray) -> None:
    class Wrong(FakePartEmbedder):
        def forward(self, inputs: object, remaining_s: object = None) -> FloatArray:
            return wrong

    with closing(BatchedEmbedder(Wrong())) as batched, pytest.raises(InternalError, match="the embedder returned"):
        batched.embed(texts("a"))


def test_unreadable_image_fails_only_its_own_call_with_field_path(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.unreadable.add("broken")
    bad = [Prompt.of("ok"), Prompt.of("<image>text", [image("fine"), image("broken")])]
    calls = held(model, batched, pool, Prompt.of("other"))
    failing = pool.submit(batched.embed, bad)
    with pytest.raises(InvalidArgumentError) as caught:
        failing.result()
    assert caught.value.field == "[1].messages[0].parts[1].image.data"
    model.gate.set()
    for call in calls:
        call.result()
    until(lambda: batched.num_in_flight == 0)
    assert sorted(model.embedded) == ["first", "other"]  # not the readable parts of the failed call


def test_unreadable_part_fails_every_waiting_call_with_its_own_path(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    model.unreadable.add("odd")
    model.preparing.clear()
    first = pool.submit(batched.embed, texts("odd"))
    until(lambda: batched.num_in_flight == 1)
    joined_before = joined_parts()
    second = pool.submit(batched.embed, texts("x", "odd"))
    until(lambda: joined_parts() == joined_before + 1)
    model.preparing.set()
    for call, path in ((first, "[0].messages"), (second, "[1].messages")):
        with pytest.raises(InvalidArgumentError) as caught:
            call.result()
        assert caught.value.field == path
    until(lambda: batched.num_in_flight == 0)


def test_expired_part_is_dropped_before_it_is_embedded(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    calls = held(model, batched, pool, Prompt.of("stays"))
    late = pool.submit(within, 0.02, lambda: batched.embed(texts("late")))
    with pytest.raises(DeadlineError, match="before the prompt was embedded"):
        late.result()
    model.gate.set()
    for call in calls:
        call.result()
    until(lambda: batched.num_in_flight == 0)
    assert model.embedded == ["first", "stays"]
    with pytest.raises(DeadlineError):
        within(0, lambda: batched.embed(texts("never")))


def test_part_stays_queued_while_any_caller_waits(
    model: FakePartEmbedder, batched: BatchedEmbedder, pool: ThreadPoolExecutor
) -> None:
    held(model, batched, pool)
    hasty = pool.submit(within, 0.05, lambda: batched.embed(texts("shared")))
    until(lambda: queued(batched) == 1)
    patient = pool.submit(batched.embed, texts("shared"))
    with pytest.raises(DeadlineError):
        hasty.result()
    model.gate.set()
    np.testing.assert_allclose(patient.result()[0], vector_of("shared"), atol=1e-7)


def test_pass_gets_longest_remaining_time_of_its_callers(model: FakePartEmbedder, batched: BatchedEmbedder) -> None:
    batched.embed(texts("a"))
    within(60, lambda: batched.embed(texts("b")))
    assert model.times[0] == math.inf
    assert 50 < model.times[1] <= 60


def test_full_queue_refuses_calls_and_reports_its_length(model: FakePartEmbedder, pool: ThreadPoolExecutor) -> None:
    with closing(BatchedEmbedder(model, BatchingOptions(max_queue=3))) as batched:
        calls = held(model, batched, pool, *texts("a", "b", "c"))
        with pytest.raises(OverloadedError, match="3 texts and images are waiting") as caught:
            batched.embed(texts("d"))
        assert caught.value.metadata == {"queue_length": "3"}
        joined = pool.submit(batched.embed, texts("a"))  # a part that is queued already takes no more room
        model.gate.set()
        for call in [*calls, joined]:
            call.result()
        assert batched.embed(texts("d", "e", "f", "g", "h")).shape == (
            5,
            DIM,
        )  # an empty queue accepts a call of any size


def test_close_refuses_waiting_parts(model: FakePartEmbedder, pool: ThreadPoolExecutor) -> None:
    batched = BatchedEmbedder(model)
    calls = held(model, batched, pool, Prompt.of("waits"))
    closing_it = pool.submit(batched.close)
    until(lambda: batched.is_closed)
    model.gate.set()
    closing_it.result()
    assert calls[0].result().shape == (1, DIM)
    with pytest.raises(UnavailableError, match="stopping"):
        calls[1].result()
    with pytest.raises(UnavailableError, match="stopping"):
        batched.embed(texts("more"))


def test_sixteen_threads_get_their_own_vectors_despite_failures_of_others() -> None:
    model = FakePartEmbedder(parallel=3)
    model.broken = {f"text {index}": RuntimeError(f"text {index}") for index in range(0, 40, 7)}
    model.unreadable = {f"text {index}" for index in range(3, 40, 11)}
    cache_of_ten = BatchingOptions(cache_bytes=10 * (DIM * 4 + 300))

    def work(batched: BatchedEmbedder, seed: int) -> list[bool]:
        """Return of each error whether it was the caller's own."""
        draw, own = random.Random(seed), []
        for _ in range(150):
            names = [f"text {draw.randrange(40)}" for _ in range(draw.randint(1, 6))]
            try:
                vectors = within(draw.choice([None, 30, 0.0005]), partial(batched.embed, texts(*names)))
            except DeadlineError:
                continue
            except (RuntimeError, InvalidArgumentError) as error:
                own.append(any(name in str(error) for name in names))
            else:
                np.testing.assert_allclose(vectors, [vector_of(name) for name in names], atol=1e-7)
        return own

    with closing(BatchedEmbedder(model, cache_of_ten)) as batched, ThreadPoolExecutor(16) as threads:
        errors = [own for of_thread in threads.map(partial(work, batched), range(16)) for own in of_thread]
        assert errors
        assert all(errors)
        until(lambda: batched.num_in_flight == 0)
        assert batched.num_preparing == 0
        used_bytes = REGISTRY.get_sample_value("loraretriever_retrieval_cache_bytes")
        assert used_bytes is not None
        assert 0 < used_bytes <= cache_of_ten.cache_bytes
    assert threading.active_count() < 20


def test_cache_evicts_least_recently_used() -> None:
    cache = VectorCache(3 * (DIM * 4 + 300))
    for name in "abc":
        cache.put(name.encode(), vector_of(name))
    assert cache.get(b"a") is not None
    cache.put(b"d", vector_of("d"))
    assert cache.get(b"b") is None
    assert len(cache) == 3
    kept = cache.get(b"a")
    assert kept is not None
    np.testing.assert_array_equal(kept, vector_of("a"))
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 1
    nothing = VectorCache(0)
    nothing.put(b"a", vector_of("a"))
    assert nothing.get(b"a") is None
    assert nothing.used_bytes == 0


def test_batch_has_least_padding_within_limits() -> None:
    sizes = [1, 2, 3, 50, 51, 52, 53, 400]
    assert list(batch_around(sizes, 0, FakePartEmbedder(3))) == [0, 1, 2]
    assert list(batch_around(sizes, 3, FakePartEmbedder(4))) == [3, 4, 5, 6]
    assert list(batch_around(sizes, 6, FakePartEmbedder(4))) == [3, 4, 5, 6]
    assert list(batch_around(sizes, 7, FakePartEmbedder(2))) == [6, 7]
    assert list(batch_around(sizes, 7, FakePartEmbedder(8, batch_tokens=500))) == [7]
    assert list(batch_around(sizes, 4, FakePartEmbedder(8, batch_tokens=160))) == [3, 4, 5]
    assert list(batch_around(sizes, 7, FakePartEmbedder(8, batch_tokens=10))) == [7]
    for at in range(len(sizes)):
        assert at in batch_around(sizes, at, FakePartEmbedder(3))
