"""Keys against a list of the same names."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.data.keys import Keys

NAMES = st.lists(st.text(max_size=6) | st.sampled_from(["a", "b", "\udcff", "a\udc80b", ""]), max_size=12)


@given(
    NAMES.filter(lambda names: not any("\ud800" <= c < "\udc80" or "\udd00" <= c <= "\udfff" for c in "".join(names)))
)
def test_equal_to_a_list(names):
    keys = Keys.of(names)
    assert keys == names and names == keys and list(keys) == names and len(keys) == len(names)
    assert [keys[i] for i in range(-len(names), len(names))] == names + names
    assert keys[1:-1] == names[1:-1] and keys[::-2] == names[::-2]
    assert keys != [*names, "x"] and (not names or keys != ["other", *names[1:]])
    assert pickle.loads(pickle.dumps(keys)) == names
    assert Keys.joined([keys, Keys.of([]), keys]) == names + names
    assert keys.again().tolist() == [i for i, name in enumerate(names) if name in names[:i]]
    for beyond in (len(names), -len(names) - 1):
        with pytest.raises(IndexError):
            keys[beyond]


def test_equal_hashes_of_different_names_are_not_taken_for_the_same_name(monkeypatch):
    monkeypatch.setattr(Keys, "_hashes", lambda self: np.zeros(len(self), np.int64))
    assert Keys.of(["a", "b", "a", "c", "b"]).again().tolist() == [2, 4]


def test_a_name_costs_its_bytes_and_a_number():
    keys = Keys.of(f"{i:09d}" for i in range(1000))
    assert keys.data.nbytes + keys.ends.nbytes == 1000 * (9 + 8)
    assert Keys.joined([]) == [] and Keys.of([]) != "" and Keys.of(["a"]) != "a"
