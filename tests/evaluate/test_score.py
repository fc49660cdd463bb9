"""The table of scores: every column by hand, near-duplicates in the data's order, pictures, and the page of the worst."""

from __future__ import annotations

import doctest
import html
import io
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dualenc.embed.store import Store, open_store
from dualenc.embed.store_writer import StoreWriter
from dualenc.evaluate.page.report import write_report
from dualenc.evaluate.quality import captions, score
from dualenc.evaluate.quality.captions import picture_size, token_counts
from dualenc.evaluate.quality.score import COLUMNS, score_pairs
from dualenc.evaluate.quality.score_page import score_section
from dualenc.evaluate.sections import Picture

CAPTIONS = [["a red fox", "A dog"], ["a dog", "two  cats <b>"], ["a dog"], ["one sheep"], ["the moon"]]


def unit(*angles: float) -> np.ndarray:
    turned = np.radians(angles)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)


def encoded(kind: str, size: tuple[int, int] = (40, 30), **more) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", size, (200, 60, 60)).save(data, kind, **more)
    return data.getvalue()


def stored(
    folder: Path, images: np.ndarray, texts: np.ndarray, some: list[list[str]] = CAPTIONS, parts: int = 1
) -> Store:
    """A store of pictures 40 x 30 with these embeddings, one sample after the other, in `parts` parts."""
    bounds = [len(some) * part // parts for part in range(parts + 1)]
    plan = {"bounds": bounds, "dim": images.shape[1], "dtype": "float32", "fingerprint": "f", "encoder": "E"}
    writer = StoreWriter(folder / "store", plan)
    row = np.array([i for i, own in enumerate(some) for _ in own], np.int64)
    flat = [caption for own in some for caption in own]
    data = encoded("PNG")
    (folder / "pictures").write_bytes(data * len(some))
    for part, (low, high) in enumerate(itertools.pairwise(bounds)):
        here = (row >= low) & (row < high)
        metadata = {
            "key": [f"k{i}" for i in range(low, high)],
            "image_path": [str(folder / "pictures")] * (high - low),
            "image_offset": [len(data) * i for i in range(low, high)],
            "image_size": [len(data)] * (high - low),
        }
        words = pa.array([c for c, inside in zip(flat, here, strict=True) if inside], pa.string())
        text = {"key": [f"k{i}" for i in row[here]], "caption": words, "image_row": row[here] - low}
        writer.write_part(part, images[low:high], texts[here], pa.table(metadata), pa.table(text))
    writer.finish()
    return open_store(folder / "store")


IMAGES = unit(0, 60, 61, 120, 1)  # 2 is nearly 1, and 4 nearly 0
TEXTS = unit(0, 90, 60, 60, 61, 120, 181)


def test_every_column(tmp_path: Path) -> None:
    store = stored(tmp_path, IMAGES, TEXTS, parts=2)
    scored = score_pairs(store, tmp_path / "scores.parquet", threshold=0.99, progress=False)
    table = pq.read_table(tmp_path / "scores.parquet")
    assert table.column_names == list(COLUMNS) and table.equals(scored.table)
    column = table.to_pydict()
    assert column["key"] == ["k0", "k0", "k1", "k1", "k2", "k3", "k4"]
    assert column["caption_number"] == [0, 1, 0, 1, 0, 0, 0]
    assert column["caption"] == [caption for own in CAPTIONS for caption in own]
    assert column["score"] == pytest.approx([1, 0, 1, 1, 1, 1, -1], abs=1e-6)
    assert column["duplicate"] == [False, False, False, False, True, False, True]
    assert column["duplicate_of"] == [None, None, None, None, "k1", None, "k0"]
    assert column["copies"] == [1, 3, 3, 1, 3, 1, 1]
    assert column["words"] == [3, 2, 2, 3, 2, 2, 2]
    assert column["tokens"] == [None] * 7 == column["truncated"]
    assert (column["width"], column["height"]) == ([40] * 7, [30] * 7)
    assert column["relative"][2] == column["relative"][3]  # the same embeddings
    smaller = [sum(other < value for other in column["relative"]) / 7 for value in column["relative"]]
    assert column["percentile"] == pytest.approx(smaller) and smaller[6] == 0
    about = json.loads(table.schema.metadata[b"dualenc"])
    assert about == {"store": str(store.folder), "encoder": "E", "fingerprint": "f", "threshold": 0.99, "seed": 0}
    report = scored.report
    assert (report["pairs"], report["images"], report["duplicates"], report["repeated_captions"]) == (7, 5, 2, 3)
    assert report["score/p50"] == pytest.approx(1) and report["truncated_captions"] is None


def test_of_near_duplicates_the_first_in_the_data_stays(tmp_path: Path) -> None:
    store = stored(tmp_path, unit(10, 200, 201, 10.1, 202), unit(10, 10, 200, 200, 201, 10, 202))
    table = score_pairs(store, tmp_path / "s.parquet", threshold=0.9998, progress=False).table
    of = dict(zip(table["key"].to_pylist(), table["duplicate_of"].to_pylist(), strict=True))
    assert of == {"k0": None, "k1": None, "k2": "k1", "k3": "k0", "k4": "k1"}  # k4 is near k2 alone, which is near k1


def test_random_pairs_are_never_right_ones(tmp_path: Path) -> None:
    """Each image fits its own captions alone, so a random pair scores 0."""
    some = [["x"]] * 4
    store = stored(tmp_path, np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), some)
    scored = score_pairs(store, tmp_path / "s.parquet", progress=False)
    assert scored.table["score"].to_pylist() == [1.0] * 4 and scored.random.tolist() == [0.0] * 4


