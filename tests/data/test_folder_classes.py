"""An image folder by class: what counts as evidence, and the class that each image gets."""

import os

import numpy as np
import pytest

from dualenc.data.classes import folder_classes
from dualenc.data.sample import Sample
from dualenc.data.shards import open_source
from dualenc.embed.describe import describe
from tests.small import png, sample, write_tar


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png() if name.endswith(".png") else b"words")
    return root


def labels(root):
    source = open_source(root)
    return {source.keys[i]: source.sample(i).label() for i in range(len(source))}


def test_a_class_is_a_first_level_folder_and_its_number_the_place_of_its_name(tmp_path):
    make(tmp_path, "dog/2.png", "cat/1.png", "cat/wild/deep/3.png", "Zebra/1.png", "empty/notes.md", ".git/x.png")
    assert folder_classes(tmp_path) == ["Zebra", "cat", "dog"]
    assert labels(tmp_path) == {"dog/2": 2, "cat/1": 1, "cat/wild/deep/3": 1, "Zebra/1": 0}
    source = open_source(tmp_path)
    assert source.classes == ["Zebra", "cat", "dog"]
    i = source.keys.index("cat/1")
    assert source.sample(i) == Sample("cat/1", {"image": png(), "cls": b"1"})
    assert source.read(i, "cls") == b"1" and source.location(i, "cls") is None
    assert source.sample(i, ("txt",)).parts == {}
    table, _ = describe(source, np.arange(len(source)))
    assert dict(zip(table["key"].to_pylist(), table["label"].to_pylist(), strict=True)) == labels(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ("cat/1.png", "dog/1.png", "top.png"),  # an image in the folder itself
        ("cat/1.png", "cat/wild/2.png"),  # one sub-folder
        ("cat/1.png", "dog/1.png", "dog/1.txt"),  # captions
        ("cat/1.png", "dog/deep/1.png", "dog/deep/1.cls"),  # classes of their own
        ("1.png", "2.png"),
    ],
)
def test_a_folder_that_is_not_by_class_gives_none(tmp_path, names):
    make(tmp_path, *names)
    (tmp_path / "dog").mkdir(exist_ok=True)
    for words in tmp_path.rglob("*.cls"):
        words.write_text("7")
    assert folder_classes(tmp_path) is None and open_source(tmp_path).classes is None
    assert {label for label in labels(tmp_path).values() if label != 7} == {None}


def test_words_that_belong_to_no_image_do_not_count(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png", "README.txt", "cat/about.txt", "dog/1.json")
    (tmp_path / "dog" / "1.json").write_text('{"photographer": "me"}')
    assert folder_classes(tmp_path) == ["cat", "dog"]
    source = open_source(tmp_path)
    assert source.sample(source.keys.index("dog/1")).metadata() == {"photographer": "me"}


def test_shards_come_before_folders_by_class(tmp_path):
    make(tmp_path, "cat/1.png", "dog/1.png")
    write_tar(tmp_path / "0.tar", sample("a"))
    assert folder_classes(tmp_path) is None and open_source(tmp_path).keys == ["a"]


def test_what_has_no_classes(tmp_path):
    assert folder_classes(tmp_path / "missing") is None
    assert folder_classes(tmp_path) is None
    (tmp_path / "x.csv").write_text("path,caption\n1.png,a\n")
    assert folder_classes(tmp_path / "x.csv") is None
    (tmp_path / "y.csv").write_text("path,label\n1.png,3\n")
    assert folder_classes(tmp_path / "y.csv") is None  # numbers: classnames.txt names them
    (tmp_path / "z.csv").write_text("path,label\n1.png,dog\n2.png,cat\n")
    assert folder_classes(tmp_path / "z.csv") == ["cat", "dog"]


def test_a_digest_changes_with_the_class(tmp_path):
    make(tmp_path / "one", "cat/1.png", "dog/2.png")
    make(tmp_path / "two", "cat/1.png", "bear/2.png")
    assert open_source(tmp_path / "one").digest() != open_source(tmp_path / "two").digest()


def test_a_file_whose_name_is_no_text_is_counted(tmp_path):
    for name in (b"a.png", b"b.png", b"\xff\xfe.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(png())
    source = open_source(tmp_path)
    assert list(source.keys) == ["a", "b"]
    assert source.problems == {"file name is not UTF-8": ["\ufffd\ufffd.png"]}


def test_an_empty_path_is_not_this_folder():
    with pytest.raises(ValueError, match="the path of the data is empty"):
        open_source("")
