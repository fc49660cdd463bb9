"""The engine as the routes call it: embeddings, searches one by one and together, and an index that changes under load."""

import asyncio
import logging
import threading
import weakref

import numpy as np
import pytest
from PIL import Image

from dualenc.index import Index
from dualenc.serve import embeddings, encoders, live, searches
from dualenc.serve.cache import Cache
from dualenc.serve.problems import Problem
from dualenc.serve.service import Service
from dualenc.serve.settings import Settings
from tests.serve.fakes import DIM, FINGERPRINT, FakeEncoder, fake_row, small_index, small_rows, use_fake_encoders


@pytest.fixture
def folder(tmp_path):
    small_index(tmp_path / "index")
    return tmp_path / "index"


@pytest.fixture
def made(monkeypatch):
    return use_fake_encoders(monkeypatch)


def served(scenario, *folders, patience=30, **settings):
    """Run `scenario(service, live)` with a service of these folders, the first of which is named a. patience: seconds
    after which it is taken to hang."""

    async def main():
        names = dict(zip("abc", folders, strict=False))
        service = Service(Settings(names, **{"threads": 2, **settings}))
        await service.start()
        try:
            return await asyncio.wait_for(scenario(service, service.live(None)), patience)
        finally:
            await asyncio.wait_for(service.stop(), 10)

    return asyncio.run(main())


def problem(error):
    return error.value.status, str(error.value)


def test_texts_and_images_are_rows_of_the_encoder_and_kept(folder, made):
    async def scenario(service, live):
        rows = await service.texts(live, ["a dog", "a cat", "a dog"])
        assert rows.shape == (3, DIM) and rows.dtype == np.float32
        assert np.array_equal(rows, [fake_row(b"a dog"), fake_row(b"a cat"), fake_row(b"a dog")])
        assert made[0].calls == [2]  # each text once
        again = await service.texts(live, ["a cat", "a bird"])
        assert np.array_equal(again, [fake_row(b"a cat"), fake_row(b"a bird")]) and made[0].calls == [2, 1]
        pictures = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "red")]
        seen = await service.images(live, pictures)
        assert np.array_equal(seen, [fake_row(picture.tobytes()) for picture in pictures]) and made[0].calls[2:] == [2]
        assert np.array_equal(await service.images(live, pictures[1:]), seen[1:]) and made[0].calls[2:] == [2]
        assert (await service.texts(live, [])).shape == (0, DIM)
        assert service.logit_scale(live) == 100.0

    served(scenario, folder)


def test_texts_that_come_together_are_embedded_together(folder, monkeypatch):
    gate, busy, fake = threading.Event(), threading.Event(), FakeEncoder()
    plain = fake.embed_texts

    def slow(texts):
        busy.set()
        assert gate.wait(10)
        return plain(texts)

    fake.embed_texts = slow
    monkeypatch.setattr(encoders, "load", lambda *_: fake)

    async def scenario(service, live):
        first = asyncio.create_task(service.texts(live, ["first"]))
        await asyncio.to_thread(busy.wait, 10)
        tasks = [asyncio.create_task(service.texts(live, [f"text {i}"])) for i in range(20)]
        tasks[3].cancel()
        await asyncio.sleep(0.01)
        gate.set()
        await first
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert fake.calls == [1, 19] and isinstance(done[3], asyncio.CancelledError)
        assert np.array_equal(done[7], [fake_row(b"text 7")])

    served(scenario, folder)


def test_short_texts_of_a_quick_tower_are_embedded_on_the_event_loop_and_others_beside_it(folder, monkeypatch):
    fake, here = FakeEncoder(), []
    plain, fake.text_seconds = fake.embed_texts, encoders.QUICK

    def noted(texts):
        here.append(threading.current_thread() is threading.main_thread())
        return plain(texts)

    begun = []
    fake.embed_texts, fake.begin = noted, lambda threads: begun.append((threads, threading.current_thread().name))
    monkeypatch.setattr(encoders, "load", lambda *_: fake)

    async def scenario(service, live):
        await service.settled(10)
        words = [f"text {i}" for i in range(20)]
        rows = await asyncio.gather(*(service.texts(live, [word]) for word in words))
        assert np.array_equal(np.concatenate(rows), [fake_row(word.encode()) for word in words])
        assert fake.calls == [8, 8, 4] and all(here)  # together, and not so many that others wait for long
        assert begun.count((1, "MainThread")) == 1  # one thread's work
        await service.texts(live, ["x" * 16])
        assert all(here)
        await service.texts(live, ["x" * 17])
        await service.texts(live, ["several", "texts"])
        assert here[-2:] == [False, False] and len(here) == 6

    served(scenario, folder)


