import asyncio
import random
import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.batcher import Batcher, BatchError, ModelThread

POISON = -1


class Stepped(Executor):
    """An executor that runs one task for each `step`, so that a test decides the order of events."""

    def __init__(self):
        self.work = []

    def submit(self, function, /, *arguments):
        future = Future()
        self.work.append((future, function, arguments))
        return future

    def step(self):
        if self.work:
            future, function, arguments = self.work.pop(0)
            try:
                result = function(*arguments)
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)


def rows_of(caller, size):
    """Rows that identify their caller: [size, 2] of (caller, index)."""
    return np.array([(caller, index) for index in range(size)])


INTERLEAVINGS = {
    "submit": (1, 17),  # rows
    "poison": (1, 17),  # rows; the last one fails its batch
    "cancel": (0, 30),  # which caller
    "step": (1, 4),  # batches that the model computes
    "turn": (1, 3),  # iterations of the event loop
}


@settings(max_examples=300, deadline=None)
@given(
    max_rows=st.integers(1, 7),
    inline_seconds=st.sampled_from([0.0, 1e-5, 60.0]),
    actions=st.lists(
        st.one_of(
            *(st.tuples(st.just(action), st.integers(*most)) for action, most in INTERLEAVINGS.items())
        ),
        max_size=40,
    ),
)
def test_no_interleaving_mixes_or_loses_a_row(max_rows, inline_seconds, actions):
    asyncio.run(interleave(max_rows, inline_seconds, actions))


def test_no_long_interleaving_mixes_or_loses_a_row():
    rng = random.Random(0)
    with asyncio.Runner() as runner:
        for _ in range(2000):
            actions = [
                (action, rng.randint(*INTERLEAVINGS[action]))
                for action in rng.choices(list(INTERLEAVINGS), weights=(6, 1, 3, 5, 5), k=rng.randint(10, 60))
            ]
            runner.run(interleave(rng.randint(1, 7), rng.choice([0.0, 1e-5, 60.0]), actions))


def interleave(max_rows, inline_seconds, actions):
    """Performs the actions, then finishes all calls. Every result must belong to its caller's rows."""
    batches, broken = [], []

    def run(rows, weights):
        batches.append(rows)
        if (weights == POISON).any():
            broken.append(rows)
            raise RuntimeError("poisoned")
        return rows * 10, rows[:, 0] + weights

    async def scenario():
        executor = Stepped()
        batcher = Batcher(run, executor, max_rows=max_rows, inline_seconds=inline_seconds)
        tasks, sizes = [], []

        async def turns(number):
            for _ in range(number):
                await asyncio.sleep(0)

        for action, number in actions:
            if action in ("submit", "poison"):
                caller = len(tasks)
                weights = np.zeros(number, int)
                if action == "poison":
                    weights[-1] = POISON
                tasks.append(asyncio.create_task(batcher(rows_of(caller, number), weights)))
                sizes.append(number)
            elif action == "cancel" and tasks:
                tasks[number % len(tasks)].cancel()
            elif action == "step":
                for _ in range(number):
                    executor.step()
                    await turns(3)
            await turns(number if action == "turn" else 0)
        while not all(task.done() for task in tasks):
            executor.step()
            await turns(3)
        await turns(3)
        executor.step()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert batcher.waiting_rows == 0

        ran = [tuple(row) for rows in batches for row in rows]
        assert len(ran) == len(set(ran)), "a row was computed twice"
        assert all(len(rows) <= max_rows for rows in batches)
        hurt = {int(caller) for rows in broken for caller in rows[:, 0]}
        for caller, (size, result) in enumerate(zip(sizes, results, strict=True)):
            if isinstance(result, asyncio.CancelledError):
                continue
            if isinstance(result, Exception):
                assert isinstance(result, BatchError)
                assert caller in hurt, "failed although none of its batches did"
                continue
            assert caller not in hurt, "succeeded although one of its batches failed"
            expected = rows_of(caller, size)
            np.testing.assert_array_equal(result[0], expected * 10)
            np.testing.assert_array_equal(result[1], expected[:, 0])

    return scenario()


def run_with_thread(scenario):
    """Runs `scenario(thread)` with a real model thread."""

    async def main():
        with ThreadPoolExecutor(1) as thread:
            return await scenario(thread)

    return asyncio.run(main())


def test_callers_share_batches_in_a_real_thread():
    batches = []

    def run(x):
        batches.append(len(x))
        return (x * 2,)

    async def scenario(thread):
        batcher = Batcher(run, thread, max_rows=64)
        return await asyncio.gather(*(batcher(np.full((1, 3), i)) for i in range(100)))

    for index, (answer,) in enumerate(run_with_thread(scenario)):
        np.testing.assert_array_equal(answer, np.full((1, 3), 2 * index))
    assert sum(batches) == 100
    assert batches == [64, 36]  # all were submitted in one iteration of the loop


