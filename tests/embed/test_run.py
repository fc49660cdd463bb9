"""Embedding into a store: parts, jobs, interruptions and devices change nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from dualenc.cli import main
from dualenc.data.shards import open_source, read_at
from dualenc.embed import run
from dualenc.embed.run import embed_source, read_embedded, write_store
from dualenc.embed.store import open_store
from dualenc.images import decode
from tests.small import png, sample, write_shards, write_tar

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"workers": 0, "accelerator": "cpu"}
SINGLY = PLAIN | {
    "batch_size": 1
}  # bit-equal on every processor: on some, a row's last bit depends on who shares its batch


@pytest.fixture(scope="module")
def messy(tmp_path_factory):
    """9 samples: two do not decode, one has no caption, one has three; labels and metadata for some."""
    folder = tmp_path_factory.mktemp("messy")
    members = [
        *sample("a", "red", ["a red one", "red"], cls=2, json={"width": 30, "author": "x"}),
        *sample("b", "blue", []),
        ("c.png", b"no picture"),
        ("c.txt", b"a caption"),
        *sample("d", "green", ["one", "two", "three"], json={"width": "wide", "caption": "kept out"}),
        ("lonely.txt", b"no image"),
    ]
    write_tar(folder / "1.tar", members)
    more = [*sample("e"), ("f.png", png()), ("f.txt", b"\xff"), *sample("g"), *sample("h"), *sample("i", "black")]
    write_tar(folder / "2.tar", more)
    return folder


GOOD = ["a", "b", "d", "e", "g", "h", "i"]


@pytest.fixture(scope="module")
def whole(encoder, messy, tmp_path_factory):
    """The store of one job."""
    out = tmp_path_factory.mktemp("whole") / "store"
    write_store(encoder, open_source(messy), out, **SINGLY)
    return out


def test_a_store_of_fewer_dimensions_is_searched_by_the_same_encoder(encoder_folder, val_shards, tmp_path, capsys):
    store, index = tmp_path / "store", tmp_path / "index"
    words = ["--encoder", str(encoder_folder), "--data", str(val_shards), "--out", str(store), "--workers", "0"]
    assert main(["embed", *words, "--dim", "6"]) == 0
    assert open_store(store).dim == 6
    assert main(["index", "build", str(store), str(index), "--recipe", "flat"]) == 0
    capsys.readouterr()
    assert main(["search", str(index), "a red one", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["eval", "retrieval", "--encoder", str(encoder_folder), "--data", str(store), "--json"]) == 0


def same(one, other):
    a, b = open_store(one, verify=True), open_store(other, verify=True)
    first, second = read_embedded(one), read_embedded(other)
    assert np.array_equal(first.images, second.images) and np.array_equal(first.texts, second.texts)
    assert np.array_equal(first.image_row, second.image_row)
    assert first.metadata.to_pylist() == second.metadata.to_pylist()
    assert first.text_metadata.to_pylist() == second.text_metadata.to_pylist()
    assert first.dropped == second.dropped
    assert a.fingerprint == b.fingerprint and a.encoder == b.encoder
    return True


def test_what_is_embedded_is_what_the_encoder_gives(encoder, messy):
    source = open_source(messy)
    done = embed_source(encoder, source, batch_size=4, **PLAIN)
    rows = [source.keys.index(key) for key in GOOD]
    assert done.images.dtype == done.texts.dtype == np.float32 and done.image_row.dtype == np.int64
    pictures = [decode(source.read(i)) for i in rows]
    assert np.abs(done.images - encoder.embed_images(pictures)).max() < 1e-6
    captions = [(row, caption) for row, i in enumerate(rows) for caption in source.sample(i).captions()]
    assert np.abs(done.texts - encoder.embed_texts([caption for _, caption in captions])).max() < 1e-6
    assert done.image_row.tolist() == [row for row, _ in captions] == [0, 0, 2, 2, 2, 3, 4, 5, 6]
    assert done.text_metadata.to_pylist() == [
        {"key": GOOD[row], "caption": caption, "image_row": row} for row, caption in captions
    ]
    assert sum(done.dropped.values()) == 2 and done.dropped["caption is not UTF-8"] == 1


def test_the_metadata_says_what_is_known(encoder, messy):
    done = embed_source(encoder, open_source(messy), **PLAIN)
    table = done.metadata.to_pylist()
    assert [row["key"] for row in table] == GOOD
    assert [row["caption"] for row in table[:3]] == ["a red one", None, "one"]
    assert [row["captions"] for row in table[:3]] == [["a red one", "red"], [], ["one", "two", "three"]]
    assert [row["label"] for row in table[:3]] == [2, None, None]
    assert [row["width"] for row in table[:4]] == ["30", None, "wide", None]  # a number here, a text there
    assert [row["author"] for row in table[:2]] == ["x", None]
    assert [row["json_caption"] for row in table[:3]] == [None, None, "kept out"]  # a name of ours, another text
    assert done.metadata.schema.field("image_offset").type == pa.int64()
    for row in table:
        place = row["image_path"], row["image_offset"], row["image_size"]
        assert Path(place[0]).is_absolute() and decode(read_at(*place)).size == (32, 32)


def test_results_do_not_depend_on_batches_or_workers(encoder, messy):
    source = open_source(messy)
    one = embed_source(encoder, source, batch_size=1, **PLAIN)
    for settings in ({"batch_size": 64}, {"batch_size": 3, "workers": 2}):
        other = embed_source(encoder, source, **PLAIN | settings)
        assert np.abs(one.images - other.images).max() < 1e-6 and np.abs(one.texts - other.texts).max() < 1e-6
        assert one.metadata == other.metadata and one.text_metadata == other.text_metadata
        assert one.dropped == other.dropped


def test_a_range_of_samples(encoder, messy):
    source = open_source(messy)
    parts = [embed_source(encoder, source, first=a, last=b, **PLAIN) for a, b in ((0, 3), (3, 3), (3, len(source)))]
    done = embed_source(encoder, source, **PLAIN)
    assert [len(part.images) for part in parts] == [2, 0, 5] and parts[1].images.shape == (0, encoder.dim)
    assert np.abs(np.concatenate([p.images for p in parts]) - done.images).max() < 1e-6
    assert [r["key"] for p in parts for r in p.metadata.to_pylist()] == GOOD


def test_images_without_captions(encoder, tmp_path):
    for name in ("x", "y"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.png").write_bytes(png(seed=ord(name)))
    store = write_store(encoder, open_source(tmp_path / "in"), tmp_path / "s", **PLAIN)
    assert (store.rows, store.text_rows) == (2, 0) and store.image_row.shape == (0,)
    assert store.metadata().column("key").to_pylist() == ["x", "y"]
    assert read_embedded(tmp_path / "s").texts.shape == (0, encoder.dim)


def test_the_manifest_knows_whose_embeddings_these_are(encoder, whole, messy):
    store = open_store(whole, verify=True)
    assert store.fingerprint == encoder.fingerprint and store.encoder == encoder.path and store.dim == encoder.dim
    assert store.manifest["dtype"] == "float16" and (store.rows, store.text_rows) == (7, 9)
    dropped = store.manifest["dropped"]
    assert dropped["missing image"] == 1 and dropped["caption is not UTF-8"] == 1 and sum(dropped.values()) == 3
    assert store.manifest["plan"]["source"] == open_source(messy).path


def test_float16_loses_no_more_than_its_rounding(encoder, messy, whole, tmp_path):
    exact = write_store(encoder, open_source(messy), tmp_path / "s", dtype="float32", **SINGLY)
    assert exact.manifest["dtype"] == "float32"
    full, half = read_embedded(tmp_path / "s"), read_embedded(whole)
    assert np.array_equal(full.images.astype(np.float16).astype(np.float32), half.images)


@pytest.mark.parametrize("part_samples", [1, 2, 4])
def test_parts_make_the_same_store(encoder, messy, whole, tmp_path, part_samples):
    source = open_source(messy)
    store = write_store(encoder, source, tmp_path / "s", part_samples=part_samples, **SINGLY)
    assert len(list((tmp_path / "s" / "img_emb").iterdir())) == -(-len(source) // part_samples)
    assert store.rows == 7 and same(whole, tmp_path / "s")
    write_store(encoder, source, tmp_path / "batches", part_samples=part_samples, **PLAIN)
    assert same_within(whole, tmp_path / "batches")


def same_within(one, other):
    """Batches of other sizes round differently in the last bit of float32, hardly ever in float16's."""
    first, second = read_embedded(one), read_embedded(other)
    assert np.abs(first.images - second.images).max() < 1e-3 and np.abs(first.texts - second.texts).max() < 1e-3
    assert first.metadata.to_pylist() == second.metadata.to_pylist() and first.dropped == second.dropped
    return np.array_equal(first.image_row, second.image_row)