@pytest.mark.parametrize("quick", [False, True])
def test_a_text_that_fails_fails_alone(folder, monkeypatch, quick):
    fake = FakeEncoder()
    fake.text_seconds = 0.0 if quick else encoders.QUICK + 1e-6
    plain = fake.embed_texts

    def picky(texts):
        if "bad" in texts:
            raise RuntimeError("out of order")
        return plain(texts)

    fake.embed_texts = picky
    monkeypatch.setattr(encoders, "load", lambda *_: fake)

    async def scenario(service, live):
        words = ["a", "bad", "b", "c"]
        done = await asyncio.gather(*(service.texts(live, [word]) for word in words), return_exceptions=True)
        assert isinstance(done[1], RuntimeError)
        assert np.array_equal(np.concatenate([done[0], done[2], done[3]]), [fake_row(w) for w in (b"a", b"b", b"c")])

    served(scenario, folder)


def test_what_is_said_while_it_loads_when_there_is_none_and_when_it_failed(folder, tmp_path, monkeypatch):
    small_index(tmp_path / "none", encoder=None)
    gate = threading.Event()

    def load(need, precision, threads):
        assert gate.wait(10)
        raise OSError(f"{need.name} is damaged")

    monkeypatch.setattr(encoders, "load", load)
    monkeypatch.setattr(embeddings, "PATIENCE", 0.01)

    async def scenario(service, live):
        with pytest.raises(Problem) as error:
            await service.texts(live, ["a"])
        assert problem(error)[0] == 503 and error.value.headers["Retry-After"]
        with pytest.raises(Problem) as error:
            service.logit_scale(live)
        assert problem(error)[0] == 503
        assert service.ready()["a"] == {"rows": 50, "generation": 1, "encoder": "loading"}
        ids, _ = await service.search(live, live.index, small_rows(1)[0], 1)
        assert ids.tolist() == [0]  # by vector it works all the same
        gate.set()
        monkeypatch.setattr(embeddings, "PATIENCE", 10.0)
        for call in (
            service.texts(live, ["a"]),
            service.images(live, []),
            service.classifier(live, ("a", "b"), ("{}",)),
        ):
            with pytest.raises(Problem) as error:
                await call
            assert problem(error) == (500, "it could not be loaded; the server's log tells why")
        assert service.ready()["a"]["encoder"] == "failed"
        with pytest.raises(Problem) as error:
            await service.texts(service.live("b"), ["a"])
        assert problem(error)[0] == 409 and "--encoder" in str(error.value)
        assert service.ready()["b"]["encoder"] == "none"

    served(scenario, folder, tmp_path / "none")


