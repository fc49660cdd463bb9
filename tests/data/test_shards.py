"""Sources: grouping as webdataset does, captions, classes, and what is said about what cannot be used."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from dualenc.data.items import IMAGE_SUFFIXES, Item, folder_items
from dualenc.data.shards import BadSample, group, open_source, read_at
from dualenc.data.tar import members as listed
from tests.small import png, sample, write_shards, write_tar

NAMES = ["a", "a.b", "x/a", "x/a.b", "x.y/a", "b", "x/b", "__c__"]
EXTENSIONS = ["jpg", "JPG", "png", "txt", "json", "cls", "seg.png", "txt.gz"]


def by_webdataset(path):
    with open(path, "rb") as stream:
        samples = list(group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}])))
    return [(s["__key__"], {k: v for k, v in s.items() if not k.startswith("__")}) for s in samples]


FILES = st.tuples(st.sampled_from(NAMES), st.sampled_from([*EXTENSIONS, ""]), st.binary(max_size=3))


@given(st.lists(FILES, max_size=8))
def test_samples_are_grouped_as_webdataset_groups_them(tmp_path_factory, files):
    members = [(f"{name}.{extension}".rstrip("."), data) for name, extension, data in files]
    path = write_tar(tmp_path_factory.mktemp("group") / "t.tar", members)
    found = group(listed(path)[0])
    ours = [(key, {e: read_at(str(path), *place) for e, place in parts.items()}) for key, parts in found]
    neighbours = [key for key, _ in ours]
    if any(a == b for a, b in itertools.pairwise(neighbours)):  # a file twice in a sample
        with pytest.raises(ValueError, match="duplicate file name"):
            by_webdataset(path)
    else:
        assert ours == by_webdataset(path)


def test_a_source_gives_what_webdataset_reads(shards):
    source = open_source(shards)
    theirs = [s for path in sorted(shards.glob("*.tar")) for s in by_webdataset(path)]
    assert source.keys == [key for key, _ in theirs] and len(source) == 24
    for i, (_, parts) in enumerate(theirs):
        assert source.image_bytes(i) == parts["png"] == read_at(*source.location(i))
        assert source.captions(i) == parts["txt"].decode().split("\n")
    assert source.problems == {}


def one(tmp_path, **parts):
    return open_source(write_tar(tmp_path / "t.tar", [("k.png", png()), *((f"k.{e}", d) for e, d in parts.items())]))


@pytest.mark.parametrize(
    ("text", "captions"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"\xef\xbb\xbf one \r\n\r\n  two\tthree \n\n", ["one", "two three"]),
        (b"", []),
        (b" \n \n", []),
        ("зима\u2028весна\x85лето".encode(), ["зима весна лето"]),  # a line ends at a line feed alone
    ],
)
def test_captions_are_lines_with_white_space_collapsed(tmp_path, text, captions):
    assert one(tmp_path, txt=text).captions(0) == captions


def test_without_text_there_are_no_captions(tmp_path):
    assert one(tmp_path).captions(0) == []


@pytest.mark.parametrize("text", ["first line\nsecond line", "a\r\nb", " a\n\n b \n", "one line"])
def test_what_img2dataset_writes_is_one_caption(tmp_path, text):
    source = one(tmp_path, txt=text.encode(), json=json.dumps({"caption": text, "url": "u"}).encode())
    assert source.captions(0) == [" ".join(text.split())]
    other = one(tmp_path, txt=text.encode(), json=json.dumps({"caption": "something else"}).encode())
    assert other.captions(0) == [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def test_class_and_metadata(tmp_path):
    note = {"caption": None, "width": 3, "ok": True, "score": 0.5, "name": "n", "list": [1], "dict": {"a": 1}}
    source = one(tmp_path, cls=b"12\n", json=json.dumps(note).encode())
    assert source.label(0) == 12
    assert source.metadata(0) == {"width": 3, "ok": True, "score": 0.5, "name": "n"}
    assert one(tmp_path).label(0) is None and one(tmp_path).metadata(0) == {}


@pytest.mark.parametrize(
    ("parts", "read", "reason"),
    [
        ({"txt": b"\xff\xfe\xfa"}, "captions", "caption is not UTF-8"),
        ({"cls": b"cat"}, "label", "class is not an integer"),
        ({"json": b"{"}, "metadata", "metadata is not a JSON object"),
        ({"json": b"[1]"}, "metadata", "metadata is not a JSON object"),
        ({"json": b"\xff"}, "metadata", "metadata is not a JSON object"),
        ({"json": b"[" * 100_000}, "metadata", "metadata is not a JSON object"),
    ],
)
def test_unusable_parts_say_why(tmp_path, parts, read, reason):
    with pytest.raises(BadSample, match=reason):
        getattr(one(tmp_path, **parts), read)(0)


def test_a_key_twice_names_both_shards(tmp_path):
    first = write_tar(tmp_path / "1.tar", sample("a") + sample("k"))
    second = write_tar(tmp_path / "2.tar", sample("b") + sample("k"))
    with pytest.raises(ValueError, match="'k'") as error:
        open_source([first, second])
    assert str(first) in str(error.value) and str(second) in str(error.value) and "\n" not in str(error.value)
    source = open_source([first, second], strict=False)
    assert source.keys == ["a", "k", "b"] and source.problems == {"duplicate key": ["k"]}


def test_shards_without_images_say_what_they_hold(tmp_path):
    path = write_tar(tmp_path / "t.tar", [("a.bmp", b"1"), ("b.bmp", b"1"), ("a.txt", b"t"), ("noname", b"")])
    with pytest.raises(ValueError, match=r"but \.bmp \(2\), \.txt \(1\)") as error:
        open_source(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "z.tar").write_bytes(b"hello")
    with pytest.raises(ValueError, match="but no member at all; not a tar: 1"):
        open_source(tmp_path / "z.tar")


def test_samples_without_an_image_and_damaged_shards_are_listed(tmp_path):
    path = write_tar(tmp_path / "t.tar", [*sample("a"), ("b.txt", b"no image"), *sample("c")])
    path.write_bytes(path.read_bytes()[: open_source(path).location(1)[1] + 10])  # within c's image
    source = open_source(path)
    assert source.keys == ["a"]
    assert source.problems == {"missing image": ["b"], "truncated shard": [str(path.resolve())]}


def test_globs_braces_lists_and_folders(tmp_path):
    write_shards(tmp_path / "d", 12, shards=4)
    keys = open_source(tmp_path / "d").keys
    assert keys == sorted(keys) and len(keys) == 12
    assert open_source(str(tmp_path / "d" / "shard-*.tar")).keys == keys
    assert open_source(str(tmp_path / "d" / "shard-{000..003}.tar")).keys == keys
    assert open_source(str(tmp_path / "d" / "shard-00{0,3}.tar")).keys == keys[:3] + keys[9:]
    listed = [str(tmp_path / "d" / "shard-000.tar"), tmp_path / "d" / "shard-{001..003}.tar"]
    assert open_source(listed).keys == keys
    assert open_source(str(tmp_path / "*")).keys == keys  # a pattern that names the folder


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path):
    write_shards(tmp_path / "[1]", 2, shards=1)
    assert len(open_source(tmp_path / "[1]")) == 2


@pytest.mark.parametrize("name", ["missing", "missing.tar", "shard-{000..001}.tar"])
def test_a_missing_path_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such file or folder") as error:
        open_source(str(tmp_path / name))
    assert str(tmp_path) in str(error.value)


def test_remote_shards_are_refused():
    with pytest.raises(ValueError, match="only local shards"):
        open_source("https://example.com/a.tar")


def test_a_folder_of_images(tmp_path):
    for name in ("b.png", "deep/a.PNG", "deep/c.v1.jpg", "d.png", "d.jpg", "e.png.png", "e.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png())
    (tmp_path / "b.txt").write_text("one\ntwo\n")
    (tmp_path / "deep" / "c.v1.txt").write_text("three")
    source = open_source(tmp_path)
    places = [Path(source.location(i)[0]).relative_to(tmp_path.resolve()).as_posix() for i in range(len(source))]
    files = dict(zip(source.keys, places, strict=True))
    assert files == {
        "b": "b.png",
        "d.jpg": "d.jpg",  # two images of one name keep their suffix
        "d.png": "d.png",
        "deep/a": "deep/a.PNG",
        "deep/c.v1": "deep/c.v1.jpg",
        "e": "e.png",
        "e.png.png": "e.png.png",  # its name without suffix is another image's name
    }
    assert source.captions(source.keys.index("b")) == ["one", "two"]
    assert source.captions(source.keys.index("deep/c.v1")) == ["three"]
    assert source.captions(source.keys.index("deep/a")) == []
    assert source.image_bytes(0) == png() and read_at(*source.location(0)) == png()


def test_a_folder_gives_the_images_that_pack_takes(tmp_path):
    for name in (
        *(f"a{suffix}" for suffix in IMAGE_SUFFIXES),
        "b.JP2",
        "._c.png",
        ".cache/d.png",
        "in/.e/f.png",
        "g.svg",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(png())
        (tmp_path / name).with_suffix(".txt").write_text("a caption")
    packed = [item.image for item in folder_items(tmp_path) if isinstance(item, Item)]
    source = open_source(tmp_path)
    places = [Path(source.location(i)[0]).relative_to(tmp_path.resolve()).as_posix() for i in range(len(source))]
    assert sorted(places) == sorted(packed) and len(places) == len(IMAGE_SUFFIXES) + 1


def test_a_digest_is_of_names_and_sizes_wherever_they_lie(tmp_path):
    for place in ("one", "two"):
        write_shards(tmp_path / place, 4)
        (tmp_path / place / "images" / "deep").mkdir(parents=True)
        (tmp_path / place / "images" / "a.png").write_bytes(png())
        (tmp_path / place / "images" / "deep" / "b.png").write_bytes(png())
        (tmp_path / place / "images" / "a.txt").write_text("a caption")
    for name, change in (("", "shard-001.tar"), ("images", "deep/b.png"), ("images", "a.txt")):
        first, second = (open_source(tmp_path / place / name) for place in ("one", "two"))
        assert first.digest() == second.digest()
        file = tmp_path / "two" / name / change
        data = file.read_bytes()
        file.write_bytes(data + b" " * 512)
        assert first.digest() != open_source(tmp_path / "two" / name).digest()
        file.write_bytes(data)
        if change != "a.txt":
            moved = file.rename(file.with_stem("z"))
            assert first.digest() != open_source(tmp_path / "two" / name).digest()
            moved.rename(file)


def test_numbers_that_are_none_become_nulls(tmp_path):
    text = b'{"a": NaN, "b": Infinity, "c": -Infinity, "d": 1.5, "e": [1]}'
    source = open_source(write_tar(tmp_path / "t.tar", [("a.png", png()), ("a.json", text)]))
    assert source.metadata(0) == {"a": None, "b": None, "c": None, "d": 1.5}


def test_what_is_imported_here_is_declared():
    project = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert '"braceexpand' in project.partition("dependencies = [")[2].partition("\n]")[0]


def test_a_folder_without_images_says_what_it_holds(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"neither shards .* nor images .* but \.md \(1\)"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"no shards"):
        open_source([tmp_path, tmp_path])
