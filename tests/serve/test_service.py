"""The engine as the routes call it: embeddings, searches one by one and together, and an index that changes under load."""

import asyncio
import threading

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


def served(scenario, *folders, **settings):
    """Run `scenario(service, live)` with a service of these folders, the first of which is named a."""

    async def main():
        names = dict(zip("abc", folders, strict=False))
        service = Service(Settings(names, **{"threads": 2, **settings}))
        await service.start()
        try:
            return await asyncio.wait_for(scenario(service, service.live(None)), 30)
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


def test_a_text_that_fails_fails_alone(folder, monkeypatch):
    fake = FakeEncoder()
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
            assert problem(error) == (500, "fake is damaged")
        assert service.ready()["a"]["encoder"] == "failed: fake is damaged"
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
        plain = live.index.ids_where

        def slow(where):
            calls.append(where)
            assert gate.wait(10)
            return plain(where)

        live.index.ids_where = slow
        vector = small_rows(1)[0]
        filtered = [asyncio.create_task(service.search(live, live.index, vector, 3, where="n > 4")) for _ in range(2)]
        for _ in range(20):
            await service.search(live, live.index, vector, 3)
        assert not any(task.done() for task in filtered)
        gate.set()
        assert all((ids > 4).all() for ids, _ in await asyncio.gather(*filtered))
        before = len(calls)
        await service.search(live, live.index, vector, 3, where="n > 4")
        assert len(calls) == before  # kept

    served(scenario, folder)


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
        for unfit in ((("cat",), templates), (classes, ()), (tuple(map(str, range(20_001))), ("{}",))):
            with pytest.raises(Problem) as error:
                await service.classifier(live, *unfit)
            assert problem(error)[0] == 400

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
    cache = Cache("test", 10 * (400 + 64))
    block = np.ones((100, 16), np.float32)
    for number in range(100):
        cache.put(number, block[number])
        cache.get(0)
    assert len(cache) == 10 and cache.bytes == 10 * (400 + 64)
    assert cache.get(0) is not None and cache.get(50) is None and cache.get(99) is not None
    assert cache.get(99).base is None  # a row of its own, which does not hold on to its batch
    cache.put("large", np.ones(10_000))
    cache.put(99, block[0])
    assert cache.get("large") is None and len(cache) == 10
    with pytest.raises(ValueError, match="read-only"):
        cache.get(99)[0] = 2


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

    served(scenario, folder, threads=1)