@pytest.mark.parametrize("order", [(1, 2, 3), (3, 1, 2)])
def test_jobs_make_the_same_store(encoder, messy, whole, tmp_path, order):
    source = open_source(messy)
    for number in order[:-1]:
        assert write_store(encoder, source, tmp_path / "s", part=(number, 3), part_samples=2, **SINGLY) is None
        assert not (tmp_path / "s" / "manifest.json").exists()
        with pytest.raises(ValueError, match="not finished"):
            open_store(tmp_path / "s")
    assert write_store(encoder, source, tmp_path / "s", part=(order[-1], 3), part_samples=2, **SINGLY).rows == 7
    assert same(whole, tmp_path / "s")


def test_more_jobs_than_samples(encoder, tmp_path):
    source = open_source(write_tar(tmp_path / "t.tar", sample("a") + sample("b", "blue")))
    found = [write_store(encoder, source, tmp_path / "s", part=(i, 5), **PLAIN) for i in range(1, 6)]
    assert found[:4] == [None] * 4 and found[4].rows == 2


def test_fields_with_names_of_ours_are_kept_under_others(encoder, tmp_path):
    fields = {"key": "other", "label": 7, "json_key": "mine", "image_path": "a/b.png", "captions": "x"}
    same_as_ours = {"key": "b", "caption": "a  red\npicture", "label": 3}  # what img2dataset writes
    members = [*sample("a", cls=3, json=fields), *sample("b", cls=3, json=same_as_ours)]
    done = embed_source(encoder, open_source(write_tar(tmp_path / "t.tar", members)), **PLAIN)
    first, second = done.metadata.to_pylist()
    assert (first["key"], first["label"]) == ("a", 3) and first["image_path"].endswith("t.tar")
    assert (first["json_json_key"], first["json_key"]) == ("other", "mine")
    assert (first["json_label"], first["json_image_path"], first["json_captions"]) == (7, "a/b.png", "x")
    assert "json_caption" not in first and {v for k, v in second.items() if k.startswith("json_")} == {None}