def test_a_request_waits_for_an_encoder_that_is_nearly_there(folder, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(encoders, "load", lambda *_: gate.wait(10) and FakeEncoder())

    async def scenario(service, live):
        task = asyncio.create_task(service.texts(live, ["a"]))
        await asyncio.sleep(0.02)
        assert not task.done()
        gate.set()
        assert np.array_equal(await task, [fake_row(b"a")])

    served(scenario, folder)


def test_names(folder, made, tmp_path):
    small_index(tmp_path / "other", 20, seed=1)

    async def scenario(service, live):
        assert service.live("a") is live and len(service.live("b").index) == 20
        with pytest.raises(Problem) as error:
            service.live("c")
        assert problem(error) == (404, "there is no index 'c'; there is a, b")
        await service.texts(live, ["a"])
        await service.texts(service.live("b"), ["a"])
        assert len(made) == 1 and made[0].calls == [1]  # one encoder, one cache

    served(scenario, folder, tmp_path / "other")


CASES = [
    {},
    {"offset": 5},
    {"threshold": 0.55},
    {"where": "colour = 'red' AND n > 10"},
    {"group_by": "colour"},
    {"k": 50, "where": "n < 3"},
    {"offset": 49},
    {"offset": 1000},
    {"where": "n = -1"},
]


@pytest.mark.parametrize("quick", [-1.0, 10.0], ids=["in the lane", "at once"])
def test_searches_that_go_together_find_what_each_finds_alone(folder, made, monkeypatch, quick):
    monkeypatch.setattr(searches, "QUICK", quick)
    queries = small_rows(30, seed=9)

    async def scenario(service, live):
        wanted = []
        for query in queries:
            for case in CASES:
                found = live.index.page(query[None], **{"k": 4, **case})
                wanted.append((found[0][0][found[0][0] >= 0], found[1][0][found[0][0] >= 0]))
        calls = [service.search(live, live.index, query, **{"k": 4, **case}) for query in queries for case in CASES]
        for (ids, scores), (right, exact) in zip(await asyncio.gather(*calls), wanted, strict=True):
            assert np.array_equal(ids, right) and np.array_equal(scores, exact)

    served(scenario, folder)


def test_only_quick_searches_are_done_on_the_event_loop(folder, made, monkeypatch):
    threads = []
    together = searches._together

    def noted(key, vectors):
        threads.append(threading.current_thread() is threading.main_thread())
        return together(key, vectors)

    monkeypatch.setattr(searches, "_together", noted)

    async def scenario(service, live):
        async def where_done(**more):
            threads.clear()
            await service.search(live, live.index, small_rows(1)[0], **{"k": 3, **more})
            return threads

        monkeypatch.setattr(searches, "QUICK", 10.0)
        assert await where_done() == [False]  # nobody knows yet how long one takes
        assert await where_done() == [True]
        assert await where_done(k=searches.SHALLOW + 1) == [False]
        assert await where_done(where="n < 3") == [False]
        assert await where_done(group_by="colour") == [False]
        monkeypatch.setattr(searches, "QUICK", 0.0)
        assert await where_done() == [False]

    served(scenario, folder)


def test_only_plain_searches_of_the_same_generation_tell_how_long_one_takes(folder, made, tmp_path):
    large = small_index(tmp_path / "large", 300)

    async def scenario(service, live):
        cost = service._searches._cost
        for more in ({"where": "n < 3"}, {"offset": searches.SHALLOW}, {"group_by": "colour"}):
            await service.search(live, live.index, small_rows(1)[0], 3, **more)
        assert live.index not in cost
        await service.search(live, live.index, small_rows(1)[0], 3)
        assert live.index in cost and large not in cost
        await service.search(live, large, small_rows(1)[0], 3)  # a new generation of the same name
        assert large in cost and len(cost) == 2

    served(scenario, folder)


def test_a_generation_that_was_replaced_is_let_go_of(folder, made, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.01)
    monkeypatch.setattr(searches, "QUICK", -1.0)  # all go through the lane's threads

    async def scenario(service, live):
        ask = [service.search(live, live.index, small_rows(1)[0], 3, where=where) for where in [None, "n > 3"] * 20]
        assert len(await asyncio.gather(*ask)) == 40
        ask.clear()
        old = weakref.ref(live.index)
        await asyncio.to_thread(Index.open(folder).add, small_rows(2, seed=9))
        for _ in range(1000):
            if live.generation == 2 and old() is None:
                break
            await asyncio.sleep(0.005)
        assert live.generation == 2 and old() is None

    served(scenario, folder)


def test_a_generation_without_rows_is_one_as_well(folder, made, tmp_path):
    empty = small_index(tmp_path / "empty", encoder=None)
    empty.remove(empty.ids)

    async def scenario(service, live):
        with pytest.raises(Problem) as error:
            await service.texts(live, ["a"], empty)
        assert len(empty) == 0 and problem(error)[0] == 409  # it has no encoder, though the current one has

    served(scenario, folder)


def test_a_search_that_is_wrong_is_refused_in_words_and_alone(folder, made):
    good, long, far = small_rows(1)[0], np.ones(DIM, np.float32), np.ones(3, np.float32)

    async def scenario(service, live):
        async def ask(vector=good, k=3, **more):
            return await service.search(live, live.index, vector, k, **more)

        wrong = {
            "unknown column": ask(where="nothing = 1"),
            "no length 1": ask(long),
            "other D": ask(far),
            "not a number": ask(np.full(DIM, np.nan, np.float32)),
            "k": ask(k=0),
            "group": ask(group_by="nothing"),
        }
        rights = [ask() for _ in range(10)]
        done = await asyncio.gather(*wrong.values(), *rights, return_exceptions=True)
        for name, error in zip(wrong, done, strict=False):
            assert isinstance(error, Problem) and error.status == 400, (name, error)
            assert str(live.folder) not in str(error) and "\n" not in str(error)
        assert all(found[0][0] == 0 for found in done[len(wrong) :])

    served(scenario, folder)


def test_what_the_index_says_of_its_folder_is_not_passed_on(folder, made):
    async def scenario(service, live):
        def damaged(*arguments, **named):
            raise ValueError(f"{live.folder.resolve()}/ids.npy does not open; restore it")

        live.index.page = damaged
        with pytest.raises(Problem) as error:
            await service.search(live, live.index, small_rows(1)[0], 1)
        assert str(error.value) == "index a/ids.npy does not open; restore it"

    served(scenario, folder)


def test_a_slow_filter_holds_up_no_other_search(folder, made):
    async def scenario(service, live):
        gate, calls = threading.Event(), []
        plain = live.index.prepare

        def slow(where):
            calls.append(where)
            assert gate.wait(10)
            return plain(where)

        live.index.prepare = slow
        vector = small_rows(1)[0]
        filtered = [asyncio.create_task(service.search(live, live.index, vector, 3, where="n > 4")) for _ in range(2)]
        for _ in range(20):
            await service.search(live, live.index, vector, 3)
        assert not any(task.done() for task in filtered)
        gate.set()
        assert all((ids > 4).all() for ids, _ in await asyncio.gather(*filtered))
        await service.search(live, live.index, vector, 3, where="n > 4")
        assert calls == ["n > 4"]  # once for both, and kept

    served(scenario, folder)


class Held:
    """Stands where an index prepares filters: each waits for the gate. `calls`: filters that a thread is busy with, or was."""

    def __init__(self, index):
        self.gate, self.calls, self._plain = threading.Event(), [], index.prepare
        index.prepare = self

    def __call__(self, where):
        self.calls.append(where)
        assert self.gate.wait(10)
        return self._plain(where)

    async def busy(self, count):
        for _ in range(1000):
            if len(self.calls) >= count:
                return
            await asyncio.sleep(0.005)
        raise AssertionError(f"{self.calls} and no more came")


def test_filters_leave_a_thread_to_all_else_and_go_one_after_the_other(folder, made, tmp_path):
    for name in "bc":
        small_index(tmp_path / name)

    async def scenario(service, live):
        all_held = [Held(each.index) for each in service.lives.values()]
        tasks = [
            asyncio.create_task(service.search(each, each.index, small_rows(1)[0], 3, where=f"n > {i}"))
            for each in service.lives.values()
            for i in range(4)
        ]
        await asyncio.sleep(0.05)
        assert [len(held.calls) for held in all_held] == [1, 1, 0]  # pool: three threads
        assert await asyncio.wait_for(service.run(len, "a thumbnail"), 5) == 11
        for held in all_held:
            held.gate.set()
        for i, (ids, _) in enumerate(await asyncio.gather(*tasks)):
            assert len(ids) == 3 and (ids > i % 4).all()
        assert [held.calls for held in all_held] == [[f"n > {i}" for i in range(4)]] * 3

    served(scenario, folder, tmp_path / "b", tmp_path / "c")


def test_a_filter_whose_caller_went_away_keeps_its_turn_until_its_thread_is_done(folder, made):
    async def scenario(service, live):
        async def ask(i):
            return await service.search(live, live.index, small_rows(1)[0], 3, where=f"n > {i}")

        held = Held(live.index)
        tasks = [asyncio.create_task(ask(i)) for i in range(3)]
        await held.busy(1)
        tasks[0].cancel()  # at work
        tasks[1].cancel()  # waiting: it is never begun
        await asyncio.sleep(0.05)
        assert held.calls == ["n > 0"] and tasks[1].cancelled() and not tasks[0].done()
        held.gate.set()
        assert len((await tasks[2])[0]) == 3 and tasks[0].cancelled() and held.calls == ["n > 0", "n > 2"]
        assert len((await ask(1))[0]) == 3

    served(scenario, folder)


def test_a_filter_that_waits_for_too_long_is_told_to_come_again(folder, made, monkeypatch):
    async def scenario(service, live):
        held = Held(live.index)
        first = asyncio.create_task(service.search(live, live.index, small_rows(1)[0], 3, where="n > 0"))
        await held.busy(1)
        monkeypatch.setattr(searches, "PATIENCE", 0.01)
        with pytest.raises(Problem) as error:
            await service.search(live, live.index, small_rows(1)[0], 3, where="n > 1")
        assert problem(error) == (503, "it waited 0.01 s for the filters of other requests; try again")
        assert error.value.headers["Retry-After"]
        held.gate.set()
        await first
        assert len((await service.search(live, live.index, small_rows(1)[0], 3, where="n > 1"))[0]) == 3

    served(scenario, folder)


def test_filters_run_in_the_pool_alone_however_few_the_index_keeps(folder, made, monkeypatch):
    from dualenc.index.where import Where

    names, plain = [], Where._run
    monkeypatch.setattr("dualenc.index.where.MASKS", 1)
    monkeypatch.setattr(
        Where, "_run", lambda self, *more: names.append(threading.current_thread().name) or plain(self, *more)
    )

    async def scenario(service, live):
        for _ in range(2):
            for i in range(20):
                await service.search(live, live.index, small_rows(1)[0], 3, where=f"n > {i}")

    served(scenario, folder)
    assert len(names) == 40 and all(name.startswith("pool") for name in names)


def test_classifiers_are_the_mean_of_their_prompts_and_kept(folder, made):
    classes, templates = ("cat", "dog", "{x}"), ("a {}", "one {c} {}")

    async def scenario(service, live):
        rows = await service.classifier(live, classes, templates)
        for row, name in zip(rows, classes, strict=True):
            mean = fake_row(f"a {name}".encode()) + fake_row(f"one {name} {name}".encode())
            assert np.allclose(row, mean / np.linalg.norm(mean), atol=1e-6)
        calls = list(made[0].calls)
        assert np.array_equal(await service.classifier(live, classes, templates), rows) and made[0].calls == calls
        many = await service.classifier(live, tuple(map(str, range(40))), ("{}",))
        assert many.shape == (40, DIM) and max(made[0].calls) <= embeddings.PIECE

    served(scenario, folder)


def test_an_index_that_changes_under_load_fails_no_request(folder, made, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.01)
    rows, rounds = small_rows(50), 3

    async def scenario(service, live):
        stop, answered, seen = asyncio.Event(), 0, set()

        async def client(number):
            nonlocal answered
            while not stop.is_set():
                index = live.index
                vector = (await service.texts(live, [f"{number} {answered % 7}"], index))[0]
                ids, _ = await service.search(live, index, vector, 10, where="n >= 0" if answered % 3 == 0 else None)
                assert len(index.rows(ids)) == 10 == len(ids)
                own, _ = await service.search(live, index, rows[number], 1)
                assert own.tolist() == [number]
                answered += 1
                seen.add(live.generation)

        def write(number):
            writer = Index.open(folder)
            writer.add(small_rows(5, seed=100 + number), metadata=[{"caption": "new", "n": 1000}] * 5)
            writer.remove(writer.ids[-2:])
            if number % 2:
                writer.compact()
            return writer.manifest["generation"]

        clients = [asyncio.create_task(client(number)) for number in range(4)]
        for number in range(rounds):
            last = await asyncio.to_thread(write, number)
            while live.generation < last:
                await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*clients)  # a request that failed raises here
        assert len(live.index) == 50 + 3 * rounds and len(seen) >= rounds and answered > 10

    served(scenario, folder)


