"""LiT: a frozen image tower's embeddings out of a store give the gradients that the tower gives."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dualenc.cli import main
from dualenc.data.collate import Collate, key_group
from dualenc.data.dataset import Batches
from dualenc.data.module import PairData
from dualenc.data.prepare import Prepare
from dualenc.data.sample import KINDS
from dualenc.data.shards import Shards, open_source
from dualenc.data.transforms import Augment
from dualenc.embed.store import open_store
from dualenc.model.losses import contrastive_loss
from dualenc.model.spec import input_spec
from dualenc.model.towers import image_features, text_features
from dualenc.train import image_store
from dualenc.train.image_store import ABSENT, ImageRows, image_rows
from tests.small import loaded, write_shards
from tests.train.conftest import read_log
from tests.train.stores import unit, write_store


@pytest.fixture(scope="module")
def stores(encoder_folder, shards, tmp_path_factory):
    """The training shards, embedded, by the type of what is stored."""
    folder = tmp_path_factory.mktemp("stores")
    for dtype in ("float32", "float16"):
        words = ["--encoder", encoder_folder, "--data", shards, "--out", folder / dtype, "--dtype", dtype]
        assert main(["embed", *map(str, words), "--workers", "0", "--accelerator", "cpu"]) == 0
    return folder


def training_batch(shards, encoder, pixels):
    source = open_source(str(shards))
    prepare = Prepare(encoder.spec, Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)), 3, decode="exact", pixels=pixels)
    return Batches(source, prepare, all_captions=False)[[(i, 1) for i in range(0, 24, 2)]]


def frozen():
    towers = loaded("vit")
    towers.model.visual.requires_grad_(False)
    return towers.model


def gradients(model, image, text):
    contrastive_loss(image, text_features(model, text), model.logit_scale.exp()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


# --- exactness


@pytest.mark.parametrize(("dtype", "close"), [("float32", 1e-5), ("float16", 5e-3)])
def test_gradients_are_those_of_the_frozen_tower(stores, shards, encoder, dtype, close):
    """Evaluation preprocessing of a 32 px image for a 32 px tower, unaugmented, is what training shows it."""
    seen, stored = training_batch(shards, encoder, True), training_batch(shards, encoder, False)
    assert "image" not in stored and stored["key"] == seen["key"] and torch.equal(stored["text"], seen["text"])
    stored = ImageRows(stores / dtype).attach(stored)
    assert stored["image_embedding"].dtype == torch.float32 and stored["valid"].all()
    with_tower, with_store = frozen(), frozen()
    image = image_features(with_tower, seen["image"])
    expected = gradients(with_tower, image, seen["text"])
    found = gradients(with_store, stored["image_embedding"], stored["text"])
    assert torch.allclose(stored["image_embedding"], image, atol=close)
    assert found.keys() == expected.keys() and "logit_scale" in found and len(found) > 8
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= close * gradient.norm() + 1e-8, name


def test_stored_rows_are_widened_and_made_unit(tmp_path):
    rows = unit(np.random.default_rng(0).normal(size=(40, 512))).astype(np.float32)
    store = write_store(tmp_path / "s", [f"k{i}" for i in range(40)], rows, parts=3, dtype="float16")
    batch = {"group": torch.tensor([key_group(f"k{i}") for i in range(40)]), "reason": [None] * 40}
    found = ImageRows(store.folder).attach(batch | {"valid": torch.ones(40, dtype=torch.bool)})["image_embedding"]
    expected = normalize(torch.from_numpy(rows.astype(np.float16)).double(), dim=1)
    assert torch.allclose(found.double(), expected, atol=2e-7)
    assert torch.allclose(found.norm(dim=1), torch.ones(40), atol=1e-6)
    assert not torch.allclose(torch.from_numpy(rows.astype(np.float16)).float().norm(dim=1), torch.ones(40), atol=1e-6)


# --- rows by key


@settings(max_examples=12)
@given(held=st.sets(st.text(max_size=4), min_size=1, max_size=30), asked=st.lists(st.text(max_size=4), max_size=30))
def test_each_sample_gets_its_own_row(held, asked, tmp_path_factory):
    keys = sorted(held)
    rows = unit(np.random.default_rng(0).normal(size=(len(keys), 3))).astype(np.float32)
    store = write_store(tmp_path_factory.mktemp("keys") / "s", keys, rows, parts=min(2, len(keys)))
    found = ImageRows(store.folder).find(np.array([key_group(key) for key in asked], dtype=np.int64))
    assert found.tolist() == [keys.index(key) if key in held else -1 for key in asked]


def test_what_the_store_lacks_is_dropped_with_its_reason(stores, shards, encoder):
    batch = training_batch(shards, encoder, False)
    batch["reason"][1], batch["valid"][1] = "missing caption", False
    batch["group"][1], batch["group"][4] = key_group("other"), key_group("another")
    found = ImageRows(stores / "float32").attach(batch)
    assert [reason for reason in found["reason"] if reason] == ["missing caption", ABSENT]
    assert found["valid"].tolist() == [i not in (1, 4) for i in range(12)]
    assert torch.allclose(found["image_embedding"].norm(dim=1), torch.ones(12), atol=1e-6)
    rows = open_store(stores / "float32").side("image").take([0, 4, 6])
    assert np.allclose(found["image_embedding"][[0, 2, 3]], rows, atol=1e-6)
    assert found["key"] == batch["key"] and found["text"] is batch["text"]


def test_batches_with_images_stay_as_they_are(stores, shards, encoder):
    batch = training_batch(shards, encoder, True)
    assert ImageRows(stores / "float32").attach(batch) is batch


def test_a_row_that_is_not_unit_is_named(tmp_path):
    rows = unit(np.random.default_rng(0).normal(size=(4, 3))).astype(np.float32)
    store = write_store(tmp_path / "s", list("abcd"), rows)
    rows[2] *= 1.1
    np.save(tmp_path / "s" / "img_emb" / "img_emb_0000.npy", rows)
    batch = {"group": torch.tensor([key_group(k) for k in "dc"]), "reason": [None] * 2, "valid": torch.ones(2).bool()}
    with pytest.raises(ValueError, match=r"row 2 has length 1\.1"):
        ImageRows(store.folder).attach(batch)


# --- the data


def test_images_are_neither_read_nor_decoded(shards, encoder, stores, tmp_path, monkeypatch):
    """The images' bytes are spoilt, and samples are asked for without them."""
    broken = write_shards(tmp_path / "broken", 24, broken=tuple(range(24)))
    asked, sample = set(), Shards.sample

    def noted(self, i, kinds=KINDS):
        asked.update(kinds)
        return sample(self, i, kinds)

    monkeypatch.setattr(Shards, "sample", noted)
    found, expected = (training_batch(folder, encoder, False) for folder in (broken, shards))
    assert asked == {"txt", "json", "cls"} and found["valid"].all()
    assert all(torch.equal(found[k], expected[k]) for k in ("text", "group", "valid", "position"))
    assert not training_batch(broken, encoder, True)["valid"].any()