def test_fields_that_arrow_cannot_hold_do_not_cost_the_data_set(encoder, tmp_path):
    odd = {"author": "half \ud800 pair", "id": 2**70, "score": float("nan"), "all": float("inf"), "a\udfffb": 1}
    plain = {"author": "x", "id": 5, "score": 0.5}
    members = [*sample("a", json=odd), *sample("b", json=plain)]
    write_store(encoder, open_source(write_tar(tmp_path / "t.tar", members)), tmp_path / "s", **PLAIN)
    first, second = open_store(tmp_path / "s", verify=True).metadata().to_pylist()
    assert (first["author"], first["id"], first["score"], first["a?b"]) == ("half ? pair", str(2**70), None, 1)
    assert (second["author"], second["id"], second["score"]) == ("x", "5", 0.5) and "all" not in first


class Stop(Exception):
    pass


def test_the_encoder_is_usable_afterwards(encoder, messy, monkeypatch):
    moved = []
    predict, to = run.pl.Trainer.predict, encoder.model.to

    def leaves_it_elsewhere(*args, **settings):
        predict(*args, **settings)
        encoder.model.train()  # and on the CPU, which only a GPU machine would show
        moved.clear()
        raise Stop

    monkeypatch.setattr(run.pl.Trainer, "predict", leaves_it_elsewhere)
    monkeypatch.setattr(encoder.model, "to", lambda *where: (moved.append(where), to(*where))[1])
    with pytest.raises(Stop):
        embed_source(encoder, open_source(messy), **PLAIN)
    assert moved == [(encoder.device,)] and not encoder.model.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: on a CPU the model cannot be elsewhere")
