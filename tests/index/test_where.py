from __future__ import annotations

import re
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.index import where as module
from dualenc.index.where import Where, _interrupted_after

ROWS = 1000
TABLE = pa.table(
    {
        "width": pa.array([None if row % 7 == 0 else row for row in range(ROWS)], pa.int64()),
        "split": ["test" if row % 3 == 0 else "train" for row in range(ROWS)],
        "captions": [[f"caption {row}", "both"] for row in range(ROWS)],
        "odd name": np.arange(ROWS) % 2 == 1,
        "taken": [{"year": 2000 + row % 30, "by": ["ann", None][row % 2]} if row % 5 else None for row in range(ROWS)],
        "day": pa.array(np.arange(ROWS).astype("datetime64[D]")),
    }
)
NAMES = "(columns: width, split, captions, odd name, taken, day)"


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
        ("'caption 7' in captions", lambda r: "caption 7" in r["captions"]),
        ("list_contains(captions, 'caption 7')", lambda r: "caption 7" in r["captions"]),
        ('"odd name"', lambda r: r["odd name"]),
        ("WIDTH in (1, 2, 3)", lambda r: r["width"] in (1, 2, 3)),
        ("width not in (1, 2, 3)", lambda r: r["width"] is not None and r["width"] not in (1, 2, 3)),
        ("width not in (1, null)", lambda r: False),
        ("true", lambda r: True),
        ("width < 0", lambda r: False),
        ("taken.year = 2003", lambda r: bool(r["taken"]) and r["taken"]["year"] == 2003),
        ("taken['by'] = 'ann'", lambda r: bool(r["taken"]) and r["taken"]["by"] == "ann"),
        ("taken.by is null", lambda r: not r["taken"] or r["taken"]["by"] is None),
        ("year(day) = 1971 and day >= '1971-03-01'", lambda r: r["day"].year == 1971 and r["day"].month >= 3),
        ("extract(month from day) = 2", lambda r: r["day"].month == 2),
        (
            "day < date '1970-01-03' + interval 2 days",
            lambda r: r["day"].year == 1970 and r["day"].timetuple().tm_yday < 5,
        ),
        ("width::varchar like '9_'", lambda r: r["width"] is not None and 90 <= r["width"] <= 99),
        ("cast(width as double) / 2 = 1.5", lambda r: r["width"] == 3),
        ("try_cast(split as int) is null", lambda r: True),
        (
            "case when width < 5 then true else split = 'test' end",
            lambda r: (r["width"] or 9) < 5 or r["split"] == "test",
        ),
        ("regexp_matches(captions[1], '^caption 1[0-9]$')", lambda r: re.match("caption 1[0-9]$", r["captions"][0])),
        ("split ilike 'TE%'", lambda r: r["split"] == "test"),
        ("split ilike 'T!%' escape '!' or trim(split) <> split", lambda r: False),
        ("width between 3 and 5 -- few", lambda r: r["width"] in (3, 4, 5)),
        ("(width = 3) is true", lambda r: r["width"] == 3),
        ("split = 'FROM metadata;)'", lambda r: False),
    ],
)
def test_equals_a_loop_over_rows(where, text, keep):
    assert where.mask(text).tolist() == [bool(keep(row)) for row in TABLE.to_pylist()]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("height > 3", "no column 'height'"),
        ("widht > 3", "no column 'widht'; the nearest is width"),
        ("rowid > 3", "no column 'rowid'"),
        ("metadata.width > 3", "no column 'metadata'"),
        ("current_date > day", "no column 'current_date'"),
        ("taken.month = 3", "month"),
        ("width >", "does not parse"),
        ("width; drop table metadata", "does not parse"),
        ("true; select true", "more than one condition"),
        ("1=1); drop table metadata; --", "does not parse"),
        ("1=1) or (1=1", "does not parse"),
        ("true union all select true", "more than one condition"),
        ("true order by 1", "does not parse"),
        ("true, false", "more than one condition"),
        ("distinct true", "more than one condition"),
        ("true as x", "a name (x)"),
        ("true /*", "does not parse"),
        ("true from metadata where true --", "does not parse"),
        ("true\nfrom metadata as x, metadata as y union select true", "more than one condition"),
        ("*", "* or COLUMNS() is not allowed"),
        ("columns('w.*') > 1", "* or COLUMNS() is not allowed"),
        ("count(*) > 1", "function count_star()"),
        ("sum(width) > 1", "function sum()"),
        ("sum(width) over () > 1", "a window function"),
        ("abs(width) filter (where true) > 1", "with FILTER, DISTINCT or ORDER BY"),
        ("abs(distinct width) > 1", "with FILTER, DISTINCT or ORDER BY"),
        ("abs(width order by width) > 1", "with FILTER, DISTINCT or ORDER BY"),
        ("grouping(width) = 1", "GROUPING_FUNCTION is not allowed"),
        ("lowr(split) = 'test'", "function lowr() is not one that a filter may use; the nearest that is: lower()"),
        ("split.lower() = 'test'", "lower() after a dot"),
        ("exists (select 1)", "a subquery"),
        ("width in (select 3)", "a subquery"),
        ("width = (select 3)", "a subquery"),
        ("width = any (select 3)", "a subquery"),
        ("width = any ([3])", "a subquery"),
        ("abs((select 3)) = width", "a subquery"),
        ("case when (select true) then true end", "a subquery"),
        ("width between 1 and (select 3)", "a subquery"),
        ("captions[(select 1)] = 'x'", "a subquery"),
        ("exists (select * from read_csv('/etc/passwd'))", "a subquery"),
        ("exists (select * from '/etc/passwd')", "a subquery"),
        ("exists (select * from duckdb_settings())", "a subquery"),
        ("exists (select * from query('select 1'))", "a subquery"),
        ("(with x as (select 1) select true from x)", "a subquery"),
        ("read_csv('/etc/passwd')", "function read_csv()"),
        ("query('select 1')", "function query()"),
        ("getenv('HOME') = 'x'", "function getenv()"),
        ("current_setting('threads') = '2'", "function current_setting()"),
        ("now() > day", "function now()"),
        ("random() > 0.5", "function random()"),
        ("repeat(split, 1000000000) = 'x'", "function repeat()"),
        ("lpad(split, 1000000000, 'x') = 'x'", "function lpad()"),
        ("replace(split, 't', 'ttttt') = 'x'", "function replace()"),
        ("len(range(1000000000)) = 3", "function range()"),
        ("unnest(captions) = 'x'", "function unnest()"),
        ("list_filter(captions, lambda x: x = 'both') = captions", "list_filter()"),
        ("[x for x in captions] = captions", "function list_apply()"),
        ("captions -> 1", "a lambda or ->"),
        ("width = ?", "a parameter"),
        ("width = $1", "a parameter"),
        ("#1 > 1", "a column by number"),
        ("split collate nocase = 'TEST'", "COLLATE"),
        ("regexp_matches(split, split)", "as a text in quotes"),
        ("width::json is null", "a cast to"),
        ("cast(null as int[100000000]) is null", "a cast to"),
        ("split::int > 1", "Could not convert string"),
        ("width + 1", "it is a number (BIGINT), not a condition"),
        ("split", "it is a text, not a condition"),
        ("null", "it is NULL, not a condition"),
        ("captions", "it is a list (VARCHAR[]), not a condition"),
        ("day", "it is a value of type DATE, not a condition"),
        ("", "is no expression"),
        (" ", "is no expression"),
        (None, "is no expression"),
        (5, "is no expression"),
        ("width = 1\0", "a zero or half a character"),
        ("split = '\ud800'", "a zero or half a character"),
        ("a" * 200_001, "200,001 characters"),
        ("(" * 20_000, "more than 1000 brackets"),
        ("width" + " + 1" * 150 + " > 1", "expression depth limit"),
        ("width = 1" + " or width = 1" * 600, "write long lists as IN"),
    ],
)
def test_what_is_no_filter_is_refused_in_one_line(where, text, why):
    with pytest.raises(ValueError) as error:
        where.mask(text)
    message = str(error.value)
    assert message.startswith("where=")
    assert why in message
    assert "\n" not in message
    assert len(message) < 600
    assert NAMES in message or "write long lists" in message or "shorten" in message
    assert where.mask("width = 5").sum() == 1  # and the next one works


