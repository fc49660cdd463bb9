"""Encoders: loaded in the background, shared by fingerprint, refused where they are another's; and precisions."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from dualenc.serve import encoders
from dualenc.serve.encoders import Encoders, Need
from dualenc.serve.threads import plan
from tests.serve.fakes import DIM, FINGERPRINT, FakeEncoder, fake_row, use_fake_encoders


def index(encoder="somewhere/encoder", fingerprint=FINGERPRINT, dim=DIM):
    return SimpleNamespace(encoder=encoder, fingerprint=fingerprint, dim=dim)


def within(scenario, override=None):
    """Run `scenario(encoders)` and close what it opened."""

    async def main():
        all_of_them = Encoders(override, "auto", plan(1))
        try:
            return await asyncio.wait_for(scenario(all_of_them), 10)
        finally:
            for lane in all_of_them.close():
                await asyncio.to_thread(lane.join)

    return asyncio.run(main())


async def settled(some, *indexes):
    """The slots of indexes, when they are loaded or have failed."""
    slots = [some.slot(each) for each in indexes]
    for slot in slots:
        await slot.wait(10)
    return slots


def test_it_loads_in_the_background_and_embeds_through_its_lanes(monkeypatch):
    gate = threading.Event()

    def load(need, precision, threads):
        assert need == Need("somewhere/encoder", FINGERPRINT, DIM) and precision == "auto" and threads == 1
        assert gate.wait(10)
        return FakeEncoder()

    monkeypatch.setattr(encoders, "load", load)

    async def scenario(some):
        assert some.state(index()) == "loading"  # nothing has begun yet
        slot = some.slot(index())
        await slot.wait(0.01)
        assert slot.state == some.state(index()) == "loading" and not slot.loaded.done()
        gate.set()
        await slot.wait(10)
        assert some.state(index()) == "ready"
        rows = await asyncio.gather(slot.lanes["text"].do(["a", "b"], size=2), slot.lanes["text"].do(["c"]))
        assert np.array_equal(np.concatenate(rows), [fake_row(text) for text in (b"a", b"b", b"c")])

    within(scenario)


def test_indexes_of_one_fingerprint_share_one_encoder(monkeypatch):
    made = use_fake_encoders(monkeypatch)
    monkeypatch.setattr(FakeEncoder, "text_seconds", 0.0, raising=False)

    async def scenario(some):
        one, same, moved = await settled(some, index(), index(), index(encoder="elsewhere/copy"))
        assert one is same and moved is not one
        assert one.quick is not None and moved.quick is one.quick
        assert len(made) == 1 and moved.lanes is one.lanes and moved.loaded.result() is one.loaded.result()
        [unsigned] = await settled(some, index(fingerprint=None))  # does not say whose it is: by name
        assert len(made) == 1 and unsigned.lanes is one.lanes
        [other] = await settled(some, index(fingerprint="b" * 64))
        assert len(made) == 2 and other.lanes is not one.lanes

    within(scenario)


def test_an_encoder_that_is_not_the_indexes_is_refused(monkeypatch):
    monkeypatch.setattr(encoders, "load", lambda *_: FakeEncoder(8, "b" * 64))

    async def scenario(some):
        foreign, wide = await settled(some, index(), index(fingerprint=None))
        assert "has fingerprint bbbbbbbbbbbb…, the index holds" in str(foreign.loaded.exception())
        assert "makes vectors of 8 dimensions, the index holds 16" in str(wide.loaded.exception())
        assert foreign.state == wide.state == some.state(index()) == "failed"

    within(scenario, override="/srv/secret/encoder")


def test_why_it_did_not_load_stands_in_the_log_alone(monkeypatch, caplog):
    def load(need, precision, threads):
        raise FileNotFoundError(f"{need.name}: no such encoder;\nsee /srv/other/secret")

    monkeypatch.setattr(encoders, "load", load)

    async def scenario(some):
        [slot] = await settled(some, index("/srv/secret/encoder"))
        assert slot.state == "failed"

    within(scenario)
    assert "/srv/secret/encoder: no such encoder; see /srv/other/secret" in caplog.text  # the log is the operator's


def test_one_that_failed_is_tried_again_after_a_while_and_ever_more_seldom(monkeypatch):
    now, tries, broken, gate = [1000.0], [], [True], threading.Event()
    monkeypatch.setattr(encoders, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def load(need, precision, threads):
        tries.append(now[0] - 1000)
        if broken[0]:
            raise OSError("the network is away")
        assert gate.wait(60)
        return FakeEncoder()

    monkeypatch.setattr(encoders, "load", load)

    async def scenario(some):
        await settled(some, index())
        for _ in range(400):
            now[0] += 5
            await settled(some, index())
        assert tries == [0, 30, 90, 210, 450, 930, 1530]
        broken[0] = False
        now[0] += encoders.SELDOM
        assert some.state(index()) == "loading"  # who asks has it tried
        gate.set()
        [slot] = await settled(some, index())
        now[0] += 10 * encoders.SELDOM
        assert slot is some.slot(index()) and slot.state == "ready" and len(tries) == 8

    within(scenario)


def test_lanes_that_are_handed_on_are_not_let_go_of_meanwhile(monkeypatch):
    asked, gate = threading.Event(), threading.Event()

    class Slow(FakeEncoder):
        fingerprint = property(lambda self: self._asked(), lambda self, value: None)
        held = False

        def _asked(self):
            if self.held:
                asked.set()
                assert gate.wait(10)
            return FINGERPRINT

    encoder = Slow()
    monkeypatch.setattr(encoders, "load", lambda *_: encoder)

    async def scenario(some):
        await settled(some, index())
        encoder.held = True
        slot = some.slot(index(encoder="copy"))
        await asyncio.to_thread(asked.wait, 10)
        keeping = asyncio.create_task(asyncio.to_thread(some.keep, [index(encoder="copy")]))
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(keeping, slot.wait(10))
        assert await slot.lanes["text"].do(["a"]) is not None

    within(scenario)


def test_an_index_without_an_encoder_has_none_unless_one_is_named(monkeypatch):
    use_fake_encoders(monkeypatch)

    async def scenario(some):
        assert some.slot(index(encoder=None)) is None and some.state(index(encoder=None)) == "none"

    within(scenario)

    async def named(some):
        [slot] = await settled(some, index(encoder=None, fingerprint=None))
        assert slot.state == "ready" and slot.need.name == "named"

    within(named, override="named")


def test_what_no_index_needs_any_more_is_let_go_of(monkeypatch):
    use_fake_encoders(monkeypatch)

    async def scenario(some):
        old, shared = index(), index(encoder="copy")
        first, second = await settled(some, old, shared)
        lane = first.lanes["text"]
        some.keep([shared])
        assert await lane.do(["a"]) is not None  # the other index uses it too
        some.keep([])
        with pytest.raises(encoders_closed()):
            await lane.do(["a"])
        [again] = await settled(some, old)
        assert again is not first and again.state == "ready" and second.lanes["text"] is lane

    within(scenario)


def encoders_closed():
    from dualenc.serve.lanes import Closed

    return Closed


def test_closing_while_one_loads_waits_for_nothing(monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(encoders, "load", lambda *_: gate.wait(10) and FakeEncoder())

    async def scenario(some):
        return some.slot(index())

    slot = within(scenario)
    gate.set()
    slot.loaded.result(10)
    for _ in range(1000):  # and what it brings is let go of
        if not any(thread.is_alive() for lane in slot.lanes.values() for thread in lane._threads):
            break
        time.sleep(0.01)
    else:
        raise AssertionError("its lanes are open still")


def test_the_real_one_is_loaded_quietly_and_as_the_index_was_made(encoder, encoder_folder, monkeypatch):
    need = Need(str(encoder_folder), encoder.fingerprint, encoder.dim)
    served = encoders.load(need, "auto", 1)
    assert gc.isenabled() and served.precision == "float32"  # a tiny one
    assert (served.dim, served.fingerprint) == (encoder.dim, encoder.fingerprint)
    assert 0 < served.text_seconds < 10
    monkeypatch.setattr("dualenc.serve.precision.SHORT", 4)  # with start and end
    assert served.short("a dog") and not served.short("a dog!")
    assert served.logit_scale == pytest.approx(encoder.model.logit_scale.exp().item())
    texts = ["a dog", "two dogs and a cat"]
    # as one graph (dualenc.model.traced), whose products are summed in another order
    np.testing.assert_allclose(served.embed_texts(texts), encoder.embed_texts(texts), atol=1e-6, rtol=0)


def test_without_a_graph_no_thread_but_the_lanes_embeds_texts(encoder_folder, monkeypatch):
    monkeypatch.setattr("dualenc.model.encoder.traced_text", lambda model: None)
    assert encoders.load(Need(str(encoder_folder), None, 16), "auto", 1).text_seconds == float("inf")


def test_a_slow_tower_is_not_looked_at_for_long(encoder_folder, monkeypatch):
    from dualenc.serve import precision

    monkeypatch.setattr(precision, "SLOW", 0.0)
    passes = []
    plain = precision.Served.embed_texts
    monkeypatch.setattr(precision.Served, "embed_texts", lambda self, texts: passes.append(texts) or plain(self, texts))
    encoders.load(Need(str(encoder_folder), None, 16), "auto", 1)
    assert passes.count(precision.TEXTS) == 1


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_smaller_types_stay_close(encoder, encoder_folder, precision):
    from PIL import Image

    served = encoders.load(Need(str(encoder_folder), None, encoder.dim), precision, 1)
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 50, 3), np.uint8)) for i in range(3)]
    for small, whole in (
        (served.embed_texts(["a dog", "snow"]), encoder.embed_texts(["a dog", "snow"])),
        (served.embed_images(pictures), encoder.embed_images(pictures)),
    ):
        assert small.dtype == np.float32 and np.allclose(np.linalg.norm(small, axis=1), 1, atol=1e-6)
        assert not np.array_equal(small, whole) and (small * whole).sum(axis=1).min() > 0.998
    assert served.precision == precision and served.fingerprint == encoder.fingerprint


def test_a_type_that_spoils_the_rows_is_refused(encoder_folder, monkeypatch):
    from dualenc.serve import precision

    def spoil(model):
        model.token_embedding.weight.data.mul_(-1)

    monkeypatch.setitem(precision.CASTS, "int8", spoil)
    with pytest.raises(ValueError, match="--precision int8 does not work with this encoder: its rows differ"):
        encoders.load(Need(str(encoder_folder), None, 16), "int8", 1)


def test_the_engine_imports_no_torch():
    code = (
        "import sys; import dualenc.serve.service, dualenc.index.index; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'open_clip', 'fastapi', 'starlette')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