def test_texts_are_embedded_on_the_gpu_after_a_source(messy):
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    encoder = DualEncoder(loaded("vit"), device="cuda")
    before = encoder.embed_texts(["a red circle"])
    embed_source(encoder, open_source(messy), workers=0)
    assert np.abs(encoder.embed_texts(["a red circle"]) - before).max() < 1e-5


def test_an_interrupted_job_goes_on_where_it_stood(encoder, messy, whole, tmp_path, monkeypatch):
    source, real, calls = open_source(messy), embed_source, []

    def embed(*args, **settings):
        calls.append(settings["first"])
        if len(calls) == 3:
            raise Stop
        return real(*args, **settings)

    monkeypatch.setattr(run, "embed_source", embed)
    with pytest.raises(Stop):
        write_store(encoder, source, tmp_path / "s", part_samples=2, **SINGLY)
    write_store(encoder, source, tmp_path / "s", part_samples=2, **SINGLY)
    assert len(calls) == 3 + 3 and calls[3] == calls[2]  # five parts: two were done, the third is made again
    assert same(whole, tmp_path / "s")
    write_store(encoder, source, tmp_path / "s", part_samples=2, **SINGLY)
    assert len(calls) == 6  # a finished store is left as it is


def test_a_store_that_was_begun_otherwise_is_refused(encoder, messy, whole):
    with pytest.raises(ValueError, match="begun with another plan") as error:
        write_store(encoder, open_source(messy), whole, dtype="float32", **PLAIN)
    assert "float16" in str(error.value) and "\n" not in str(error.value)


def test_another_source_of_the_same_name_is_refused(encoder, messy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(messy, data)
    write_store(encoder, open_source([data / "1.tar", data / "2.tar"]), tmp_path / "s", **PLAIN)
    write_store(encoder, open_source([data / "1.tar", data / "2.tar"]), tmp_path / "s", **PLAIN)
    (data / "2.tar").rename(data / "3.tar")  # "1.tar (and 1 more)" still, with as many samples
    with pytest.raises(ValueError, match=r"begun with another plan \(source_digest: "):
        write_store(encoder, open_source([data / "1.tar", data / "3.tar"]), tmp_path / "s", **PLAIN)


@pytest.mark.parametrize("finished", [False, True])
def test_an_encoder_that_was_moved_goes_on(encoder_folder, messy, whole, tmp_path, finished):
    from dualenc.model.encoder import DualEncoder

    source, encoder = open_source(messy), DualEncoder.load(encoder_folder, device="cpu")
    for number in (1, 2)[: 1 + finished]:
        write_store(encoder, source, tmp_path / "s", part=(number, 2), **PLAIN)
    shutil.copytree(encoder_folder, tmp_path / "moved")
    moved = DualEncoder.load(tmp_path / "moved", device="cpu")
    store = write_store(moved, source, tmp_path / "s", part=(2, 2), **PLAIN)
    assert store.rows == 7 and store.encoder == (encoder if finished else moved).path
    assert same_within(whole, tmp_path / "s")


def test_a_store_begun_before_plans_had_digests_goes_on(encoder, messy, tmp_path):
    source = open_source(messy)
    write_store(encoder, source, tmp_path / "s", part=(1, 2), **PLAIN)
    file = tmp_path / "s" / ".parts" / "plan.json"
    begun = json.loads(file.read_text())
    del begun["source_digest"]
    file.write_text(json.dumps(begun))
    assert write_store(encoder, source, tmp_path / "s", part=(2, 2), **PLAIN).rows == 7


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0, .*; use 1 or more"),
        ({"workers": -1}, "workers is -1, .*; use 0 or more"),
        ({"accelerator": "abacus"}, "'abacus' .* cannot be used"),
        ({"devices": 0}, "devices 0 cannot be used"),
    ],
)
def test_settings_that_cannot_be_used_leave_nothing(encoder, messy, tmp_path, settings, said):
    with pytest.raises(ValueError, match=said) as error:
        write_store(encoder, open_source(messy), tmp_path / "s", **PLAIN | settings)
    assert "\n" not in str(error.value) and not (tmp_path / "s").exists()


