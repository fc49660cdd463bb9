from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

from dualenc.index.where import Where

ROWS = 1000
TABLE = pa.table(
    {
        "width": pa.array([None if row % 7 == 0 else row for row in range(ROWS)], pa.int64()),
        "split": ["test" if row % 3 == 0 else "train" for row in range(ROWS)],
        "captions": [[f"caption {row}", "both"] for row in range(ROWS)],
        "odd name": np.arange(ROWS) % 2 == 1,
    }
)
PATTERN = r"\(columns: width, split, captions, odd name\)"


@pytest.fixture(scope="module")
def where() -> Where:
    return Where(TABLE)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("width > 300", lambda r: r["width"] is not None and r["width"] > 300),
        (
            "width > 300 and split = 'test'",
            lambda r: r["width"] is not None and r["width"] > 300 and r["split"] == "test",
        ),
        ("width is null or not width < 990", lambda r: r["width"] is None or r["width"] >= 990),
        ("captions[1] like '%99'", lambda r: r["captions"][0].endswith("99")),
        ('"odd name"', lambda r: r["odd name"]),
        ("WIDTH in (1, 2, 3)", lambda r: r["width"] in (1, 2, 3)),
        ("true", lambda r: True),
        ("width < 0", lambda r: False),
    ],
)
def test_equals_a_loop_over_rows(where, text, keep):
    assert where.mask(text).tolist() == [keep(row) for row in TABLE.to_pylist()]


@pytest.mark.parametrize(
    "text",
    [
        "height > 3",
        "width >",
        "width; drop table metadata",
        "1=1); drop table metadata; --",
        "true union all select 1",
        "true order by 1",
        "true, false",
        "count(*) > 1",
        "split",
        "exists (select * from read_csv('/etc/passwd'))",
        "exists (select * from '/etc/passwd')",
        "",
        " ",
        None,
        5,
    ],
)
def test_what_is_no_filter_is_refused_with_the_columns(where, text):
    with pytest.raises(ValueError, match=r"where=.*") as error:
        where.mask(text)
    assert "\n" not in str(error.value)
    assert "width, split, captions, odd name" in str(error.value)
    assert where.mask("width = 5").sum() == 1  # and the next one works


@pytest.mark.parametrize("call", ["read_csv('{}')", "read_text('{}')", "'{}'", "glob('{}')"])
def test_it_reads_no_file(where, tmp_path, call):
    (tmp_path / "secret.csv").write_text("width\n5\n")
    with pytest.raises(ValueError, match="disabled by configuration"):
        where.mask(f"exists (select * from {call.format(tmp_path / 'secret.csv')})")


def test_it_sees_no_python_variable(where, monkeypatch):
    monkeypatch.setattr("dualenc.index.where.secret", TABLE, raising=False)
    with pytest.raises(ValueError, match="secret does not exist"):
        where.mask("width in (select width from secret)")


def test_an_endless_one_is_stopped_and_the_next_one_runs(where):
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"ran longer than 0.3 s and was stopped"):
        where.mask("(select count(*) from range(10000000) a, range(1000000) b) > width", seconds=0.3)
    assert time.monotonic() - start < 20
    assert where.mask("width = 5").tolist().index(True) == 5
