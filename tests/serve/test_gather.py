"""Gathered work: together within a moment, at most so many, errors apart, cancelling."""

import asyncio

import pytest

from dualenc.serve import gather
from dualenc.serve.gather import Gather


def through(scenario, most=8, **more):
    """What `scenario(gathered, batches)` returns, of a Gather that notes its batches."""
    batches = []

    def work(items):
        batches.append(list(items))
        if "bad" in items:
            raise ValueError("a bad item")
        return [f"{item}!" for item in items]

    async def main():
        return await asyncio.wait_for(scenario(Gather("test", work, most, **more), batches), 10)

    return asyncio.run(main())


def test_what_comes_together_goes_together():
    async def scenario(gathered, batches):
        assert await asyncio.gather(*map(gathered.do, "abc")) == ["a!", "b!", "c!"]
        assert await gathered.do("d") == "d!"
        assert batches == [["a", "b", "c"], ["d"]]

    through(scenario)


def test_what_comes_a_few_rounds_of_the_loop_later_goes_too_but_nothing_waits_for_ever(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gather, "perf_counter", lambda: clock[0])

    async def rounds(count, seconds):
        for _ in range(count):
            await asyncio.sleep(0)
            clock[0] += seconds

    async def scenario(gathered, batches):
        tasks = []
        for item in "abcdefg":
            tasks.append(asyncio.create_task(gathered.do(item)))
            await rounds(4, gather.QUIET / 5)  # always one more before the quiet is over
        assert batches == []
        await rounds(4, gather.QUIET / 2)
        assert batches == [list("abcdefg")] and await asyncio.gather(*tasks) == [f"{item}!" for item in "abcdefg"]
        for item in range(40):
            tasks.append(asyncio.create_task(gathered.do(str(item))))
            await rounds(4, gather.QUIET / 5)
        assert len(batches[1]) < 20  # LONGEST has passed
        await asyncio.gather(*tasks, rounds(20, gather.QUIET))
        assert [item for batch in batches for item in batch] == [*"abcdefg", *map(str, range(40))]

    through(scenario, most=100)


def test_at_most_so_many_go_together_and_the_others_next():
    async def scenario(gathered, batches):
        found = await asyncio.gather(*map(gathered.do, map(str, range(7))))
        assert found == [f"{number}!" for number in range(7)] and [len(batch) for batch in batches] == [3, 3, 1]

    through(scenario, most=3)


def test_only_what_is_at_fault_fails():
    async def scenario(gathered, batches):
        found = await asyncio.gather(*map(gathered.do, ["a", "bad", "c"]), return_exceptions=True)
        assert found[0] == "a!" and found[2] == "c!" and isinstance(found[1], ValueError)
        with pytest.raises(ValueError, match="a bad item"):
            await gathered.do("bad")

    through(scenario)


def test_who_has_left_is_left_out_and_work_begins_once():
    begun = []

    async def scenario(gathered, batches):
        tasks = [asyncio.create_task(gathered.do(item)) for item in "abc"]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert await tasks[0] == "a!" and await tasks[2] == "c!" and batches == [["a", "c"]]
        alone = asyncio.create_task(gathered.do("gone"))
        await asyncio.sleep(0)
        alone.cancel()
        assert await gathered.do("d") == "d!" and batches[1:] == [["d"]] and begun == [1]

    through(scenario, begin=lambda: begun.append(1))


def test_work_that_makes_too_few_results_is_an_error_for_all():
    async def main():
        gathered = Gather("test", lambda items: items[1:], 8)
        found = await asyncio.wait_for(asyncio.gather(*map(gathered.do, "abc"), return_exceptions=True), 10)
        assert all(isinstance(one, AssertionError) and "0 results of 1 items" in str(one) for one in found)

    asyncio.run(main())


def test_what_waits_is_a_queue(monkeypatch):
    lengths = []
    monkeypatch.setattr(gather.observe, "queue", lambda name, length: lengths.append((name, length)))

    async def scenario(gathered, batches):
        await asyncio.gather(*map(gathered.do, "abcdefg"))
        assert lengths == [("test", 4), ("test", 1), ("test", 0)]

    through(scenario, most=3)


def test_no_more_go_together_than_the_budget_holds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(gather, "perf_counter", lambda: clock[0])

    async def main():
        batches = []

        def work(items):
            batches.append(len(items))
            clock[0] += 0.1 * len(items)
            return items

        gathered = Gather("test", work, 100, budget=0.35, quiet=0)
        await asyncio.gather(*map(gathered.do, range(10)))
        assert batches == [10]  # nothing is known yet
        await asyncio.gather(*map(gathered.do, range(7)))
        assert batches[1:] == [3, 3, 1]
        gathered = Gather("test", work, 100, budget=0.05, quiet=0)
        await asyncio.gather(*map(gathered.do, range(2)))
        await asyncio.gather(*map(gathered.do, range(3)))
        assert batches[4:] == [2, 1, 1, 1]  # one at least

    asyncio.run(main())