def test_an_encoder_whose_tokenizer_workers_cannot_have_leaves_nothing(messy, tmp_path):
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    tokenizer = SimpleTokenizer(context_length=16, reduction_mask="simple")
    encoder = DualEncoder(loaded("vit")._replace(tokenizer=tokenizer), device="cpu")
    with pytest.raises(ValueError, match="cannot be carried"):
        write_store(encoder, open_source(messy), tmp_path / "s", **PLAIN)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("part", [(0, 2), (3, 2)])
def test_parts_count_from_one(encoder, messy, tmp_path, part):
    with pytest.raises(ValueError, match="between 1 and n"):
        write_store(encoder, open_source(messy), tmp_path / "s", part=part, **PLAIN)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_nothing_embeddable_leaves_nothing(encoder, tmp_path, jobs):
    source = open_source(write_shards(tmp_path / "in", 3, shards=1, broken=(0, 1, 2)))
    for number in range(1, jobs):
        write_store(encoder, source, tmp_path / "s", part=(number, jobs), **PLAIN)
    with pytest.raises(ValueError, match=r"no image could be embedded .*: 3.*`dualenc data check`") as error:
        write_store(encoder, source, tmp_path / "s", part=(jobs, jobs), **PLAIN)
    assert not (tmp_path / "s").exists() and "\n" not in str(error.value)


def test_reading_refuses_another_encoder(encoder, whole):
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    assert len(read_embedded(whole, encoder).images) == 7
    other = DualEncoder(loaded("vit", seed=1), path="other", device="cpu")
    with pytest.raises(ValueError, match="made by tiny, another encoder than other"):
        read_embedded(whole, other)


def test_a_siglip_encoder_embeds_with_its_whole_context(messy):
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    encoder = DualEncoder(loaded("siglip"), device="cpu")
    done = embed_source(encoder, open_source(messy), **PLAIN)
    captions = done.text_metadata.column("caption").to_pylist()
    assert np.abs(done.texts - encoder.embed_texts(captions)).max() < 1e-6


def embed(*words):
    return ["embed", *map(str, words), "--workers", "0", "--accelerator", "cpu"]


def test_the_command_writes_the_same_store(encoder_folder, messy, tmp_path, capsys):
    common = ("--encoder", encoder_folder, "--data", messy, "--batch-size", 1)
    assert main(embed(*common, "--out", tmp_path / "one")) == 0
    assert "7 images and 9 texts" in capsys.readouterr().out
    for part in ("2/2", "1/2"):
        assert main(embed(*common, "--out", tmp_path / "two", "--part", part)) == 0
    assert same(tmp_path / "one", tmp_path / "two")
    assert open_store(tmp_path / "one").encoder == str(encoder_folder.resolve())


def test_two_devices_write_the_same_store(encoder_folder, messy, tmp_path):
    words = embed("--encoder", encoder_folder, "--data", messy, "--batch-size", 4)
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "dualenc", *words, "--out", str(tmp_path / "two"), "--devices", "2"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("7 images and 9 texts") == 1
    assert same_within(tmp_path / "one", tmp_path / "two")
    assert (
        open_store(tmp_path / "two", verify=True).manifest["dropped"]
        == open_store(tmp_path / "one").manifest["dropped"]
    )