@pytest.mark.parametrize(
    "text", ["exists (select * from read_csv('{}'))", "(select true from '{}')", "read_text('{}')"]
)
def test_the_database_itself_reads_no_file_and_sets_nothing(where, tmp_path, text):
    (tmp_path / "secret.csv").write_text("width\n5\n")
    with pytest.raises(ValueError, match=r"a subquery|function read_text"):
        where.mask(text.format(tmp_path / "secret.csv"))
    for statement in (
        f"from read_csv('{tmp_path / 'secret.csv'}')",
        "set enable_external_access = true",
        "set threads = 9",
    ):
        with pytest.raises(Exception, match=r"disabled by configuration|configuration has been locked|Cannot change"):
            where._database.execute(statement)


def test_comments_and_quotes_change_nothing_of_what_runs(where):
    for text in ("width = 5", "width = 5 -- or true", "/* true or */ width = 5", "width = 5 and 'a;b' = 'a;b'"):
        assert np.flatnonzero(where.mask(text)).tolist() == [5]


INTS = st.none() | st.integers(-3, 3)
LETTERS = "aAb%_' "


def quoted(value):
    return "null" if value is None else "'" + value.replace("'", "''") + "'" if isinstance(value, str) else f"({value})"


def strict(function):
    return lambda *values: None if any(value is None for value in values) else function(*values)


