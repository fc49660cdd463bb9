"""A table opened as it lies: the same samples as after `data pack`, with the same keys."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualenc.data.pack import pack
from dualenc.data.rows import FORMATS
from dualenc.data.shards import open_source, read_at
from dualenc.embed.describe import describe
from tests.small import png, sample, write_tar

ROWS = [
    {"path": "pics/a.png", "caption": "a cat", "label": "cat", "source": "web"},
    {"path": "pics/b c.png", "caption": "a dog", "label": "dog", "source": "book"},
    {"path": "pics/a.png", "caption": "one more  cat", "label": "cat", "source": "web"},
    {"path": "./pics/../pics/d.PNG", "caption": "a bird", "label": "bird", "source": None},
]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "pics").mkdir()
    for i, name in enumerate(("a.png", "b c.png", "d.PNG", "e.png")):
        (tmp_path / "pics" / name).write_bytes(png(seed=i))
    return tmp_path


def write(path, rows):
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix in (".csv", ".tsv"):
        cut = "\t" if path.suffix == ".tsv" else ","
        lines = [cut.join(names), *(cut.join(str(row.get(n) or "") for n in names) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    elif path.suffix in (".jsonl", ".ndjson"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", sorted(FORMATS))
def test_a_table_gives_what_packing_it_gives(root, suffix):
    table = write(root / f"t{suffix}", ROWS)
    source = open_source(table)
    pack(table, root / "packed", class_column="label", progress=False)
    packed = open_source(root / "packed")
    assert source.keys == packed.keys == ["pics/b_c", "pics/a", "pics/d"]
    for i in range(len(source)):
        mine, theirs = source.sample(i), packed.sample(i)
        assert mine.captions() == theirs.captions() and mine.label() == theirs.label()
        assert mine.parts["image"] == theirs.parts["image"] == source.read(i) == read_at(*source.location(i))
        assert mine.metadata() == theirs.metadata()
    assert source.classes == ["bird", "cat", "dog"]
    assert source.classes == (root / "packed" / "classnames.txt").read_text().split()
    assert source.sample(1).captions() == ["a cat", "one more cat"] and source.sample(1).label() == 1
    assert source.problems == {} and source.names == [str(table)] and source.origin.tolist() == [0, 0, 0]
    assert source.path == str(table)


def test_only_what_is_asked_for_is_read(root):
    source = open_source(write(root / "t.csv", ROWS))
    (root / "pics" / "a.png").unlink()
    assert list(source.sample(1, ("txt", "cls")).parts) == ["txt", "cls"]
    assert source.location(1) is None and source.location(0, "txt") is None
    with pytest.raises(FileNotFoundError):
        source.sample(1)


def test_what_cannot_be_used_is_listed_by_reason(root):
    rows = [
        {"path": "pics/a.png", "caption": "fine"},
        {"path": "pics/gone.png", "caption": "lost"},
        {"path": "../out.png", "caption": "out"},
        {"path": "", "caption": "nowhere"},
        {"path": "pics/e.png", "caption": "  "},
        {"path": "n" * 300 + ".png", "caption": "too long a name"},
    ]
    source = open_source(write(root / "t.csv", rows))
    assert source.keys == ["pics/a"]
    assert {reason: len(names) for reason, names in source.problems.items()} == {
        "missing file": 2,
        "path leads out of the folder of images": 1,
        "row names no image": 1,
        "empty caption": 1,
    }
    assert source.problem_counts[0, "missing file"] == 2
    with pytest.raises(ValueError, match=r"no row of it names an image that can be used: 1 missing file .*--images"):
        open_source(write(root / "u.csv", rows[1:2]))


def test_images_alone_classes_alone_and_some_without_a_class(root):
    source = open_source(write(root / "images.csv", [{"file": "pics/a.png"}, {"file": "pics/e.png"}]))
    assert [source.sample(i).captions() for i in range(2)] == [[], []] and source.classes is None
    source = open_source(write(root / "numbers.csv", [{"file": "pics/a.png", "label": 7}, {"file": "pics/e.png"}]))
    assert source.keys == ["pics/a", "pics/e"] and [source.sample(i).label() for i in (0, 1)] == [7, None]
    assert source.problems == {} and source.classes is None
    none = [{"path": "pics/a.png", "caption": "", "label": ""}, {"path": "pics/e.png", "caption": "y", "label": ""}]
    assert open_source(write(root / "none.jsonl", none)).problems == {"empty caption": ["pics/a.png"]}
    some = [
        {"path": "pics/a.png", "caption": "x", "label": ""},
        {"path": "pics/e.png", "caption": "y", "label": "cat"},
        {"path": "pics/d.PNG", "caption": "z", "label": '["cat", "dog"]'},  # several: not a class but metadata
    ]
    source = open_source(write(root / "some.jsonl", some))
    assert [source.sample(i).label() for i in range(3)] == [None, 0, None]
    table, _ = describe(source, np.arange(3))
    assert table["label"].to_pylist() == [None, 0, None]
    assert table["json_label"].to_pylist() == ["", "cat", '["cat", "dog"]']


def test_keys_of_images_that_differ_in_the_suffix_alone(root):
    (root / "pics" / "a.webp").write_bytes(png())
    source = open_source(
        write(root / "t.csv", [{"path": "pics/a.png", "caption": "1"}, {"path": "pics/a.webp", "caption": "2"}])
    )
    assert source.keys == ["pics/a", "pics/a_webp"]


def test_a_digest_is_of_the_table_and_its_images(root):
    first = open_source(write(root / "t.csv", ROWS)).digest()
    assert open_source(root / "t.csv").digest() == first
    write(root / "t.csv", [*ROWS[:-1], ROWS[-1] | {"caption": "another bird"}])
    assert open_source(root / "t.csv").digest() != first
    write(root / "t.csv", ROWS)
    (root / "pics" / "a.png").write_bytes(png(size=(40, 40)))
    assert open_source(root / "t.csv").digest() != first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,caption\na,b\n", "which column holds image paths.*name, caption"),
        ("", "no columns"),
        ("path,path\na,b\n", "two columns are called 'path'"),
        ("path,caption\n", "it has no rows"),
    ],
)
def test_tables_that_say_nothing_are_refused(root, text, says):
    (root / "t.csv").write_text(text)
    with pytest.raises(ValueError, match=says):
        open_source(root / "t.csv")


def test_a_table_is_opened_alone(root):
    tables = [write(root / "t.csv", ROWS), write(root / "u.csv", ROWS)]
    with pytest.raises(ValueError, match="one at a time"):
        open_source(tables)
    write_tar(root / "0.tar", sample("k"))
    beside = open_source(
        [root / "0.tar", root / "t.csv"]
    )  # as a pattern finds what img2dataset leaves beside its shards
    assert beside.keys == ["k"] and list(beside.problems) == ["not a tar"]
