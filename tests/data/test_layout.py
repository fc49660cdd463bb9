"""CLIP_benchmark's layout, root or split, and what a missing path says."""

import pytest

from dualenc.beside import class_folder, shard_folder
from dualenc.data.known_sets import PLAIN, VTAB, hub_name
from dualenc.data.shards import open_source
from tests.data.layouts import benchmark_set
from tests.small import sample, write_tar


@pytest.mark.parametrize("kind", ["classification", "retrieval"])
def test_the_root_stands_for_its_test_split(tmp_path, kind):
    root = benchmark_set(tmp_path / "wds_x", kind)
    whole, split = open_source(root), open_source(root / "test")
    assert whole.keys == split.keys and len(whole) == 6 and whole.names == [str(root)]
    assert len(open_source(root / "train")) == 3
    assert [whole.sample(i) for i in range(6)] == [split.sample(i) for i in range(6)]
    if kind == "classification":
        assert [whole.sample(i).label() for i in range(3)] == [0, 1, 2]
        assert class_folder(root) == class_folder(root / "test") == root
    else:
        assert whole.sample(1).captions() == ["one of 1", "two of 1"]


@pytest.mark.parametrize("mark", ["classnames.txt", "dataset_type.txt", "zeroshot_classification_templates.txt", None])
def test_one_file_of_the_layout_is_enough_and_without_any_it_is_no_such_root(tmp_path, mark):
    write_tar(tmp_path / "test" / "0.tar", sample("a"))
    if mark:
        (tmp_path / mark).write_text("x")
    assert shard_folder(tmp_path) == (tmp_path / "test" if mark else tmp_path)
    if mark is None:
        with pytest.raises(ValueError, match=r"neither shards .* \.tar \(1\)"):
            open_source(tmp_path)
    write_tar(tmp_path / "0.tar", sample("b"))  # shards of its own come first
    assert open_source(tmp_path).keys == ["b"]


def test_a_download_that_is_not_complete_is_refused(tmp_path):
    root = benchmark_set(tmp_path / "wds_x", shards=4)
    (root / "test" / "2.tar").unlink()
    with pytest.raises(ValueError, match=r"test/2\.tar: missing, though nshards\.txt"):
        open_source(root)
    assert open_source(root, strict=False).problems == {"missing shard": [str(root / "test" / "2.tar")]}
    assert len(open_source(root / "test" / "0.tar")) == 3  # one shard by its own name
    for text in ("3", "many", "", "-1"):
        (root / "test" / "nshards.txt").write_text(text)
        assert len(open_source(root)) == 9
    (root / "test" / "nshards.txt").write_text("9" * 30)
    with pytest.raises(ValueError, match="and 9999"):
        open_source(root)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/wds_flickr8k", "wds_flickr8k"),
        ("wds_vtab-cifar10/test", "wds_vtab-cifar10"),
        ("wds_cifar10", "wds_vtab-cifar10"),  # the Hub has it under vtab
        ("CIFAR-100/test", "wds_vtab-cifar100"),
        ("vtab-dtd", "wds_vtab-dtd"),
        ("wds/imagenet1k/test/0.tar", "wds_imagenet1k"),
        ("imagenet/val", "wds_imagenet1k"),
        ("coco", "wds_mscoco_captions"),
        ("flickr30k", "wds_flickr30k"),
        ("ImageNet-A", "wds_imagenet-a"),
        ("wds_something_new", "wds_something_new"),
        ("photos", None),
        ("coco/captions.csv", None),
        ("wds_$(rm)", None),
    ],
)
def test_names_of_known_sets(path, name):
    assert hub_name(path) == name


def test_every_set_is_found_by_its_own_name():
    for name in PLAIN:
        assert hub_name(f"wds_{name}") == f"wds_{name}" == hub_name(f"x/{name}/test")
    for name in VTAB:
        assert hub_name(f"wds_vtab-{name}") == f"wds_vtab-{name}" == hub_name(name)


def test_a_missing_path_says_where_it_is_had(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        open_source(tmp_path / "my sets" / "wds_flickr8k" / "test")
    assert "no such file or folder" in str(error.value) and "\n" not in str(error.value)
    command = "`hf download --repo-type dataset clip-benchmark/wds_flickr8k --local-dir "
    assert f"{command}'{tmp_path}/my sets/wds_flickr8k'`" in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        open_source(tmp_path / "photos")
    assert "huggingface" not in str(error.value) and "check the path" in str(error.value)
