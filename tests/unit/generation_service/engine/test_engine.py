"""The engine on a scripted model: every request gets exactly one end, and no request another's."""

from __future__ import annotations

import threading
import time

import pytest

from infra.contract.errors import (
    CancelledError,
    CheckpointError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.generation import FinishReason, Generation
from tests.support.harness.residency_harness import wait_until
from tests.support.harness.scripted_engine import RecordedEvents, ScriptedEngine


def answer_of(recorded: RecordedEvents) -> Generation:
    end = recorded.end()
    assert isinstance(end, Generation), end
    return end


def nothing_held(engine: ScriptedEngine) -> bool:
    return engine.engine.running == engine.engine.waiting == engine.loader.unreleased == 0


def test_answer_ends_at_end_of_sequence_token() -> None:
    with ScriptedEngine() as engine:
        request = engine.submit("hello")
        answer = answer_of(request)
        assert (answer.text, answer.finish_reason) == ("hello", FinishReason.STOP)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)
        assert request.deltas == "hello"
        assert nothing_held(engine)


def test_answer_ends_at_max_new_tokens() -> None:
    with ScriptedEngine() as engine:
        answer = answer_of(engine.submit("hello", max_new_tokens=3))
        assert (answer.text, answer.finish_reason) == ("hel", FinishReason.LENGTH)


def test_answer_ends_when_its_slot_is_full() -> None:
    with ScriptedEngine() as engine:
        answer = answer_of(engine.submit("x" * 100, length=30, max_new_tokens=99))
        assert (len(answer.text), answer.finish_reason) == (10, FinishReason.LENGTH)


def test_empty_answer_is_an_answer() -> None:
    with ScriptedEngine() as engine:
        answer = answer_of(engine.submit(""))
        assert (answer.text, answer.usage.completion_tokens) == ("", 0)


def test_stop_string_ends_answer_and_is_never_sent() -> None:
    with ScriptedEngine() as engine:
        request = engine.submit("one two. three", stop=("two. t", ". "))
        answer = answer_of(request)
        assert (answer.text, answer.finish_reason) == ("one two", FinishReason.STOP)
        assert request.deltas == answer.text


def test_waiting_requests_are_admitted_while_others_run() -> None:
    with ScriptedEngine(max_running=3) as engine:
        engine.runner.gated = True
        requests = [engine.submit("a" * 20), engine.submit("b" * 20), engine.submit("c"), engine.submit("d" * 3)]
        engine.runner.gate.release(1000)
        assert [answer_of(request).text for request in requests] == ["a" * 20, "b" * 20, "c", "ddd"]
        assert max(engine.runner.batches) == 3
        assert nothing_held(engine)


def test_answers_decode_in_one_batch() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        requests = [engine.submit(letter * 10) for letter in "abcd"]
        engine.runner.gate.release(1000)
        assert [answer_of(request).text for request in requests] == [letter * 10 for letter in "abcd"]
        assert engine.runner.batches.count(4) >= 8


def test_failed_forward_pass_fails_only_its_batch() -> None:
    with ScriptedEngine() as engine:
        engine.runner.failing_steps = {2}
        failed = engine.submit("hello").end()
        assert isinstance(failed, InternalError)
        assert "on fire" not in failed.message
        assert answer_of(engine.submit("again")).text == "again"
        assert nothing_held(engine)


def test_failed_decode_step_fails_only_requests_in_it() -> None:
    with ScriptedEngine(max_running=2) as engine:
        engine.runner.gated = True
        engine.runner.failing_steps = {4}
        requests = [engine.submit(letter * 10) for letter in "abc"]
        engine.runner.gate.release(1000)
        ends = [request.end() for request in requests]
        failed = [end for end in ends if isinstance(end, InternalError)]
        assert len(failed) in (1, 2)
        assert isinstance(ends[-1], Generation)
        assert ends[-1].text == "c" * 10
        assert nothing_held(engine)


def test_failed_prefill_fails_only_its_request() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        engine.runner.failing_answers = {"bad"}
        requests = [engine.submit("a" * 20), engine.submit("bad"), engine.submit("c" * 20)]
        engine.runner.gate.release(1000)
        first, failed, last = [request.end() for request in requests]
        assert isinstance(failed, InternalError)
        assert isinstance(first, Generation)
        assert isinstance(last, Generation)
        assert (first.text, last.text) == ("a" * 20, "c" * 20)
        assert nothing_held(engine)