def test_captions_are_drawn_as_with_images(shards, encoder):
    source = open_source(str(shards))
    prepared = [
        Prepare(encoder.spec, Augment(color_jitter=0.4, word_dropout=0.5), 5, 2, pixels=pixels)
        for pixels in (True, False)
    ]
    rows = [[prepare(source.sample(i), 2, i)["captions"] for i in range(24)] for prepare in prepared]
    assert rows[0] == rows[1]


def test_equal_keys_have_equal_groups_in_every_kind_of_batch(shards, encoder):
    source = open_source(str(shards))
    batches = [
        Batches(source, Prepare(encoder.spec), all_captions=True)[[(i, 0) for i in (3, 5, -1)]],
        Batches(source, Prepare(encoder.spec, Augment()), all_captions=False)[[(i, 9) for i in (5, 3, 3)]],
        Collate(encoder.spec, False)(
            [Prepare(encoder.spec).unusable(-2, "s003", "x"), Prepare(encoder.spec).unusable(-2, "é\udcff", "x")]
        ),
    ]
    a, b, c = (batch["group"].tolist() for batch in batches)
    assert a[0] == b[1] == b[2] == c[0] == key_group("s003") and a[1] == b[0] and len({*a, *c}) == 4
    assert all(batch["group"].dtype == torch.int64 and (batch["group"] >= 0).all() for batch in batches)