def test_an_idle_batcher_runs_a_call_at_once_and_the_next_batch_fills_meanwhile():
    release, batches = threading.Event(), []

    def run(x):
        batches.append(len(x))
        assert release.wait(10)
        return (x,)

    async def scenario(thread):
        batcher = Batcher(run, thread, max_rows=64)
        first = asyncio.create_task(batcher(np.zeros(1)))
        while not batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(np.zeros(2))) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert batcher.waiting_rows == 10
        release.set()
        await asyncio.gather(first, *others)

    run_with_thread(scenario)
    assert batches == [1, 10]


def test_batchers_take_turns_in_the_model_thread():
    order, threads = [], set()

    def run(name):
        def run(x):
            order.append(name)
            threads.add(threading.current_thread().name)
            return (x,)

        return run

    async def scenario(thread):
        a, b = (Batcher(run(name), thread, max_rows=1) for name in "ab")
        await asyncio.gather(a(np.zeros(3)), b(np.zeros(3)))

    run_with_thread(scenario)
    assert order == list("ababab")
    assert len(threads) == 1


def test_an_error_fails_only_its_own_batch_and_is_the_cause():
    def run(x):
        if x[0] == 0:
            raise ValueError("the model is broken")
        return (x,)

    async def scenario(thread):
        batcher = Batcher(run, thread, max_rows=1)
        bad, good = await asyncio.gather(
            batcher(np.array([0])), batcher(np.array([1])), return_exceptions=True
        )
        assert isinstance(bad, BatchError)
        assert isinstance(bad.__cause__, ValueError)
        np.testing.assert_array_equal(good[0], [1])

    run_with_thread(scenario)


def test_a_model_that_returns_another_number_of_rows_is_an_error():
    async def scenario(thread):
        with pytest.raises(BatchError, match="was given 2 rows and returned shapes"):
            await Batcher(lambda x: (x[:1],), thread, max_rows=4)(np.zeros(2))

    run_with_thread(scenario)


def test_observe_gets_the_seconds_waited_and_run():
    times = []

    async def scenario(thread):
        batcher = Batcher(lambda x: (x,), thread, max_rows=1, observe=lambda *t: times.append(t))
        await batcher(np.zeros(3))

    run_with_thread(scenario)
    ((waited, ran),) = times
    assert 0 <= waited < 1
    assert 0 < ran < 1


@pytest.mark.parametrize("arrays", [(), (np.zeros(0),), (np.zeros(2), np.zeros(3))])
def test_arrays_must_have_the_same_number_of_rows_and_at_least_one(arrays):
    async def scenario(thread):
        with pytest.raises(ValueError, match="same number of rows"):
            await Batcher(lambda *x: x, thread, max_rows=4)(*arrays)

    run_with_thread(scenario)


def test_calls_fail_after_the_thread_was_shut_down():
    async def scenario(thread):
        thread.shutdown()
        with pytest.raises(BatchError, match="after shutdown"):
            await asyncio.wait_for(Batcher(lambda x: (x,), thread, max_rows=4)(np.zeros(2)), 10)

    run_with_thread(scenario)


def test_the_model_thread_knows_how_long_its_task_has_been_running():
    began, go = threading.Event(), threading.Event()

    def work():
        began.set()
        assert go.wait(10)

    with ModelThread() as thread:
        assert thread.busy_for() == 0
        done = thread.submit(work)
        assert began.wait(10)
        before = thread.busy_for()
        assert 0 < before < thread.busy_for()
        go.set()
        done.result()
        assert thread.busy_for() == 0
        with pytest.raises(ZeroDivisionError):
            thread.submit(lambda: 1 / 0).result()
        assert thread.busy_for() == 0


def test_short_batches_run_on_the_event_loop_after_the_first_was_measured():
    where = []

    def run(rows):
        where.append(threading.current_thread() is threading.main_thread())
        if rows[0, 0] == POISON:
            raise ValueError("poison")
        return (rows * 2,)

    async def scenario(thread):
        batcher = Batcher(run, thread, max_rows=8, inline_seconds=0.5)
        for caller in range(3):
            (doubled,) = await batcher(rows_of(caller, 2))
            assert (doubled == rows_of(caller, 2) * 2).all()
        failed, (fine,) = await asyncio.gather(
            batcher(np.full((8, 2), POISON)), batcher(rows_of(7, 3)), return_exceptions=True
        )
        assert isinstance(failed, BatchError)
        assert (fine == rows_of(7, 3) * 2).all()

    run_with_thread(scenario)
    assert where == [False, True, True, True, True]