def test_a_null_where_nothing_can_be_told(tmp_path: Path) -> None:
    """In SQL a NaN is larger than every number, and would pass any filter."""
    store = stored(tmp_path, unit(0), unit(0), [["alone"]])
    scored = score_pairs(store, tmp_path / "s.parquet", progress=False)
    table = scored.table
    assert table["relative"].to_pylist() == [None] == table["percentile"].to_pylist()
    assert scored.report["relative/mean"] is None and scored.report["random_pairs/score/mean"] is None
    section = score_section(scored)
    assert [panel.title for panel in section.figures] == ["Pairs by score"]
    write_report(tmp_path / "page", scored.report, [section])


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path, IMAGES, TEXTS)
    (tmp_path / "there").write_text("mine")
    with pytest.raises(FileExistsError):
        score_pairs(store, tmp_path / "there")
    with pytest.raises(ValueError, match="threshold"):
        score_pairs(store, tmp_path / "s.parquet", threshold=1.5, progress=False)
    with pytest.raises(ValueError, match="0 captions"):
        (tmp_path / "none").mkdir()
        score_pairs(stored(tmp_path / "none", unit(0), TEXTS[:0], [[]]), tmp_path / "s.parquet", progress=False)
    (tmp_path / "texts").mkdir()
    folder = stored(tmp_path / "texts", IMAGES, TEXTS[:5], [["one"]] * 5).folder
    shutil.rmtree(folder / "img_emb")
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match="0 images and 5 captions"):
        score_pairs(open_store(folder), tmp_path / "s.parquet", progress=False)
    assert not (tmp_path / "s.parquet").exists()


def test_sizes_of_pictures(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    long = encoded("JPEG", (50, 20), exif=exif, comment=b"x" * 65_000)  # with 16 KiB more, past what is read at first
    files = {"a.png": encoded("PNG"), "b.webp": encoded("WEBP", (7, 9)), "c.jpg": long, "d.jpg": b"no picture"}
    found = {}
    for name, data in files.items():
        (tmp_path / name).write_bytes(b"before" + data)
        found[name] = picture_size(Picture(str(tmp_path / name), 6, len(data)))
    assert found == {"a.png": (40, 30), "b.webp": (7, 9), "c.jpg": (20, 50), "d.jpg": None}
    assert picture_size(Picture(str(tmp_path / "gone"), 0, 10)) is None and picture_size(None) is None


def test_tokens(encoder_spec: dict) -> None:
    length = encoder_spec["context_length"]
    count, cut = token_counts(["a", "a red fox", " ".join(["fox"] * length)], encoder_spec, progress=False)
    assert count.tolist() == [3, 5, length + 2] and cut.tolist() == [False, False, True]


@pytest.fixture
def encoder_spec() -> dict:
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    symbols = [*letters, *(f"{letter}</w>" for letter in letters), "fo", "fox</w>", "re", "red</w>", "<start>", "<end>"]
    merges = [["f", "o"], ["fo", "x</w>"], ["r", "e"], ["re", "d</w>"]]
    of_byte = [chr(b) if chr(b) in letters else "a" for b in range(256)]
    return {"context_length": 8, "pad_to_longest": True, "clean": "lower", "pattern": r"\p{L}+", "symbols": symbols,
            "bytes": of_byte, "merges": merges, "specials": ["<start>", "<end>"]}  # fmt: skip


def test_the_page_shows_the_worst_first(tmp_path: Path) -> None:
    scored = score_pairs(stored(tmp_path, IMAGES, TEXTS), tmp_path / "s.parquet", threshold=0.99, progress=False)
    section = score_section(scored, examples=3)
    worst, middle, twins = section.examples
    order = np.argsort(scored.table["relative"].to_pylist(), kind="stable")[:3]
    assert [row.items[0].text for row in worst.rows] == [scored.table["caption"][int(i)].as_py() for i in order]
    assert worst.rows[0].query.text == "k4" and worst.rows[0].items[0].note == "−1.000"
    assert all(row.found is None for part in section.examples for row in part.rows)  # nobody says that they are wrong
    assert len(middle.rows) == 1
    assert {tuple(item.text for item in row.items) for row in twins.rows} == {("k1", "k2"), ("k0", "k4")}
    page = write_report(tmp_path / "page", scored.report, [score_section(scored, examples=7)]).read_text()
    assert "✗" not in page and "✓" not in page and "<q" not in page  # a key is no quotation
    assert page.count("data:image/jpeg;base64") >= 8 and html.escape("two  cats <b>") in page and "cats <b>" not in page
    assert [part.rows for part in score_section(scored, examples=0).examples] == []


def test_examples() -> None:
    for module in (captions, score):
        found = doctest.testmod(module)
        assert found.failed == 0 and found.attempted >= 2
