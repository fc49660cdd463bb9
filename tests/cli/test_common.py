"""What several commands share: lists of K are read before any work."""

from __future__ import annotations

import pytest

from dualenc.cli.common import ks_of


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0", "--ks '0': k is 0, .*; write 1 or more"),
        ("5,-1", "--ks '5,-1': k is -1, .*; write 1 or more"),
        ("1.5", "--ks '1.5' is not a list of whole numbers; write 1,5,10"),
        ("", "--ks '' is not a list of whole numbers; write 1,5,10"),
        ("1,,5", "--ks '1,,5' is not a list of whole numbers; write 1,5,10"),
    ],
)
def test_ks_that_are_no_ranks(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ks_of(text)


def test_a_k_that_is_repeated_counts_once() -> None:
    assert ks_of("5,1,5") == (5, 1)
