from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dualenc.index.compose import SUFFIXES, Term, combine, parse

WRONG = "the query is read as several terms, but "


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        (
            '2*"red car" + photo.jpg - "night"',
            [(2, "text", "red car"), (1, "image", "photo.jpg"), (-1, "text", "night")],
        ),
        ("0.5*#1234", [(0.5, "id", 1234)]),
        ("#7", [(1, "id", 7)]),
        ("-#7+#8-2*#9", [(-1, "id", 7), (1, "id", 8), (-2, "id", 9)]),
        ("photo.JPG", [(1, "image", "photo.JPG")]),
        ("my-photo+1.jpeg", [(1, "image", "my-photo+1.jpeg")]),
        ("/a/b-c.png - https://host/d.webp", [(1, "image", "/a/b-c.png"), (-1, "image", "https://host/d.webp")]),
        ('"my photo - 1.jpg"', [(1, "image", "my photo - 1.jpg")]),
        ('"my photo.jpg "', [(1, "text", "my photo.jpg ")]),
        ('"a"+"b"-"c"', [(1, "text", "a"), (1, "text", "b"), (-1, "text", "c")]),
        ('  - .5 * "a"\t+ 1e-1* "b" ', [(-0.5, "text", "a"), (0.1, "text", "b")]),
        ('+3.*"a"', [(3, "text", "a")]),
        ('0*"a" + "b"', [(0, "text", "a"), (1, "text", "b")]),
        ('"say ""cheese"""', [(1, "text", 'say "cheese"')]),
        ('"C:\\new\\"', [(1, "text", "C:\\new\\")]),
        ('"straße — 東京"', [(1, "text", "straße — 東京")]),
        ("#9223372036854775807", [(1, "id", 2**63 - 1)]),
        ('"a\nb"', [(1, "text", "a\nb")]),
    ],
)
def test_expressions(text, terms):
    assert parse(text) == [Term(*term) for term in terms]


@pytest.mark.parametrize(
    "text",
    [
        "a red car",
        "black-and-white photo of 2 dogs + cats",
        "2*3 - 1",
        'a sign that says "STOP"',
        'a 10" pan and a 12" pan - steel',
        "photo #12 of the tower",
        "#hashtag",
        "#1st prize",
        "C# - code",
        "jpg",
        ".jpg",
        "a .jpg file",
        "- minus",
        "+",
        'rock-"n"-roll',
        "‘single’ “curly”",
        " spaces kept ",
        "2 * dogs",
        "٣*x",
    ],
)
def test_a_text_that_is_no_expression_stays_as_it_is(text):
    assert parse(text) == [Term(1.0, "text", text)]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('2*red car + "night"', '`red car + "night"` (character 3) is neither'),
        ('"red" car', "`car` (character 7) has no + or -"),
        ('"red" "car"', '`"car"` (character 7) has no + or -'),
        ('"red" * 2', "`* 2` (character 7) has no + or -"),
        ('"red" + ', "the end is neither"),
        ('"red" - - "car"', '`- "car"` (character 9) is neither'),
        ('2*"red', '`"red` (character 3) has no closing quote'),
        ('"red" + ""', '`""` (character 9) has nothing'),
        ('" "', '`" "` (character 1) has nothing'),
        ("#1 fan", "`fan` (character 4) has no + or -"),
        ("a picture of cat.jpg", "`a picture of cat.jpg` (character 1) is neither"),
        ("dogs + cats.png", "`dogs + cats.png` (character 1) is neither"),
        ('photo.jpg+"night"', '`photo.jpg+"night"` (character 1) is neither'),
        ('dusk -"day"', '`dusk -"day"` (character 1) is neither'),
        ("dusk +#5", "`dusk +#5` (character 1) is neither"),
        ("photo.jpg-2", "`photo.jpg-2` (character 1) is neither"),
        ('1e999*"a"', '`1e999*"a"` (character 1) has a weight that is no finite'),
        ("#9223372036854775808", "`#9223372036854775808` (character 1) is larger than any id"),
        ("#" + "9" * 5000, "is larger than any id"),
        ("#5 + #x", "`#x` (character 6) is neither"),
        ('"a" +\nb\nc', "`b c` (character 7) is neither"),
        ('"a" + .jpg', "`.jpg` (character 7) is neither"),
        ('"a" + ' + "b" * 40, "`" + "b" * 24 + "…` (character 7) is neither"),
    ],
)
def test_a_wrong_expression_shows_the_place_and_the_form(text, place):
    with pytest.raises(ValueError) as error:
        parse(text)
    message = str(error.value)
    assert message.startswith(WRONG)
    assert place in message
    assert '2*"red car" + photo.jpg - "night" + 0.5*#17' in message
    assert "\n" not in message


