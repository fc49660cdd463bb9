"""Packing: what goes in comes out, and every file that cannot is counted and named."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dualenc.data.pack import pack
from dualenc.data.shards import open_source
from dualenc.images import decode
from tests.data.test_images import bomb, encoded, picture

REAL = Path(__file__).parents[3] / "shared" / "data"


def contents(out: Path) -> dict[str, tuple[list[str], dict]]:
    source = open_source(out)
    return {key: (source.sample(i).captions(), source.sample(i).metadata()) for i, key in enumerate(source.keys)}


def image(path: Path, seed: int = 0, kind: str = "JPEG", mode: str = "RGB", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture(mode, seed), kind, **options))
    return path


@pytest.fixture
def root(tmp_path):
    """Three images in a folder, without captions."""
    for i in range(3):
        image(tmp_path / "images" / f"{i}.jpg", seed=i)
    return tmp_path


def table(root: Path, kind: str, rows: list[dict]) -> Path:
    """The same rows in any of the formats."""
    path = root / f"table.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


ALL = pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])


@ALL
def test_every_table_gives_the_same_shards(root, kind):
    rows = [
        {"image": f"{i}.jpg", "caption": f'caption "{i}", with, commas\tand é猫', "split": "ab"[i % 2]}
        for i in range(3)
    ]
    report = pack(table(root, kind, rows), root / "out", images=root / "images")
    assert (report.written, report.captions, dict(report.dropped), dict(report.repaired)) == (3, 3, {}, {})
    expected = {
        str(i): ([f'caption "{i}", with, commas and é猫'], {"image": f"{i}.jpg", "split": "ab"[i % 2]})
        for i in range(3)
    }
    assert contents(root / "out") == expected
    source = open_source(root / "out")
    assert [source.read(i) for i in range(3)] == [(root / "images" / f"{i}.jpg").read_bytes() for i in range(3)]


@ALL
def test_rows_of_one_image_are_its_captions_wherever_they_stand(root, kind):
    order = [0, 1, 0, 2, 1, 0]
    rows = [{"image": f"{i}.jpg" if n % 2 else f"./{i}.jpg", "caption": f"{i} number {n}"} for n, i in enumerate(order)]
    report = pack(table(root, kind, rows), root / "out", images=root / "images")
    assert (report.written, report.captions) == (3, 6)
    captions = {key: captions for key, (captions, _) in contents(root / "out").items()}
    assert captions == {str(i): [f"{i} number {n}" for n, j in enumerate(order) if j == i] for i in range(3)}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_lists_and_several_columns_of_captions_keep_their_order(root, kind):
    rows = [{"file": "0.jpg", "title": "t", "captions": ["a", " ", "b  c"], "tags": ["x"]}]
    report = pack(table(root, kind, rows), root / "out", images=root / "images", caption_columns=["captions", "title"])
    assert contents(root / "out")["0"][0] == ["a", "b c", "t"]
    assert report.repaired == {"empty caption": ["0.jpg"]}
    [sample] = webdataset.WebDataset(str(root / "out" / "000000.tar"), shardshuffle=False).decode()
    assert sample["json"] == {"file": "0.jpg", "tags": ["x"]}


@ALL
def test_a_condition_chooses_rows(root, kind):
    rows = [{"image": f"{i}.jpg", "caption": str(i), "split": "train" if i else "test", "n": i} for i in range(3)]
    path = table(root, kind, rows)
    report = pack(path, root / "out", images=root / "images", where=["split=train"])
    assert (report.written, report.left_out) == (2, 1)
    report = pack(path, root / "both", images=root / "images", where=["split=train", "n=2"])
    assert list(contents(root / "both")) == ["2"]
    with pytest.raises(ValueError, match=r"no row has split=trian.*split: test, train"):
        pack(path, root / "none", images=root / "images", where=["split=trian"])
    with pytest.raises(ValueError, match=r"not COLUMN=VALUE"):
        pack(path, root / "none", where=["train"])


@ALL
def test_classes_are_numbers_or_listed_names(root, kind):
    rows = [
        {"image": f"{i}.jpg", "kind": name, "n": n} for i, (name, n) in enumerate([("dog", 4), ("cat", 0), ("dog", 4)])
    ]
    path = table(root, kind, rows)
    pack(path, root / "names", images=root / "images", class_column="kind")
    source = open_source(root / "names")
    assert ([source.sample(i).label() for i in range(3)], source.sample(0).captions()) == ([1, 0, 1], [])
    assert (root / "names" / "classnames.txt").read_text() == "cat\ndog\n"
    pack(path, root / "numbers", images=root / "images", class_column="n")
    source = open_source(root / "numbers")
    assert [source.sample(i).label() for i in range(3)] == [4, 0, 4]
    assert not (root / "numbers" / "classnames.txt").exists()


def test_keys_come_from_a_column_and_a_second_one_is_dropped(root):
    rows = [
        {"image": "0.jpg", "caption": "a", "id": "x.1"},
        {"image": "1.jpg", "caption": "b", "id": "x.1"},
        {"image": "0.jpg", "caption": "c", "id": "x.1"},
        {"image": "2.jpg", "caption": "d", "id": ""},
    ]
    report = pack(table(root, "csv", rows), root / "out", images=root / "images", key_column="id")
    assert report.dropped == {"key occurs twice": ["0.jpg"], "missing key": ["2.jpg"]}
    assert list(contents(root / "out")) == ["x_1"]


def test_a_folder_with_captions_beside_the_images(tmp_path):
    source = tmp_path / "in"
    image(source / "a.jpg")
    image(source / "sub.d" / "a.b.png", kind="PNG")
    image(source / "sub.d" / "a_b.jpg", seed=1)
    image(source / "bare.jpg")
    image(source / "blank.jpg")
    (source / "a.txt").write_text("one\n\n two  words \r\n", encoding="utf-8-sig")
    (source / "sub.d" / "a.b.txt").write_text("x")
    (source / "sub.d" / "a_b.txt").write_text("y")
    (source / "blank.txt").write_text(" \n")
    (source / "alone.txt").write_text("z")
    (source / "README.md").write_text("z")
    (source / ".hidden.jpg").write_text("z")
    image(source / ".thumbnails" / "a.jpg")
    os.symlink(source / "sub.d", source / "loop")
    report = pack(source, tmp_path / "out")
    assert {key: captions for key, (captions, _) in contents(tmp_path / "out").items()} == {
        "a": ["one", "two words"],
        "sub_d/a_b": ["x"],
        "sub_d/a_b_jpg": ["y"],
    }
    assert report.dropped == {
        "missing caption": ["bare.jpg"],
        "empty caption": ["blank.jpg"],
        "missing image": ["alone.txt"],
        "no image's name": ["README.md"],
        "link to a folder": ["loop"],
    }
    assert report.repaired == {"key was taken, so it was given another": ["sub.d/a_b.jpg"]}
    with pytest.raises(ValueError, match="has no columns"):
        pack(source, tmp_path / "out2", image_column="image")


def messy(folder: Path) -> dict[str, str | None]:
    """Files of every kind that real folders hold: name -> the reason for dropping it, or None where it is packed."""
    folder.mkdir()
    data = encoded(picture(), "JPEG")
    turned = Image.Exif()
    turned[0x0112] = 6
    see_through = picture("RGBA")
    see_through.putalpha(100)
    deep = Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 256)
    files: dict[str, tuple[bytes, str | None]] = {
        "plain.jpg": (data, None),
        "grey.jpg": (encoded(picture("L"), "JPEG"), None),
        "cmyk.jpg": (encoded(picture().convert("CMYK"), "JPEG"), None),
        "palette.png": (encoded(picture().quantize(16)), None),
        "alpha.png": (encoded(see_through), None),
        "alpha.webp": (encoded(see_through, "WEBP"), None),
        "turned.jpg": (encoded(picture(), "JPEG", exif=turned), None),
        "deep.png": (encoded(deep), None),
        "moving.gif": (encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=3)]), None),
        "misnamed.png": (data, None),
        "fax.tif": (encoded(picture().convert("1"), "TIFF"), None),
        "bitmap.bmp": (encoded(picture(), "BMP"), None),
        "cut.jpg": (data[: len(data) // 2], "truncated image"),
        "empty.jpg": (b"", "zero bytes"),
        "page.jpg": (b"<html>404</html>", "not an image"),
        "bomb.png": (bomb(60_000), "too many pixels"),
    }
    for name, (body, _) in files.items():
        (folder / name).write_bytes(body)
    return {name: reason for name, (_, reason) in files.items()}


def check_messy(out: Path, folder: Path, expected: dict[str, str | None], report) -> None:
    assert {n: reason for reason, names in report.dropped.items() for n in names} == {
        n: r for n, r in expected.items() if r
    }
    source = open_source(out)
    good = [name for name, reason in expected.items() if reason is None]
    assert report.written == len(source) == len(good)
    by_image = {source.sample(i).metadata()["image"]: i for i in range(len(source))}
    repaired = {name: reason for reason, names in report.repaired.items() for name in names}
    for name in good:
        written, original = source.read(by_image[name]), (folder / name).read_bytes()
        difference = np.asarray(decode(written)).astype(int) - np.asarray(decode(original))
        plain = Image.open(io.BytesIO(written))
        assert plain.mode in ("RGB", "L") and plain.getexif().get(0x0112, 1) == 1, name
        if name in ("plain.jpg", "grey.jpg", "misnamed.png"):
            assert written == original and name not in repaired
        else:
            assert name in repaired and abs(difference).max() <= (12 if name.endswith(".jpg") else 0), name


def test_a_messy_folder_is_packed_as_far_as_it_goes(tmp_path):
    expected = messy(tmp_path / "in")
    for name in expected:
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"picture {name}")
    report = pack(tmp_path / "in", tmp_path / "out")
    check_messy(tmp_path / "out", tmp_path / "in", expected, report)
    written = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert written == json.loads(json.dumps(report.to_json()))
    assert all(reason in str(report) for reason in {*report.dropped, *report.repaired})
    with pytest.raises(FileExistsError):
        pack(tmp_path / "in", tmp_path / "out")


@ALL
def test_a_messy_table_is_packed_as_far_as_it_goes(tmp_path, kind):
    folder = tmp_path / "in"
    expected = messy(folder)
    os.mkfifo(folder / "pipe.jpg")
    (tmp_path / "secret.jpg").write_bytes(encoded(picture(), "JPEG"))
    rows = [{"image": name, "caption": f"picture {name}"} for name in expected]
    for name, caption, reason in [
        ("none.jpg", "a", "missing file"),
        ("plain.jpg/x.jpg", "a", "missing file"),
        ("x" * 300, "a", "file cannot be read"),
        (".", "a", "path is a folder"),
        ("pipe.jpg", "a", "path is not an ordinary file"),
        ("../secret.jpg", "a", "path leads out of the folder of images"),
        (str(tmp_path / "secret.jpg"), "a", "path leads out of the folder of images"),
        ("sub/../../none.jpg", "a", "path leads out of the folder of images"),
        ("uncaptioned.jpg", " ", "empty caption"),
    ]:
        rows.append({"image": name, "caption": caption})
        expected[name] = reason
    report = pack(table(tmp_path, kind, rows), tmp_path / "out", images=folder)
    check_messy(tmp_path / "out", folder, expected, report)


def test_names_and_captions_that_are_not_utf8(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name in (b"caf\xe9.jpg", b"b.jpg", b"c.jpg"):
        (Path(os.fsdecode(os.fsencode(source) + b"/" + name))).write_bytes(encoded(picture(), "JPEG"))
    (Path(os.fsdecode(os.fsencode(source) + b"/caf\xe9.txt"))).write_bytes("un café".encode())
    (source / "b.txt").write_bytes("latin café\n".encode("latin-1") + b"plain\n")
    (source / "c.txt").write_bytes("latin café\n".encode("latin-1"))
    report = pack(source, tmp_path / "out")
    assert contents(tmp_path / "out") == {
        "b": (["plain"], {"image": "b.jpg"}),
        "caf_e9": (["un café"], {"image": "caf?.jpg"}),
    }
    assert report.dropped == {"caption is not UTF-8": ["c.jpg"]}
    assert report.repaired == {"caption is not UTF-8": ["b.jpg"], "file name is not UTF-8": ["caf\\udce9.jpg"]}
    rows = b"image,caption\ncaf\xe9.jpg,a\nb.jpg,caf\xe9\n"
    (tmp_path / "t.csv").write_bytes(rows)
    report = pack(tmp_path / "t.csv", tmp_path / "table", images=source)
    assert list(contents(tmp_path / "table")) == ["caf_e9"]
    assert report.dropped == {"caption is not UTF-8": ["b.jpg"]}


def test_broken_rows_are_named_and_the_rest_is_packed(root):
    (root / "t.csv").write_text('image,caption\n0.jpg,a\n1.jpg\n2.jpg,b,c\n,d\n"1.jpg",e\n\n')
    report = pack(root / "t.csv", root / "csv", images=root / "images")
    assert sorted(contents(root / "csv")) == ["0", "1"]
    assert report.dropped == {
        "row has another number of fields than the header": ["line 3", "line 4"],
        "row names no image": ["line 5"],
    }
    (root / "t.jsonl").write_bytes(
        b'{"image": "0.jpg", "caption": "a"}\n{"image": "1.jpg"\n[1]\nnull\n'
        b'{"image": 3, "caption": "a"}\n{"image": "1.jpg", "caption": null}\n' + b"[" * 100_000 + b"\n"
        b'{"image": "2.jpg", "caption": "\\ud800"}\n'
    )
    report = pack(root / "t.jsonl", root / "jsonl", images=root / "images")
    assert report.dropped == {
        "row is not a JSON object": ["line 2", "line 3", "line 4", "line 7"],
        "row names no image": ["line 5"],
        "missing caption": ["1.jpg"],
        "caption is not UTF-8": ["2.jpg"],
    }
    rows = "".join(f"{i % 3}.jpg,{'x' * 1000}\n" for i in range(300))
    (root / "quote.csv").write_text('image,caption\n0.jpg,a\n1.jpg,"an open quote\n' + rows)
    report = pack(root / "quote.csv", root / "quote", images=root / "images")
    [reason] = report.dropped
    assert reason.startswith("row is not valid CSV") and report.dropped[reason][0].startswith("lines 3-")


def test_text_in_parquet_that_is_not_utf8_costs_its_row_alone(root):
    values = pyarrow.array([b"0.jpg", b"1.jpg", b"2.jpg"]).cast(pyarrow.string())
    captions = pyarrow.array([b"a", b"caf\xe9", b"c"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"image": values, "caption": captions}), root / "t.parquet")
    report = pack(root / "t.parquet", root / "out", images=root / "images")
    assert sorted(contents(root / "out")) == ["0", "2"]
    assert report.dropped == {"row is not UTF-8": ["row 2"]}


def test_columns_that_do_not_exist_are_named_with_those_that_do(root):
    path = table(root, "csv", [{"image": "0.jpg", "sentence": "a"}])
    with pytest.raises(
        ValueError, match=r"no column 'sentense'; its columns are image, sentence; did you mean 'sentence'"
    ):
        pack(path, root / "out", caption_columns=["sentense"])
    with pytest.raises(ValueError, match=r"which column holds captions.*image, sentence"):
        pack(path, root / "out")
    with pytest.raises(ValueError, match=r"which column holds image paths.*a, b"):
        pack(table(root, "tsv", [{"a": "0.jpg", "b": "a"}]), root / "out")
    with pytest.raises(ValueError, match="two columns are called 'a'"):
        (root / "t.csv").write_text("a,a\n1,2\n")
        pack(root / "t.csv", root / "out")
    assert not (root / "out").exists()


def test_sources_that_are_nothing_say_so(root):
    for name, text in [("empty.csv", ""), ("empty.jsonl", "\n"), ("t.parquet", "hello")]:
        (root / name).write_text(text)
        with pytest.raises(ValueError, match=name):
            pack(root / name, root / "out")
    (root / "t.xls").write_text("")
    with pytest.raises(ValueError, match="name its format"):
        pack(root / "t.xls", root / "out")
    with pytest.raises(ValueError, match="'xml' is not known"):
        pack(root / "t.xls", root / "out", format="xml")
    with pytest.raises(ValueError, match="is a folder, but format says csv"):
        pack(root, root / "out", format="csv")
    with pytest.raises(FileNotFoundError, match="nothing to pack"):
        pack(root / "none.csv", root / "out")
    path = table(root, "csv", [{"image": "0.jpg", "caption": "a"}])
    with pytest.raises(FileNotFoundError, match="no such folder"):
        pack(path, root / "out", images=root / "none")
    with pytest.raises(ValueError, match="nothing could be packed: 1 missing file"):
        pack(path, root / "out")  # the images are in another folder
    (root / "void").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        pack(root / "void", root / "out")
    assert sorted(p.name for p in root.iterdir() if "out" in p.name) == []


def test_shards_have_the_size_asked_for(root):
    path = table(root, "csv", [{"image": f"{i}.jpg", "caption": "a"} for i in range(3)])
    assert pack(path, root / "out", images=root / "images", shard_size=2).shards == ["000000.tar", "000001.tar"]
    assert len(pack(path, root / "bytes", images=root / "images", shard_bytes=1).shards) == 3


CHILD = """
import os, resource, signal, sys
import dualenc.data.pack
module = sys.modules["dualenc.data.pack"]  # the package's `pack` is the function
if sys.argv[1] == "full":  # a disk that takes no more
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
else:  # Ctrl-C at the fifth image
    decode, seen = module.decode_fully, []
    def interrupted(*arguments):
        seen.append(1)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return decode(*arguments)
    module.decode_fully = interrupted