@pytest.mark.parametrize("augment", [Augment(), Augment(scale=(1, 1), ratio=(1, 1)), Augment(word_dropout=0.3, gray=0)])
def test_augmentation_that_changes_no_image_may_stay(encoder, augment):
    assert PairData("x", image_store="s", augment=augment, spec=encoder.spec).image_store == "s"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": 64}, r"data.cache 64 keeps decoded images"),
        ({"augment": Augment(flip=0.5)}, r"data.augment.flip changes images"),
        ({"augment": Augment(scale=(0.5, 1.0))}, r"data.augment.scale changes images"),
        ({"augment": Augment(scale=[0.9, 1.0], color_jitter=0.4)}, r"data.augment.color_jitter changes images"),
        ({"augment": Augment(rand_augment=2)}, r"data.augment.rand_augment changes images"),
    ],
)
def test_what_needs_images_is_refused(encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        PairData("x", image_store="s", spec=encoder.spec, **settings)


# --- refusals before any work


class Known:
    """A source, under other keys if given."""

    def __init__(self, source, keys):
        self.keys, self.sample = source.keys if keys is None else keys, source.sample

    def __len__(self):
        return len(self.keys)


def asked(store, shards, keys=None, streams=None):
    source, spec = Known(open_source(str(shards)), keys), input_spec(loaded("vit").model, loaded("vit").tokenizer)
    return SimpleNamespace(image_store=str(store), streams=streams, sources={"train": source}, spec=spec)


def test_a_store_of_other_images_under_the_same_keys_is_refused(
    stores, shards, encoder, encoder_folder, tmp_path, monkeypatch
):
    """Numbered keys are those of every data set; random towers give much the same row to all images."""
    monkeypatch.setattr(image_store, "SAME_IMAGE", 1e-3)
    assert image_rows(asked(stores / "float32", shards), frozen(), str(encoder_folder), None) is not None
    rows, keys = np.load(stores / "float32" / "img_emb" / "img_emb_0000.npy"), list(open_source(str(shards)).keys)
    other = write_store(tmp_path / "other", keys, np.roll(rows, 5, axis=0), fingerprint=encoder.fingerprint)
    with pytest.raises(ValueError, match="has another image under the key"):
        image_rows(asked(other.folder, shards), frozen(), str(encoder_folder), None)


def test_the_store_of_the_encoder_is_taken(stores, shards, encoder_folder, caplog):
    rows = image_rows(asked(stores / "float16", shards), frozen(), str(encoder_folder), None)
    assert rows is not None and len(rows) == 24 and rows.dim == 16 and not caplog.messages
    assert image_rows(SimpleNamespace(image_store=None), frozen(), None, None) is None


def test_a_store_of_fast_decoding_is_taken(shards, encoder_folder, tmp_path):
    words = ["--encoder", encoder_folder, "--data", shards, "--out", tmp_path / "fast", "--decode", "fast"]
    assert main(["embed", *map(str, words), "--workers", "0", "--accelerator", "cpu"]) == 0
    assert image_rows(asked(tmp_path / "fast", shards), frozen(), str(encoder_folder), None) is not None


def test_samples_that_the_store_lacks_are_counted(stores, shards, encoder_folder, caplog):
    keys = ["gone", *open_source(str(shards)).keys, "gone too"]
    assert image_rows(asked(stores / "float16", shards, keys=keys), frozen(), str(encoder_folder), None) is not None
    assert caplog.messages == [f"{stores / 'float16'} lacks 2 of 26 training samples (first: gone), which are dropped"]
    with pytest.raises(ValueError, match=r"has none of the 2 training samples \(first: x\)"):
        image_rows(asked(stores / "float16", shards, keys=["x", "y"]), frozen(), str(encoder_folder), None)
    assert (
        image_rows(asked(stores / "float16", shards, keys=["x"], streams=[["u"]]), frozen(), str(encoder_folder), None)
        is not None
    )


def test_what_does_not_fit_is_refused_in_one_line(stores, shards, encoder_folder, tmp_path):
    good = asked(stores / "float32", shards)
    rows = unit(np.random.default_rng(0).normal(size=(3, 8))).astype(np.float32)
    other = write_store(tmp_path / "other", list("abc"), rows)
    narrow = write_store(tmp_path / "narrow", list("abc"), rows)
    wide = write_store(tmp_path / "wide", list("abc"), unit(np.pad(rows, ((0, 0), (0, 8)))))
    twice = write_store(tmp_path / "twice", list("aba"), rows)
    unknown, cut = tmp_path / "unknown", tmp_path / "cut"
    shutil.copytree(stores / "float32", unknown)
    (unknown / "manifest.json").unlink()
    shutil.copytree(stores / "float32", cut)
    table = next((cut / "metadata").glob("*.parquet"))
    pq.write_table(pq.read_table(table).slice(1), table)
    nameless = tmp_path / "nameless"
    shutil.copytree(other.folder, nameless)
    pq.write_table(pa.table({"name": list("abc")}), next((nameless / "metadata").glob("*.parquet")))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(unknown, unfinished)
    (unfinished / ".parts").mkdir()
    start, tower = str(encoder_folder), frozen()
    cases = [
        ((good, loaded("vit").model, start, None), "model.image_blocks 0"),
        ((good, tower, None, None), "set model.start_from"),
        ((good, tower, start, {"interpolation": "bilinear"}), r"holds embeddings of encoder [0-9a-f]{12}….*embed the"),
        ((asked(wide.folder, shards), tower, start, None), r"holds embeddings of encoder ffffffffffff…"),
        ((asked(narrow.folder, shards), tower, start, None), "of 8 dimensions, and .* has 16"),
        ((asked(twice.folder, shards), tower, start, None), "rows 0 and 2 have the same key"),
        ((asked(unknown, shards), tower, start, None), "nobody recorded which encoder"),
        ((asked(cut, shards), tower, start, None), "24 embeddings and 23 keys"),
        ((asked(nameless, shards), tower, start, None), "no readable column of keys"),
        ((asked(unfinished, shards), tower, start, None), "is not finished"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            image_rows(*arguments)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="no store of images there; make it with `dualenc embed"):
        image_rows(asked(tmp_path / "none", shards), tower, start, None)


# --- whole runs


LIT = {"embed_dim": None, "vision": None, "text": None, "image_blocks": 0}


def weights(root):
    from safetensors.torch import load_file

    return load_file(root / "encoder" / "open_clip_model.safetensors")


def lit(command, root, encoder_folder, *words, **data):
    model = LIT | {"start_from": str(encoder_folder), "temperature": 0.05}
    return command("fit", root, *words, model=model, data=data, trainer={"max_epochs": 2})


def test_a_run_with_the_store_is_one_with_the_frozen_tower(command, encoder_folder, stores, tmp_path):
    assert lit(command, tmp_path / "tower", encoder_folder, decode="exact") == 0
    assert lit(command, tmp_path / "store", encoder_folder, image_store=str(stores / "float32")) == 0
    tower, store = (read_log(tmp_path / name / "log" / "metrics.csv") for name in ("tower", "store"))
    for name in ("train/loss", "val/mean_recall", "data/seen"):
        assert [s for s, _ in store[name]] == [s for s, _ in tower[name]]
        assert np.allclose([v for _, v in store[name]], [v for _, v in tower[name]], atol=1e-5), name
    assert len(store["train/loss"]) == 4 and len({v for _, v in store["train/loss"]}) == 4
    start, after = loaded("vit").model.state_dict(), weights(tmp_path / "store")
    moved = {name for name in after if not torch.equal(after[name], start[name])}
    assert moved and not any(name.startswith("visual.") for name in moved)


def test_a_run_counts_what_the_store_lacks(command, encoder_folder, shards, val_shards, stores, tmp_path):
    half = tmp_path / "half"
    first = sorted(shards.glob("*.tar"))[0]
    words = ["--encoder", encoder_folder, "--data", first, "--out", half]
    assert main(["embed", *map(str, words), "--workers", "0", "--accelerator", "cpu"]) == 0
    assert lit(command, tmp_path / "run", encoder_folder, image_store=str(half)) == 0
    log = read_log(tmp_path / "run" / "log" / "metrics.csv")
    assert [v for _, v in log["data/seen"]] == [12, 12]
    assert [v for _, v in log["data/dropped/not_in_the_store"]] == [12, 12]


def test_a_stream_takes_its_images_from_the_store_too(command, encoder_folder, shards, stores, tmp_path):
    model = LIT | {"start_from": str(encoder_folder)}
    data = {
        "train": [f"pipe:cat {path}" for path in sorted(shards.glob("*.tar"))],
        "image_store": str(stores / "float16"),
    }
    assert command("fit", tmp_path / "run", model=model, data=data, trainer={"max_epochs": 1, "max_steps": 2}) == 0
    log = read_log(tmp_path / "run" / "log" / "metrics.csv")
    assert len(log["train/loss"]) == 2 and [v for _, v in log["data/seen"]] == [24]
    assert not any(name.startswith("data/dropped") for name in log)


def test_a_run_that_trains_the_image_tower_is_refused(command, encoder_folder, stores, tmp_path, capsys):
    model = {"start_from": str(encoder_folder), "embed_dim": None, "vision": None, "text": None}
    assert command("fit", tmp_path / "run", model=model, data={"image_store": str(stores / "float32")}) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "data.image_store" in said and "model.image_blocks 0" in said
    assert not (tmp_path / "run").exists()


def test_hard_negatives_in_a_run(command, stores, tmp_path):
    """Mined from the store of the same data; the run notes what its order was made of."""
    mined = tmp_path / "mined.parquet"
    assert main(["data", "mine", str(stores / "float32"), str(mined), "--neighbours", "3", "--threshold", "1.1"]) == 0
    settings = {"hard_negatives": str(mined), "hard_share": 0.75, "val": None, "zeroshot": None, "test": None}
    assert command("fit", tmp_path / "run", data=settings, trainer={"max_epochs": 2}) == 0
    checkpoint = torch.load(next((tmp_path / "run" / "checkpoints").glob("last*.ckpt")), weights_only=True)
    state = next(v for v in checkpoint.values() if isinstance(v, dict) and "hard_share" in v)
    assert state["hard_share"] == 0.75 and len(state["hard_negatives"]) == 64
    assert json.loads(pq.read_schema(mined).metadata[b"dualenc"])["threshold"] == 1.1


@pytest.mark.parametrize("name", ["finetune_lit", "finetune_hard_negatives"])
def test_the_shipped_config_trains(name, encoder_folder, shards, stores, tmp_path, monkeypatch):
    """Its own settings on tiny towers; the commands before it are those that it opens with."""
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "configs" / f"{name}.yaml").read_text()
    said = [line[1:].split() for line in text.splitlines() if line.startswith("#   dualenc")]
    assert said[-1][:4] == ["dualenc", "fit", "--config", name]
    places = {"runs/finetune/shards/train": str(shards), "ViT-B-32:laion2b_s34b_b79k": str(encoder_folder)}
    for words in said[:-1]:
        quick = ["--workers", "0", "--accelerator", "cpu"] if words[1] == "embed" else ["--threshold", "1.1"]
        assert main([places.get(word, word) for word in words[1:]] + quick) == 0
    words = ["--model.start_from", encoder_folder, "--data.train", shards, "--data.batch_size", 8, "--data.workers", 0]
    words += ["--trainer.accelerator", "cpu", "--trainer.max_epochs", 1, "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", name, *map(str, words)]) == 0
    root = Path(yaml.safe_load(text)["trainer"]["default_root_dir"])
    assert (root / "encoder" / "dualenc.json").is_file()