def test_a_new_encoder_is_there_before_its_index_is(folder, made, tmp_path, monkeypatch):
    monkeypatch.setattr(live, "SECONDS", 0.01)
    monkeypatch.setattr("dualenc.serve.service.LINGER", 0.05)

    async def scenario(service, live):
        old = live.index
        await service.texts(live, ["a"])
        small_index(tmp_path / "new", 20, encoder=FakeEncoder(fingerprint="b" * 64))
        await asyncio.to_thread(folder.rename, tmp_path / "old")
        await asyncio.to_thread((tmp_path / "new").rename, folder)
        while live.index is old:
            await asyncio.sleep(0.005)
        assert service.ready()["a"]["encoder"] == "ready" and len(made) == 2
        assert made[1].fingerprint == "b" * 64 and made[0].fingerprint == FINGERPRINT
        await service.texts(live, ["a"])
        assert made[1].calls == [1]  # the other encoder's row of the same text is not its own
        await service.texts(live, ["b"], old)  # a request that began before
        ids, scores = await service.search(live, old, small_rows(50)[40], 1)
        assert ids.tolist() == [40] and scores[0] > 0.999  # a row that the new index does not have
        assert made[0].calls == [1, 1]

    served(scenario, folder)


def test_a_generation_whose_encoder_does_not_load_waits_until_it_does(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(live, "SECONDS", 0.01)
    monkeypatch.setattr(encoders, "RETRY", 0.05)
    monkeypatch.setattr(encoders, "SELDOM", 0.05)
    broken, warmed = [True], []
    monkeypatch.setattr("dualenc.serve.service.warm", lambda index: warmed.append(len(index)))

    def load(need, precision, threads):
        if broken[0] and need.fingerprint != FINGERPRINT:
            raise OSError("the network is away")
        return FakeEncoder(need.dim, need.fingerprint)

    monkeypatch.setattr(encoders, "load", load)

    async def scenario(service, live):
        await service.texts(live, ["a"])
        small_index(tmp_path / "new", 20, encoder=FakeEncoder(fingerprint="b" * 64))
        await asyncio.to_thread(folder.rename, tmp_path / "old")
        await asyncio.to_thread((tmp_path / "new").rename, folder)
        while "stays at generation" not in caplog.text:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)  # some more looks
        assert len(live.index) == 50 and service.ready()["a"]["encoder"] == "ready" and warmed == [50]
        assert len(await service.texts(live, ["b"])) == 1
        stays = [record.getMessage() for record in caplog.records if "stays" in record.getMessage()]
        assert len(stays) == 1 and "does not load: the network is away" in stays[0]
        broken[0] = False
        while len(live.index) != 20:
            await asyncio.sleep(0.005)
        assert service.ready()["a"]["encoder"] == "ready" and warmed == [50, 20]

    with caplog.at_level(logging.WARNING, "dualenc.serve"):
        served(scenario, folder)