try:
    module.pack(sys.argv[2], sys.argv[3], progress=False)
except (OSError, KeyboardInterrupt) as error:
    sys.exit(type(error).__name__)
"""


@pytest.mark.parametrize(("how", "error"), [("full", "OSError"), ("stop", "KeyboardInterrupt")])
def test_a_full_disk_or_an_interrupt_leaves_nothing(tmp_path, how, error):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    for i in range(20):
        path = tmp_path / "in" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(Image.fromarray(noise)))
        path.with_suffix(".txt").write_text("a")
    run = subprocess.run(
        [sys.executable, "-c", CHILD, how, tmp_path / "in", tmp_path / "out"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.stderr.strip().splitlines()[-1] == error, run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.text(st.characters(codec="utf-8"), max_size=12)), min_size=1, max_size=8)
)
def test_captions_come_back_as_they_went_in(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("pack")
    for i in range(3):
        image(folder / f"{i}.jpg", seed=i)
    for kind in ("jsonl", "parquet"):
        path = table(folder, kind, [{"image": f"{i}.jpg", "caption": text} for i, text in rows])
        expected: dict[str, list[str]] = {}
        for i, text in rows:
            if text.split():
                expected.setdefault(str(i), []).append(" ".join(text.split()))
        if not expected:
            with pytest.raises(ValueError, match="nothing could be packed"):
                pack(path, folder / kind)
        else:
            pack(path, folder / kind)
            assert {key: captions for key, (captions, _) in contents(folder / kind).items()} == expected


REAL_SETS = {
    "flickr8k_160": ({"images": "images", "where": ["split=val"]}, 1000, 5000),
    "emoji_base": ({"caption_columns": ["name"], "where": ["style=noto"]}, None, None),
    "photos_500": ({"images": "images"}, 194, 194),
}


@pytest.mark.full
@pytest.mark.parametrize("name", REAL_SETS)
def test_real_data_packs_in_one_call(tmp_path, name):
    archive = REAL / f"{name}.zip"
    if not archive.exists():
        pytest.skip(f"{archive.name} is not beside the checkout")
    import zipfile

    zipfile.ZipFile(archive).extractall(tmp_path / name)
    [path] = (tmp_path / name).rglob("captions.jsonl")
    options, images, captions = REAL_SETS[name]
    if "images" in options:
        options = options | {"images": path.parent / options["images"]}
    report = pack(path, tmp_path / "out", **options)
    assert report.dropped == {} and report.written == len(open_source(tmp_path / "out"))
    assert images is None or (report.written, report.captions) == (images, captions)


def test_a_relative_folder_of_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption\na.png,black\n")
    assert pack("captions.csv", "out", images="pictures", progress=False).written == 1
    assert open_source("out").keys == ["a"]


def test_a_quote_that_never_closes_is_listed(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    table = tmp_path / "captions.csv"
    table.write_text('image,caption\na.png,"5"" wide"\nb.png,"never closed\nc.png,lost\n')
    report = pack(table, tmp_path / "out", progress=False)
    assert report.written == 1
    assert any("never closed" in reason and "lines 3-4" in names[0] for reason, names in report.dropped.items())
    table.write_text('image,caption\na.png,5" wide\nb.png,"two\nlines"')  # neither is wrong, nor a missing last newline
    assert pack(table, tmp_path / "good", progress=False).written == 2
