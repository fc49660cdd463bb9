from __future__ import annotations

import re

import pytest

from dualenc.index.budget import check_latency, check_memory, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, None),
        (5, 5),
        ("5", 5),
        ("2GB", 2 * 10**9),
        ("1.5 GiB", 3 * 2**29),
        ("3mb", 3_000_000),
        ("1e3 kB", 10**6),
        (2e9, 2 * 10**9),
    ],
)
def test_bytes(memory, expected):
    assert parse_bytes(memory) == expected


@pytest.mark.parametrize(
    ("latency", "expected"), [(None, None), (0.005, 0.005), ("5ms", 0.005), ("2 s", 2), ("10us", 1e-5)]
)
def test_seconds(latency, expected):
    assert parse_seconds(latency) == pytest.approx(expected)


@pytest.mark.parametrize("amount", ["fast", "5 miles", "", -1, 0, "1.2.3", "inf", float("nan"), "5GB"])
def test_what_is_no_time_is_refused(amount):
    with pytest.raises(ValueError, match=r"latency=.* is no amount"):
        parse_seconds(amount)


def test_memory_names_size_and_cure():
    check_memory(100, 100, "ivf", 1, 20)
    check_memory(10**12, None, "ivf", 1, 20)
    with pytest.raises(ValueError) as error:
        check_memory(5000, 2000, "hnsw", 10, 16)
    assert str(error.value) == (
        "hnsw needs 5,000 bytes for 10 x 16, above memory=2,000; raise memory, or index fewer rows"
    )
    others = {"ivf": 3000, "ivf_sq8": 2000, "ivf_pq": 300, "scan_pq": 250}
    cures = {4000: "ivf (3,000 bytes), ivf_sq8 (2,000 bytes), ivf_pq (300 bytes) or scan_pq (250 bytes)"}
    cures |= {299: "scan_pq (250 bytes)", 300: "ivf_pq (300 bytes) or scan_pq (250 bytes)"}
    for memory, cure in cures.items():
        with pytest.raises(ValueError, match=re.escape(f"raise memory, or take recipe {cure}") + "$"):
            check_memory(5000, memory, "hnsw", 10, 16, others)
    with pytest.raises(ValueError, match=r"or index fewer rows$"):
        check_memory(5000, 249, "hnsw", 10, 16, others)


def test_latency_names_time_and_cure():
    check_latency(0.005, 0.005, "ivf", {})
    check_latency(7.0, None, "ivf", {})
    with pytest.raises(
        ValueError,
        match=r"^ivf at nprobe 8, rerank 2 takes 7 ms for one query, above latency=5 ms; .* take another recipe$",
    ):
        check_latency(0.007, 0.005, "ivf", {"nprobe": 8, "rerank": 2})
    with pytest.raises(ValueError, match=r"^flat takes 7 ms .* take recipe hnsw or ivf_sq8$"):
        check_latency(0.007, 0.005, "flat", {}, ["hnsw", "ivf_sq8"])
