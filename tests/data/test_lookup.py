"""Images by name, and some samples of a source."""

import numpy as np
import pytest

from dualenc.data.keys import Keys
from dualenc.data.lookup import find
from dualenc.data.shards import open_source
from dualenc.data.source import Chosen
from tests.small import write_shards


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("a", 0),
        ("a.jpg", 0),
        ("in/b.png", 1),
        ("b.png", 1),  # in one folder alone
        ("elsewhere/b.png", 1),
        ("c.jpg", -1),  # in two folders
        ("in/c.jpg", 2),
        ("e.jpg", 4),  # a key that keeps its suffix, beside another one's
        ("e.png", 5),
        ("a.png", 7),  # a key with a suffix comes before one without
        ("f.v1", 6),  # no suffix of an image
        ("f.v1.webp", 6),
        ("missing.jpg", -1),
        ("", -1),
    ],
)
def test_find(name, row):
    keys = ["a", "in/b", "in/c", "out/c", "e.jpg", "e.png", "f.v1", "a.png"]
    assert find(keys, [name]).tolist() == find(Keys.of(keys), [name]).tolist() == [row]


def test_chosen_samples_are_those_of_the_source(tmp_path):
    source = open_source(write_shards(tmp_path, 6, cls=lambda i: i))
    some = Chosen(source, [4, 1], ("image", "cls"))
    assert some.keys == ["s004", "s001"] and len(some) == 2 and some.origin.tolist() == [0, 0]
    assert some.sample(0).parts == {"image": source.read(4), "cls": b"4"}
    assert some.sample(1, ("txt", "cls")).parts == {"cls": b"1"} and some.read(0, "txt") is None
    assert some.location(0) == source.location(4) and some.location(0, "txt") is None
    assert Chosen(source, np.array([1])).sample(0) == source.sample(1)
    digests = {Chosen(source, *choice).digest() for choice in (([4, 1],), ([1, 4],), ([4, 1], ("image",)))}
    assert len(digests) == 3 and source.digest() not in digests
