"""Lanes: batches, order, errors apart, cancelling, closing."""

import asyncio
import threading

import pytest

from dualenc.serve.lanes import Closed, Lane


class Gate:
    """Work that waits to be let through, and notes the batches that it got."""

    def __init__(self):
        self.open, self.entered, self.batches = threading.Event(), threading.Semaphore(0), []
        self.step = threading.Event()  # lets the first batch alone through

    def __call__(self, key, items):
        self.batches.append((key, list(items)))
        self.entered.release()
        for _ in range(2000):
            if self.open.wait(0.005) or (self.step.is_set() and items == ["first"]):
                break
        else:
            raise AssertionError("nobody opened the gate")
        if "bad" in items:
            raise ValueError("a bad item")
        return [f"{item}!" for item in items]

    async def busy(self):
        """Until the lane is at work."""
        assert await asyncio.to_thread(self.entered.acquire, True, 10)


def through(scenario, **options):
    """Run `scenario(lane, gate)` with a lane whose work is a gate, and close it."""

    async def main():
        gate = Gate()
        lane = Lane("test", gate, **options)
        try:
            return await asyncio.wait_for(scenario(lane, gate), 10)
        finally:
            gate.open.set()
            lane.close()
            await asyncio.to_thread(lane.join)

    return asyncio.run(main())


async def held(lane, gate, items, **keys):
    """Tasks of items that came while the lane was at work on "first", which is let through afterwards."""
    first = asyncio.create_task(lane.do("first"))
    await gate.busy()
    tasks = [asyncio.create_task(lane.do(item, keys.get(str(item)))) for item in items]
    await asyncio.sleep(0.01)
    return first, tasks


def test_an_idle_lane_starts_at_once_and_what_comes_meanwhile_goes_together():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c"])
        gate.open.set()
        assert await first == "first!"
        assert await asyncio.gather(*tasks) == ["a!", "b!", "c!"]
        assert gate.batches == [(None, ["first"]), (None, ["a", "b", "c"])]

    through(scenario)


def test_only_equal_keys_go_together_and_the_rest_keeps_its_order():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c", "d"], a=1, b=2, c=1, d=2)
        gate.open.set()
        assert await asyncio.gather(first, *tasks) == ["first!", "a!", "b!", "c!", "d!"]
        assert gate.batches[1:] == [(1, ["a", "c"]), (2, ["b", "d"])]

    through(scenario)


def test_a_batch_stays_within_most():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c", "d", "e"])
        gate.open.set()
        await asyncio.gather(first, *tasks)
        assert [items for _, items in gate.batches[1:]] == [["a", "b"], ["c", "d"], ["e"]]

    through(scenario, most=2)


def test_sizes_count_and_one_that_is_too_large_goes_alone():
    async def scenario(lane, gate):
        first = asyncio.create_task(lane.do("first"))
        await gate.busy()
        tasks = [
            asyncio.create_task(lane.do(item, size=size)) for item, size in (("big", 9), ("a", 2), ("b", 2), ("c", 2))
        ]
        await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.gather(first, *tasks)
        assert [items for _, items in gate.batches[1:]] == [["big"], ["a", "b"], ["c"]]

    through(scenario, most=4)


def test_one_that_fails_takes_nobody_with_it():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "bad", "b"])
        gate.open.set()
        results = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert results[0] == "first!" and results[1] == "a!" and results[3] == "b!"
        assert isinstance(results[2], ValueError) and "a bad item" in str(results[2])
        assert await lane.do("after") == "after!"  # the thread lives on

    through(scenario)


def test_a_wrong_number_of_results_is_an_error_and_never_somebody_elses():
    async def main():
        lane = Lane("test", lambda key, items: items[:1] if len(items) > 1 else [*items, "more"])
        with pytest.raises(AssertionError, match="2 results of 1 items"):
            await lane.do("a")
        lane.close()
        await asyncio.to_thread(lane.join)

    asyncio.run(main())


def test_what_is_cancelled_while_it_waits_is_never_worked_on():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c"])
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await first == "first!" and await tasks[0] == "a!" and await tasks[2] == "c!"
        assert gate.batches[1:] == [(None, ["a", "c"])]
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]

    through(scenario)


def test_one_that_is_cancelled_at_work_hurts_nobody():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c"])
        gate.step.set()  # the first is done, and the others are at work together
        assert await first == "first!"
        await gate.busy()
        tasks[0].cancel()
        await asyncio.sleep(0.01)
        gate.open.set()
        assert await asyncio.gather(*tasks[1:]) == ["b!", "c!"]
        assert tasks[0].cancelled() and gate.batches[1:] == [(None, ["a", "b", "c"])]

    through(scenario)


def test_closing_finishes_what_waits_and_takes_nothing_more():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b"])
        lane.close()
        with pytest.raises(Closed):
            await lane.do("late")
        gate.open.set()
        assert await asyncio.gather(first, *tasks) == ["first!", "a!", "b!"]
        await asyncio.to_thread(lane.join)
        assert not any(thread.is_alive() for thread in lane._threads)

    through(scenario)


def test_several_threads_share_what_waits():
    async def scenario(lane, gate):
        both = [asyncio.create_task(lane.do(item)) for item in ("x", "y")]
        await gate.busy()
        await gate.busy()
        tasks = [asyncio.create_task(lane.do(item)) for item in "abcd"]
        await asyncio.sleep(0.01)
        gate.open.set()
        await asyncio.gather(*both, *tasks)
        assert [len(items) for _, items in gate.batches[2:3]] == [2]  # half of what waited
        assert sorted(item for _, items in gate.batches for item in items) == sorted("xyabcd")

    through(scenario, threads=2)


def test_work_that_takes_its_time_for_each_item_is_not_gathered():
    async def scenario(lane, gate):
        first, tasks = await held(lane, gate, ["a", "b", "c"])
        await asyncio.sleep(0.02)  # so long does one item take, it seems: far more than the budget
        gate.open.set()
        await asyncio.gather(first, *tasks)
        assert [items for _, items in gate.batches[1:2]] == [["a"]]

    through(scenario, budget=0.001)


def test_each_thread_begins_once():
    begun = []

    async def main():
        lane = Lane("test", lambda key, items: items, threads=3, begin=lambda: begun.append(threading.get_ident()))
        assert await asyncio.gather(*(lane.do(i) for i in range(100))) == list(range(100))
        lane.close()
        await asyncio.to_thread(lane.join)

    asyncio.run(main())
    assert len(begun) == 3 and threading.get_ident() not in begun


def test_a_loop_that_is_gone_leaves_the_lane_alive():
    gate = Gate()
    lane = Lane("test", gate)

    async def abandon():
        task = asyncio.create_task(lane.do("a"))
        await gate.busy()
        del task

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.close()  # the result has nowhere to go
    gate.open.set()

    async def again():
        return await lane.do("b")

    assert asyncio.run(again()) == "b!"
    lane.close()
    lane.join()