def test_logits_that_are_not_finite_fail_only_their_request() -> None:
    with ScriptedEngine() as engine:
        engine.runner.poisoned = {"!"}
        engine.runner.gated = True
        bad, good = engine.submit("ab!c"), engine.submit("abcdefgh")
        engine.runner.gate.release(1000)
        end = bad.end()
        assert isinstance(end, InternalError)
        assert "finite" in end.message
        assert answer_of(good).text == "abcdefgh"


def test_cancelled_request_frees_its_slot() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        first, second = engine.submit("x" * 30), engine.submit("second")
        engine.runner.gate.release(2)
        first.next()
        engine.engine.cancel(first.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(first.end(), CancelledError)
        assert answer_of(second).text == "second"
        assert nothing_held(engine)


def test_cancelled_request_leaves_queue() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        first, second = engine.submit("first"), engine.submit("second")
        engine.engine.cancel(second.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(second.end(), CancelledError)
        assert answer_of(first).text == "first"


def test_cancelling_ended_request_does_nothing() -> None:
    with ScriptedEngine() as engine:
        request = engine.submit("done")
        answer_of(request)
        engine.engine.cancel(request.sequence)
        answer_of(engine.submit("next"))
        assert request.events.empty()


def test_deadline_ends_running_request() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        request = engine.submit("x" * 30)
        engine.runner.gate.release(2)
        request.next()
        request.expire()
        engine.runner.gate.release(1000)
        end = request.end()
        assert isinstance(end, DeadlineError)
        assert "tokens of the answer" in end.message
        assert nothing_held(engine)


def test_deadline_ends_request_whose_adapters_never_load() -> None:
    with ScriptedEngine() as engine:
        engine.loader.held_back = True
        end = engine.submit("x", deadline=time.monotonic() + 0.02).end()
        assert isinstance(end, DeadlineError)
        assert "queue" in end.message
        (ready,) = engine.loader.pending
        ready(engine.loader.lease())
        assert engine.loader.unreleased == 0


def test_request_waiting_for_adapters_does_not_delay_others() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.loader.held_back = True
        slow = engine.submit("slow")
        engine.loader.held_back = False
        assert answer_of(engine.submit("fast")).text == "fast"
        (ready,) = engine.loader.pending
        ready(engine.loader.lease())
        assert answer_of(slow).text == "slow"


def test_failed_load_fails_only_its_request() -> None:
    with ScriptedEngine() as engine:
        engine.loader.held_back = True
        failing = engine.submit("x")
        engine.loader.held_back = False
        engine.loader.pending[0](CheckpointError("half a file"))
        assert isinstance(failing.end(), CheckpointError)
        assert answer_of(engine.submit("next")).text == "next"


def test_decoding_continues_between_chunks_of_long_prompt() -> None:
    with ScriptedEngine(prefill_tokens=5) as engine:
        engine.runner.gated = True
        running = engine.submit("a" * 20, length=3)
        engine.runner.gate.release(2)
        running.next()
        running.next()
        long = engine.submit("long", length=30)
        engine.runner.gate.release(1000)
        assert (answer_of(running).text, answer_of(long).text) == ("a" * 20, "long")
        assert engine.runner.chunks == [3, 5, 5, 5, 5, 5, 5]
        assert "".join(engine.runner.calls).count("pp") == 0
        assert nothing_held(engine)


def test_short_prompts_are_prefilled_together_in_one_step() -> None:
    with ScriptedEngine(prefill_tokens=12) as engine:
        engine.runner.gated = True
        requests = [engine.submit("x" * 9, length=1), *(engine.submit(letter * 3, length=4) for letter in "abc")]
        engine.runner.gate.release(1000)
        assert [answer_of(request).text for request in requests] == ["x" * 9, "aaa", "bbb", "ccc"]
        assert "pp" in "".join(engine.runner.calls)  # Some may be admitted before the first step, some after.


def test_request_cancelled_between_prefill_chunks_frees_zeroed_slot() -> None:
    with ScriptedEngine(max_running=1, prefill_tokens=2) as engine:
        engine.runner.gated = True
        long, next_one = engine.submit("never", length=30), engine.submit("next", length=2)
        engine.runner.gate.release(2)
        wait_until(lambda: len(engine.runner.chunks) == 3)
        engine.engine.cancel(long.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(long.end(), CancelledError)
        assert answer_of(next_one).text == "next"
        assert engine.runner.chunks == [2, 2, 2, 2]
        assert engine.runner.cleared == [0], "a half-prefilled prompt may leave NaN in its slot"
        assert nothing_held(engine)


def test_deadline_during_prefill_reports_its_progress() -> None:
    with ScriptedEngine(max_running=1, prefill_tokens=2) as engine:
        engine.runner.gated = True
        long = engine.submit("never", length=30)
        engine.runner.gate.release(2)
        wait_until(lambda: len(engine.runner.chunks) == 3)
        long.expire()
        engine.runner.gate.release(1000)
        end = long.end()
        assert isinstance(end, DeadlineError)
        assert "6 of the prompt's 30 tokens" in end.message
        assert engine.runner.chunks == [2, 2, 2]
        assert nothing_held(engine)


def test_failed_chunk_fails_only_its_request() -> None:
    with ScriptedEngine(prefill_tokens=2) as engine:
        engine.runner.gated = True
        engine.runner.failing_answers = {"bad"}
        running, long = engine.submit("a" * 9, length=2), engine.submit("bad", length=20)
        engine.runner.gate.release(1000)
        assert isinstance(long.end(), InternalError)
        assert answer_of(running).text == "a" * 9
        assert nothing_held(engine)


def test_request_that_ends_while_its_load_starts_cancels_load() -> None:
    with ScriptedEngine() as engine:
        engine.loader.held_back = True
        engine.loader.before_request = lambda: wait_until(lambda: engine.engine.waiting == 0)
        request = engine.submit("x", deadline=time.monotonic())
        assert isinstance(request.end(), DeadlineError)
        (load,) = engine.loader.loads
        assert load.cancelled


def test_request_whose_load_cannot_start_leaves_queue() -> None:
    def failing() -> None:
        raise MemoryError

    with ScriptedEngine() as engine:
        engine.loader.before_request = failing
        with pytest.raises(MemoryError):
            engine.submit("x")
        wait_until(lambda: nothing_held(engine))
        engine.loader.before_request = lambda: None
        assert answer_of(engine.submit("next")).text == "next"


def test_full_queue_refuses_with_its_length() -> None:
    with ScriptedEngine(max_running=1, max_waiting=2) as engine:
        engine.loader.held_back = True
        waiting = [engine.submit("a"), engine.submit("b")]
        with pytest.raises(OverloadedError, match="2 requests wait"):
            engine.submit("c")
        with pytest.raises(OverloadedError):
            engine.engine.check_room()
        for ready in engine.loader.pending:
            ready(engine.loader.lease())
        assert [answer_of(request).text for request in waiting] == ["a", "b"]
        engine.loader.held_back = False
        assert answer_of(engine.submit("c")).text == "c"


def test_prompt_as_long_as_slot_is_refused() -> None:
    with ScriptedEngine() as engine:
        with pytest.raises(InvalidArgumentError, match=r"takes 40 tokens.*holds 40") as caught:
            engine.submit("x", length=40)
        assert caught.value.field == "prompt"
        assert answer_of(engine.submit("x" * 9, length=39)).finish_reason is FinishReason.LENGTH


def test_failing_listener_does_not_affect_other_requests() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        bad, good = engine.submit("abc"), engine.submit("defg")

        def broken(_: object) -> None:
            raise RuntimeError("the loop is closed")

        bad.sequence.listener = broken
        engine.runner.gate.release(1000)
        assert answer_of(good).text == "defg"
        assert answer_of(engine.submit("next")).text == "next"
        assert nothing_held(engine)


def test_close_ends_running_waiting_and_loading_requests() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        running, waiting = engine.submit("x" * 30), engine.submit("y")
        engine.loader.held_back = True
        loading = engine.submit("z")
        engine.runner.gate.release(2)
        running.next()
        closing = threading.Thread(target=engine.engine.close)
        closing.start()
        engine.runner.gate.release(1000)
        closing.join(timeout=20)
        assert all(isinstance(request.end(), UnavailableError) for request in (running, waiting, loading))
        assert nothing_held(engine)
        with pytest.raises(UnavailableError):
            engine.submit("late")


def test_timings_sum_to_at_most_elapsed_time() -> None:
    with ScriptedEngine() as engine:
        started = time.monotonic()
        timings = answer_of(engine.submit("hello")).timings
        spent = time.monotonic() - started
        assert min(timings.queue_s, timings.prefill_s, timings.decode_s) >= 0
        assert timings.queue_s + timings.prefill_s + timings.decode_s <= spent