def test_the_cure_for_words_that_look_like_an_expression_works():
    for text in ("#1 fan", '"STOP" sign', 'dusk -"day"'):
        with pytest.raises(ValueError) as error:
            parse(text)
        quoted = str(error.value).rpartition("as they are: ")[2]
        assert parse(quoted) == [Term(1.0, "text", text)]
    with pytest.raises(ValueError) as error:  # in quotes it would be an image
        parse("a picture of cat.jpg")
    assert "as they are" not in str(error.value)


@pytest.mark.parametrize("text", ["", " ", "\n"])
def test_an_empty_query(text):
    with pytest.raises(ValueError, match="is empty"):
        parse(text)


def write(term, spaces):
    if term.kind == "id":
        part = f"#{term.value}"
    elif term.kind == "image" and not spaces:
        part = term.value
    else:
        part = '"' + term.value.replace('"', '""') + '"'
    return f"{'-' if math.copysign(1, term.weight) < 0 else '+'}{spaces}{abs(term.weight)!r}{spaces}*{spaces}{part}"


weights = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(min_size=1).filter(lambda t: t.strip() and not t.lower().endswith(SUFFIXES))
paths = st.from_regex(r"[a-z0-9/._+*#-]{1,8}[a-z](\.jpg|\.PNG|\.webp)", fullmatch=True)
some_terms = st.one_of(
    st.builds(Term, weights, st.just("text"), texts),
    st.builds(Term, weights, st.just("image"), paths),
    st.builds(Term, weights, st.just("id"), st.integers(0, 2**63 - 1)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(some_terms, min_size=1, max_size=5), st.sampled_from(["", " ", "\t "]))
def test_what_was_written_is_read(terms, spaces):
    assert parse(" ".join(write(term, spaces) for term in terms)) == terms


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='"#12*+-. ajpg', max_size=14))
def test_any_text_is_terms_or_a_clear_error(text):
    try:
        terms = parse(text)
    except ValueError as error:
        assert not text.strip() or str(error).startswith(WRONG)
    else:
        assert terms
        assert all(math.isfinite(term.weight) for term in terms)


def test_a_sum_by_hand():
    rows = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0]], np.float32)
    query = combine(rows, [2, -1, 5])  # (5, 3, 0)
    np.testing.assert_allclose(query, np.array([5, 3, 0]) / np.sqrt(34), rtol=1e-6)
    assert query.dtype == np.float32
    assert query.shape == (3,)
    np.testing.assert_array_equal(combine(rows[:1], [-3]), [-1, 0, 0])
    np.testing.assert_array_equal(combine(rows[:2], [1, 0]), [1, 0, 0])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([1e-300, 1.0, 1e300]))
def test_equals_the_sum_in_plain_python_whatever_the_scale(seed, count, scale):
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(count, 8))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    sizes = draw.normal(size=count)
    total = [math.fsum(float(size) * float(row[d]) for size, row in zip(sizes, rows, strict=True)) for d in range(8)]
    length = math.sqrt(math.fsum(x * x for x in total))
    np.testing.assert_allclose(combine(rows, sizes * scale), np.array(total) / length, atol=1e-6)


def test_parts_that_cancel_out_up_to_storage():
    row = np.random.default_rng(0).normal(size=512)
    row = (row / np.linalg.norm(row)).astype(np.float32)
    stored = row.astype(np.float16).astype(np.float32)
    for rows, sizes in (([row, row], [1, -1]), ([row, stored], [3, -3]), ([row, stored, row], [1e9, -2e9, 1e9])):
        with pytest.raises(ValueError, match="cancel out"):
            combine(np.array(rows), sizes)
    near = row + 0.01 * np.roll(row, 1)
    assert combine(np.array([row, near / np.linalg.norm(near)]), [1, -1]).shape == (512,)


@pytest.mark.parametrize(
    ("rows", "sizes", "what"),
    [
        (np.eye(2), [0, 0], "all weights are 0"),
        (np.eye(2), [np.nan, 1], "not all finite"),
        (np.eye(2), [np.inf, 1], "not all finite"),
        (np.eye(2), [1], "one weight each"),
        (np.eye(2), [[1, 1]], "one weight each"),
        (np.eye(2)[0], [1, 1], "one weight each"),
        (np.empty((0, 3)), [], "T >= 1"),
        (np.array([[1, 0], [2, 0]]), [1, 1], "row 1 is not of length 1"),
        (np.array([[1, 0], [np.nan, 0]]), [1, 1], "row 1 is not of length 1"),
    ],
)
def test_what_cannot_be_combined(rows, sizes, what):
    with pytest.raises(ValueError, match=what):
        combine(rows, sizes)