def test_stopping_finishes_what_is_queued_and_says_so_to_what_comes_late(folder, made):
    async def main():
        service = Service(Settings({"a": folder}, threads=1))
        await service.start()
        live = service.live("a")
        await service.texts(live, ["a"])
        tasks = [asyncio.create_task(service.search(live, live.index, row, 1)) for row in small_rows(30)]
        await asyncio.sleep(0)
        await service.stop()
        assert [int(ids[0]) for ids, _ in await asyncio.gather(*tasks)] == list(range(30))
        with pytest.raises(Problem) as error:
            await service.search(live, live.index, small_rows(1)[0], 1)
        assert problem(error)[0] == 503
        assert not [t.name for t in threading.enumerate() if t.name.startswith(("lane", "pool"))]

    asyncio.run(main())


def test_an_index_that_does_not_open_is_refused_at_once(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such index"):
        Service(Settings({"a": tmp_path / "none"}))


def test_a_cache_stays_within_its_bytes_and_forgets_the_oldest():
    cache = Cache("test", 1000)
    for number in range(100):
        cache.put(number, str(number), 100)
        cache.get(0)
    assert len(cache) == 10 and cache.bytes == 1000
    assert cache.get(0) == "0" and cache.get(50) is None and cache.get(99) == "99"
    cache.put("large", "more than all may take", 1001)
    cache.put(99, "anew", 50)
    assert cache.get("large") is None and cache.get(99) == "anew" and (len(cache), cache.bytes) == (10, 950)


def test_a_kept_row_holds_no_batch_and_nobody_writes_into_it():
    cache = Cache("test", 10_000)
    batch = np.ones((100, 16), np.float32)
    embeddings._keep(cache, "row", batch[3], 5)
    kept = cache.get("row")
    assert kept.base is None and cache.bytes == 64 + 5 + embeddings.OVERHEAD
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = 2


@pytest.mark.full
def test_memory_stays_flat_over_many_requests(folder, made, monkeypatch):
    import resource

    monkeypatch.setattr(embeddings, "TEXT_BYTES", 1 << 20)

    async def scenario(service, live):
        async def some(first, count):
            for start in range(first, first + count, 50):
                rows = await service.texts(live, [f"text {i}" for i in range(start, start + 50)])
                await asyncio.gather(
                    *(service.search(live, live.index, row, 10, where=f"n > {start % 400}") for row in rows)
                )

        await some(0, 20_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await some(20_000, 80_000)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB

    served(scenario, folder, patience=900, threads=1)
