"""The engine's promises, on a scripted model: everyone gets exactly one end, and nobody another's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from generation_service.adapters.tickets import Ticket
from infra.contract.composition import Mixture, WeightedAdapter
from infra.contract.errors import (
    CancelledError,
    CheckpointError,
    DeadlineError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from infra.contract.generation import FinishReason, Generation
from tests.support.harness.scripted_engine import Heard, ScriptedEngine


def answered(heard: Heard) -> Generation:
    end = heard.end()
    assert isinstance(end, Generation), end
    return end


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def settled(engine: ScriptedEngine) -> bool:
    return engine.engine.running == engine.engine.waiting == engine.residency.out == 0


def test_an_answer_ends_where_the_model_ends_it() -> None:
    with ScriptedEngine() as engine:
        heard = engine.ask("hello")
        answer = answered(heard)
        assert (answer.text, answer.finish_reason) == ("hello", FinishReason.STOP)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 5)
        assert heard.deltas == "hello"
        assert settled(engine)


def test_an_answer_ends_at_max_new_tokens() -> None:
    with ScriptedEngine() as engine:
        answer = answered(engine.ask("hello", max_new_tokens=3))
        assert (answer.text, answer.finish_reason) == ("hel", FinishReason.LENGTH)


def test_an_answer_ends_where_its_slot_does() -> None:
    with ScriptedEngine() as engine:
        answer = answered(engine.ask("x" * 100, length=30, max_new_tokens=99))
        assert (len(answer.text), answer.finish_reason) == (10, FinishReason.LENGTH)


def test_an_empty_answer_is_an_answer() -> None:
    with ScriptedEngine() as engine:
        answer = answered(engine.ask(""))
        assert (answer.text, answer.usage.completion_tokens) == ("", 0)


def test_a_stop_string_ends_an_answer_and_is_never_sent() -> None:
    with ScriptedEngine() as engine:
        heard = engine.ask("one two. three", stop=("two. t", ". "))
        answer = answered(heard)
        assert (answer.text, answer.finish_reason) == ("one two", FinishReason.STOP)
        assert heard.deltas == answer.text


def test_waiting_requests_join_while_others_run() -> None:
    with ScriptedEngine(max_running=3) as engine:
        engine.runner.gated = True
        heards = [engine.ask("a" * 20), engine.ask("b" * 20), engine.ask("c"), engine.ask("d" * 3)]
        engine.runner.gate.release(1000)
        assert [answered(heard).text for heard in heards] == ["a" * 20, "b" * 20, "c", "ddd"]
        assert max(engine.runner.batches) == 3
        assert settled(engine)


def test_answers_decode_in_one_batch() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        heards = [engine.ask(letter * 10) for letter in "abcd"]
        engine.runner.gate.release(1000)
        assert [answered(heard).text for heard in heards] == [letter * 10 for letter in "abcd"]
        assert engine.runner.batches.count(4) >= 8


def test_a_model_that_raises_on_its_second_call_fails_that_batch_only() -> None:
    with ScriptedEngine() as engine:
        engine.runner.failing_steps = {2}
        failed = engine.ask("hello").end()
        assert isinstance(failed, InternalError)
        assert "on fire" not in failed.message
        assert answered(engine.ask("again")).text == "again"
        assert settled(engine)


def test_a_decode_step_that_fails_ends_all_in_it_and_none_else() -> None:
    with ScriptedEngine(max_running=2) as engine:
        engine.runner.gated = True
        engine.runner.failing_steps = {4}
        heards = [engine.ask(letter * 10) for letter in "abc"]
        engine.runner.gate.release(1000)
        ends = [heard.end() for heard in heards]
        failed = [end for end in ends if isinstance(end, InternalError)]
        assert len(failed) in (1, 2)
        assert isinstance(ends[-1], Generation)
        assert ends[-1].text == "c" * 10
        assert settled(engine)


def test_a_prefill_that_fails_ends_its_own_request_only() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        engine.runner.failing_answers = {"bad"}
        heards = [engine.ask("a" * 20), engine.ask("bad"), engine.ask("c" * 20)]
        engine.runner.gate.release(1000)
        first, failed, last = [heard.end() for heard in heards]
        assert isinstance(failed, InternalError)
        assert isinstance(first, Generation)
        assert isinstance(last, Generation)
        assert (first.text, last.text) == ("a" * 20, "c" * 20)
        assert settled(engine)


def test_logits_that_are_not_finite_fail_their_own_request_only() -> None:
    with ScriptedEngine() as engine:
        engine.runner.poisoned = {"!"}
        engine.runner.gated = True
        bad, good = engine.ask("ab!c"), engine.ask("abcdefgh")
        engine.runner.gate.release(1000)
        end = bad.end()
        assert isinstance(end, InternalError)
        assert "finite" in end.message
        assert answered(good).text == "abcdefgh"


def test_a_cancelled_request_frees_its_slot() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        first, second = engine.ask("x" * 30), engine.ask("second")
        engine.runner.gate.release(2)
        first.next()
        engine.engine.cancel(first.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(first.end(), CancelledError)
        assert answered(second).text == "second"
        assert settled(engine)


def test_a_cancelled_request_leaves_the_queue() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        first, second = engine.ask("first"), engine.ask("second")
        engine.engine.cancel(second.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(second.end(), CancelledError)
        assert answered(first).text == "first"


def test_cancelling_what_has_ended_does_nothing() -> None:
    with ScriptedEngine() as engine:
        heard = engine.ask("done")
        answered(heard)
        engine.engine.cancel(heard.sequence)
        answered(engine.ask("next"))
        assert heard.events.empty()


def test_a_deadline_ends_a_running_request() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        heard = engine.ask("x" * 30, deadline=time.monotonic() + 0.05)
        engine.runner.gate.release(2)
        heard.next()
        time.sleep(max(0.0, (heard.sequence.request.deadline or 0) - time.monotonic()))
        engine.runner.gate.release(1000)
        end = heard.end()
        assert isinstance(end, DeadlineError)
        assert "tokens of the answer" in end.message
        assert settled(engine)


def test_a_deadline_ends_a_request_whose_adapters_never_come() -> None:
    with ScriptedEngine() as engine:
        engine.residency.hold = True
        end = engine.ask("x", deadline=time.monotonic() + 0.02).end()
        assert isinstance(end, DeadlineError)
        assert "queue" in end.message
        (ready,) = engine.residency.held
        ready(engine.residency.lease())
        assert engine.residency.out == 0


def test_a_request_waits_for_its_adapters_without_holding_up_others() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.residency.hold = True
        slow = engine.ask("slow")
        engine.residency.hold = False
        assert answered(engine.ask("fast")).text == "fast"
        (ready,) = engine.residency.held
        ready(engine.residency.lease())
        assert answered(slow).text == "slow"


def test_adapters_that_do_not_load_fail_their_own_request() -> None:
    with ScriptedEngine() as engine:
        engine.residency.hold = True
        failing = engine.ask("x")
        engine.residency.hold = False
        engine.residency.held[0](CheckpointError("half a file"))
        assert isinstance(failing.end(), CheckpointError)
        assert answered(engine.ask("next")).text == "next"


def test_running_answers_go_on_between_the_chunks_of_a_long_prompt() -> None:
    with ScriptedEngine(prefill_tokens=5) as engine:
        engine.runner.gated = True
        running = engine.ask("a" * 20, length=3)
        engine.runner.gate.release(2)
        running.next()
        running.next()
        long = engine.ask("long", length=30)
        engine.runner.gate.release(1000)
        assert (answered(running).text, answered(long).text) == ("a" * 20, "long")
        assert engine.runner.chunks == [3, 5, 5, 5, 5, 5, 5]
        assert "".join(engine.runner.calls).count("rr") == 0
        assert settled(engine)


def test_short_prompts_are_read_together_in_one_step() -> None:
    with ScriptedEngine(prefill_tokens=12) as engine:
        engine.runner.gated = True
        heards = [engine.ask("x" * 9, length=1), *(engine.ask(letter * 3, length=4) for letter in "abc")]
        engine.runner.gate.release(1000)
        assert [answered(heard).text for heard in heards] == ["x" * 9, "aaa", "bbb", "ccc"]
        assert "rr" in "".join(engine.runner.calls)  # Some may have come before the first step, some after.


def test_a_cancelled_request_leaves_between_the_chunks_of_its_prompt() -> None:
    with ScriptedEngine(max_running=1, prefill_tokens=2) as engine:
        engine.runner.gated = True
        long, next_one = engine.ask("never", length=30), engine.ask("next", length=2)
        engine.runner.gate.release(2)
        until(lambda: len(engine.runner.chunks) == 3)
        engine.engine.cancel(long.sequence)
        engine.runner.gate.release(1000)
        assert isinstance(long.end(), CancelledError)
        assert answered(next_one).text == "next"
        assert engine.runner.chunks == [2, 2, 2, 2]
        assert engine.runner.cleared == [0], "a prompt that nobody read to its end may have left anything"
        assert settled(engine)


def test_a_deadline_passes_while_the_prompt_is_read() -> None:
    with ScriptedEngine(max_running=1, prefill_tokens=2) as engine:
        engine.runner.gated = True
        long = engine.ask("never", length=30, deadline=time.monotonic() + 0.05)
        engine.runner.gate.release(2)
        until(lambda: len(engine.runner.chunks) == 3)
        time.sleep(max(0.0, (long.sequence.request.deadline or 0) - time.monotonic()))
        engine.runner.gate.release(1000)
        end = long.end()
        assert isinstance(end, DeadlineError)
        assert "6 of the prompt's 30 tokens" in end.message
        assert engine.runner.chunks == [2, 2, 2]
        assert settled(engine)


def test_a_chunk_that_fails_ends_its_own_request_only() -> None:
    with ScriptedEngine(prefill_tokens=2) as engine:
        engine.runner.gated = True
        engine.runner.failing_answers = {"bad"}
        running, long = engine.ask("a" * 9, length=2), engine.ask("bad", length=20)
        engine.runner.gate.release(1000)
        assert isinstance(long.end(), InternalError)
        assert answered(running).text == "a" * 9
        assert settled(engine)


def test_a_request_that_ended_while_its_adapters_were_asked_for_cancels_its_ticket() -> None:
    with ScriptedEngine() as engine:
        engine.residency.hold = engine.residency.slow = True
        heard = engine.ask("x", deadline=time.monotonic())
        assert isinstance(heard.end(), DeadlineError)
        assert isinstance(heard.sequence.ticket, Ticket)
        assert heard.sequence.ticket.cancelled


def test_an_unknown_adapter_is_refused_where_the_prompt_is_checked() -> None:
    with ScriptedEngine() as engine:
        engine.residency.unknown = {"nobody"}
        with pytest.raises(NotFoundError, match="nobody"):
            engine.engine.check_composition(Mixture((WeightedAdapter("nobody", 1.0),)))
        with pytest.raises(InvalidArgumentError, match="at most 2"):
            engine.engine.check_composition(Mixture(tuple(WeightedAdapter(name, 1.0) for name in ("a", "b", "c"))))


def test_a_full_queue_refuses_with_its_length() -> None:
    with ScriptedEngine(max_running=1, max_waiting=2) as engine:
        engine.residency.hold = True
        waiting = [engine.ask("a"), engine.ask("b")]
        with pytest.raises(OverloadedError, match="2 requests wait"):
            engine.ask("c")
        with pytest.raises(OverloadedError):
            engine.engine.check_room()
        for ready in engine.residency.held:
            ready(engine.residency.lease())
        assert [answered(heard).text for heard in waiting] == ["a", "b"]
        engine.residency.hold = False
        assert answered(engine.ask("c")).text == "c"


def test_a_prompt_as_long_as_a_slot_is_refused_before_it_is_queued() -> None:
    with ScriptedEngine() as engine:
        with pytest.raises(InvalidArgumentError, match=r"takes 40 tokens.*holds 40") as caught:
            engine.ask("x", length=40)
        assert caught.value.field == "prompt"
        assert answered(engine.ask("x" * 9, length=39)).finish_reason is FinishReason.LENGTH


def test_too_many_adapters_are_refused_before_anything_is_queued() -> None:
    with ScriptedEngine() as engine:
        shares = tuple(WeightedAdapter(name, 0.3) for name in ("a", "b", "c"))
        with pytest.raises(InvalidArgumentError, match="at most 2") as caught:
            engine.ask("x", composition=Mixture(shares))
        assert caught.value.field == "composition.mixture.adapters"


def test_a_listener_that_fails_harms_nobody_else() -> None:
    with ScriptedEngine() as engine:
        engine.runner.gated = True
        bad, good = engine.ask("abc"), engine.ask("defg")

        def broken(_: object) -> None:
            raise RuntimeError("the loop is closed")

        bad.sequence.listener = broken
        engine.runner.gate.release(1000)
        assert answered(good).text == "defg"
        assert answered(engine.ask("next")).text == "next"
        assert settled(engine)


def test_closing_ends_whatever_is_under_way() -> None:
    with ScriptedEngine(max_running=1) as engine:
        engine.runner.gated = True
        running, waiting = engine.ask("x" * 30), engine.ask("y")
        engine.residency.hold = True
        loading = engine.ask("z")
        engine.runner.gate.release(2)
        running.next()
        closing = threading.Thread(target=engine.engine.close)
        closing.start()
        engine.runner.gate.release(1000)
        closing.join(timeout=20)
        assert all(isinstance(heard.end(), UnavailableError) for heard in (running, waiting, loading))
        assert settled(engine)
        with pytest.raises(UnavailableError):
            engine.ask("late")


def test_timings_add_up_to_the_time_spent() -> None:
    with ScriptedEngine() as engine:
        started = time.monotonic()
        timings = answered(engine.ask("hello")).timings
        spent = time.monotonic() - started
        assert min(timings.queue_s, timings.prefill_s, timings.decode_s) >= 0
        assert timings.queue_s + timings.prefill_s + timings.decode_s <= spent