def both(a, b):
    return False if a is False or b is False else None if a is None or b is None else True


def either(a, b):
    return True if a is True or b is True else None if a is None or b is None else False


def like(text, pattern):
    parts = {"%": ".*", "_": "."}
    return bool(re.fullmatch("".join(parts.get(p, re.escape(p)) for p in pattern), text, re.DOTALL))


def within(value, low, high):
    return both(strict(lambda a, b: a >= b)(value, low), strict(lambda a, b: a <= b)(value, high))


def one_of(value, *choices):
    found = False
    for choice in choices:
        found = either(found, strict(lambda a, b: a == b)(value, choice))
    return found


def nodes(form, function, *arguments):
    """SQL text with Python's own evaluation of a row beside it."""
    return st.tuples(*arguments).map(
        lambda made: (
            form.format(*(text for text, _ in made)),
            lambda row: function(*(value(row) for _, value in made)),
        )
    )


def literal(values):
    return values.map(lambda value: (quoted(value), lambda row: value))


def column(name):
    return st.just((name, lambda row: row[name]))


numbers = st.deferred(
    lambda: (
        column("i")
        | column("j")
        | literal(st.integers(-3, 3))
        | nodes("({} + {})", strict(lambda a, b: a + b), numbers, numbers)
        | nodes("({} - {})", strict(lambda a, b: a - b), numbers, numbers)
        | nodes("abs({})", strict(abs), numbers)
        | nodes("length({})", strict(len), texts)
        | nodes("coalesce({}, {})", lambda a, b: b if a is None else a, numbers, numbers)
        | nodes("case when {} then {} else {} end", lambda c, a, b: a if c is True else b, truths, numbers, numbers)
        | nodes("nullif({}, {})", lambda a, b: None if a is not None and a == b else a, numbers, numbers)
    )
)
texts = st.deferred(
    lambda: (
        column("s")
        | literal(st.text(LETTERS, max_size=3))
        | nodes("lower({})", strict(str.lower), texts)
        | nodes("({} || {})", strict(lambda a, b: a + b), texts, texts)
        | nodes("trim({})", strict(lambda a: a.strip(" ")), texts)
    )
)
truths = st.deferred(
    lambda: (
        nodes("{} < {}", strict(lambda a, b: a < b), numbers, numbers)
        | nodes("{} <> {}", strict(lambda a, b: a != b), numbers, numbers)
        | nodes("{} = {}", strict(lambda a, b: a == b), texts, texts)
        | nodes("{} >= {}", strict(lambda a, b: a.encode() >= b.encode()), texts, texts)
        | nodes("{} is distinct from {}", lambda a, b: a != b, numbers, numbers)
        | nodes("{} is null", lambda a: a is None, numbers | texts)
        | nodes("{} between {} and {}", within, numbers, numbers, numbers)
        | nodes("{} in ({}, {}, {})", one_of, numbers, literal(INTS), literal(INTS), literal(INTS))
        | nodes("{} like {}", strict(like), texts, literal(st.text(LETTERS, max_size=3)))
        | nodes("contains({}, {})", strict(lambda a, b: b in a), texts, texts)
        | nodes("({} and {})", both, truths, truths)
        | nodes("({} or {})", either, truths, truths)
        | nodes("(not ({}))", strict(lambda a: not a), truths)
    )
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(truths, min_size=4, max_size=4),
    st.lists(st.tuples(INTS, INTS, st.none() | st.text(LETTERS, max_size=3)), max_size=8),
)
def test_equals_pythons_own_evaluation(expressions, rows):
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    table = pa.table(
        dict(
            zip(
                "ijs",
                (pa.array(list(c), t) for c, t in zip(columns, [pa.int64(), pa.int32(), pa.string()], strict=True)),
                strict=True,
            )
        )
    )
    where = Where(table)
    for text, value in expressions:
        assert where.mask(text).tolist() == [value(row) is True for row in table.to_pylist()]


def test_a_slow_one_is_stopped_and_the_next_one_runs():
    table = pa.table({"text": [f"{row} a photo of a red circle on the left " * 3 for row in range(200_000)]})
    slow = " and ".join(f"not regexp_matches(text, '(r.*e.*d){{1,9}}{n}.*q')" for n in range(300))
    where = Where(table)
    with pytest.raises(ValueError, match=r"ran longer than 0.2 s and was stopped"):
        where.mask(slow, seconds=0.2)
    assert where.mask("starts_with(text, '5 ')").sum() == 1


def test_an_interrupt_that_falls_between_two_queries_is_followed_by_another():
    calls, third = [], threading.Event()

    class Database:
        def interrupt(self):
            calls.append(time.monotonic())
            if len(calls) == 3:
                third.set()

    with _interrupted_after(Database(), 0.01):
        assert third.wait(20)
    ended = len(calls)
    time.sleep(0.1)
    assert len(calls) == ended  # none after what ran has ended: it would hit the next one


def test_masks_are_kept_read_only_and_given_while_another_filter_runs(where):
    mask = where.mask("width > 10")
    assert where.mask(" \n width > 10 ") is mask
    with pytest.raises(ValueError, match="read-only"):
        mask[0] = True
    with where._running:
        assert where.mask("width > 10", seconds=0) is mask
        with pytest.raises(ValueError, match=r"waited 0.01 s for the filters before it"):
            where.mask("width > 11", seconds=0.01)
    assert where.mask("width > 11").sum() == where.mask("width > 10").sum() - 1


def test_time_spent_waiting_is_no_longer_there_for_running(where, monkeypatch):
    left, plain = [], where._run
    monkeypatch.setattr(where, "_run", lambda text, seconds: left.append(seconds) or plain(text, seconds))
    where._running.acquire()
    threading.Timer(0.2, where._running.release).start()
    where.mask("width > 12", seconds=10)
    assert 0 < left[0] <= 9.9


def test_the_oldest_masks_go_first_by_number_and_by_bytes(monkeypatch):
    where = Where(TABLE)
    first = where.mask("width = 0")
    for number in range(1, module.MASKS):
        where.mask(f"width = {number}")
    assert where.mask("width = 0") is first  # used again: now the youngest
    second = where.mask("width = 1")
    where.mask("width = -1")
    where.mask("width = -2")
    assert where.mask("width = 0") is first
    assert where.mask("width = 1") is second
    assert len(where._masks) == module.MASKS
    assert "width = 2" not in where._masks
    monkeypatch.setattr(module, "MASK_BYTES", 2 * ROWS)
    where.mask("width = -3")
    assert list(where._masks) == ["width = 1", "width = -3"]
    monkeypatch.setattr(module, "MASK_BYTES", ROWS - 1)
    assert where.mask("width = -4").shape == (ROWS,)  # too large to keep
    assert not where._masks


def test_many_threads_get_the_same_masks():
    where, wrong = Where(TABLE), []

    def ask(start):
        for step in range(40):
            number = 1 + (start + step) % 6
            if np.flatnonzero(where.mask(f"width = {number}")).tolist() != [number]:
                wrong.append(number)

    threads = [threading.Thread(target=ask, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(where._masks) == 6


def test_columns_that_cannot_be_read_or_told_apart_are_named_only_when_used():
    half = pa.array(np.ones(3, np.float16))
    table = pa.table([pa.array([1, 2, 3]), half, pa.array([1, 1, 2]), pa.array([3, 3, 3])], ["a", "half", "B", "b"])
    where = Where(table)
    assert where.mask("a > 1").tolist() == [False, True, True]
    with pytest.raises(ValueError, match="'half' is halffloat, a type that filters cannot read"):
        where.mask("half > 1")
    with pytest.raises(ValueError, match="'b' is there more than once but for upper and lower case"):
        where.mask("b > 1")
    assert Where(pa.table({"half": half})).mask("true").tolist() == [True] * 3
    assert Where(TABLE[:0]).mask("width > 3").shape == (0,)
    wide = pa.table({f"c{n}": [1] for n in range(30)})
    with pytest.raises(ValueError, match=r"c18, c19 and 10 more\)"):
        Where(wide).mask("x")
