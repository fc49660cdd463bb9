"""SugarCrepe: its files, its accuracy by kind, and the mean that the benchmark reports."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualenc.evaluate.composition.caption_pairs import Pairs
from dualenc.evaluate.composition.sugarcrepe import (
    KINDS,
    PREFIX,
    Pair,
    _means,
    evaluate_sugarcrepe,
    image_names,
    read_sugarcrepe,
)
from dualenc.evaluate.intervals import draws, share_interval
from tests.evaluate.conftest import ConstantEncoder, WordEncoder

ENTRY = {"filename": "1.jpg", "caption": "a cat", "negative_caption": "a dog"}


def write(folder, **kinds):
    folder.mkdir(parents=True, exist_ok=True)
    for kind, entries in kinds.items():
        (folder / f"{kind}.json").write_text(json.dumps(entries))
    return folder


def test_files_of_a_folder_its_data_folder_or_one_alone(tmp_path):
    some = {"0": ENTRY, "7": ENTRY | {"filename": "2.jpg", "caption": " two cats "}}  # numbers with gaps, as they are
    pairs = [Pair("1.jpg", "a cat", "a dog"), Pair("2.jpg", " two cats ", "a dog")]
    whole = dict.fromkeys(KINDS, pairs)
    write(tmp_path / "data", **dict.fromkeys(KINDS, some), other={"x": 1})
    assert read_sugarcrepe(tmp_path) == read_sugarcrepe(tmp_path / "data") == whole
    assert read_sugarcrepe(tmp_path / "data" / "swap_att.json") == {"swap_att": pairs}
    assert read_sugarcrepe(write(tmp_path / "mine", swap_obj=[ENTRY])) == {"swap_obj": pairs[:1]}
    assert image_names(whole) == ["1.jpg", "2.jpg"]


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"0": ENTRY, "1": {"filename": "a.jpg", "caption": "x"}}, r"swap_att\.json, entry 1 is no JSON object with"),
        ({"0": ENTRY | {"caption": " "}}, "entry 0 is no JSON object"),
        ({"0": "a"}, "entry 0"),
        ([ENTRY, 3], "entry 1"),
        ({}, "holds no entries"),
        ("text", "holds no entries"),
    ],
)
def test_files_that_are_not_of_this_kind_are_refused(tmp_path, entries, says):
    with pytest.raises(ValueError, match=says):
        read_sugarcrepe(write(tmp_path, swap_att=entries))


def test_what_is_not_there_says_where_it_is_had(tmp_path):
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"add_att\.json.*github\.com/RAIVNLab/sugar-crepe"):
            read_sugarcrepe(place)
    (tmp_path / "swap_att.json").write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"swap_att\.json is not JSON"):
        read_sugarcrepe(tmp_path)


def data_of(samples, texts):
    """Keys k0, k1, …; an image's embedding is its text's."""
    return samples([[text] for text in texts], place=["in" if i % 2 else "out" for i in range(len(texts))])


def test_by_hand(encoder, samples):
    data = data_of(samples, ["red cat", "blue dog", "green bird"])
    kinds = {
        "swap_att": [Pair("k0.jpg", "red cat", "cat red"), Pair("k1.jpg", "blue dog", "blue cow")],  # a tie, and right
        "swap_obj": [Pair("k2.jpg", "green bird", "old bird")],
        "add_att": [Pair("k0.jpg", "some cow", "red cat"), Pair("k0.jpg", "red cat", "red cat with a hat")],
        "replace_obj": [Pair("k2.jpg", "green bird", "green bird")],  # the same text: a tie, wrong
    }
    report, section = evaluate_sugarcrepe(encoder, data, kinds)
    accuracy = {key: value for key, value in report.items() if key.endswith("accuracy")}
    assert accuracy == {
        f"{PREFIX}/accuracy": 0.5,  # the mean of 0.5, 1, 0.5 and 0, whatever the number of pairs
        f"{PREFIX}/swap/accuracy": 0.75,
        f"{PREFIX}/swap_att/accuracy": 0.5,
        f"{PREFIX}/swap_obj/accuracy": 1.0,
        f"{PREFIX}/add_att/accuracy": 0.5,
        f"{PREFIX}/replace_obj/accuracy": 0.0,
    }
    assert all(report[f"{key}/chance"] == 0.5 for key in accuracy)
    assert [report[f"{PREFIX}/{kind}/count"] for kind in kinds] == [2, 1, 2, 1]
    assert f"{PREFIX}/swap_att/accuracy/low" in report  # of two images
    assert f"{PREFIX}/add_att/accuracy/low" not in report  # two pairs of one image
    assert len(encoder.calls[-1]) == len(set(encoder.calls[-1])) == 8  # each text once
    assert [row[0] for row in section.tables[0].rows] == [
        "Replaced object", "Swapped objects", "Swapped attributes", "Added attribute",
        "Swapped, mean of its kinds", "Mean of all kinds",
    ]  # fmt: skip
    assert "Without replace_att, replace_rel, add_obj" in section.tables[0].note
    wrong = next(part for part in section.examples if part.title == "Replaced object").rows[0]
    assert wrong.note == "a tie" and not wrong.found and wrong.query.picture is not None
    assert [headline.label for headline in section.headlines] == ["SugarCrepe", "Swapped"]


def test_worst_kind_and_columns(encoder, samples):
    texts = [f"thing{i} of{i}" for i in range(12)]
    data = data_of(samples, texts)
    kinds = {
        "swap_att": [Pair(f"k{i}.jpg", text, " ".join(reversed(text.split()))) for i, text in enumerate(texts[:6])],
        "mine": [Pair(f"deep/k{i}.png", text, "another") for i, text in enumerate(texts)],
    }
    report, section = evaluate_sugarcrepe(encoder, data, kinds, by=["place"])
    assert report[f"{PREFIX}/worst_group/accuracy"] == "swap_att" and report[f"{PREFIX}/worst/accuracy"] == 0.0
    assert report[f"{PREFIX}/gap/accuracy"] == 1.0 and report[f"{PREFIX}/gap/accuracy/chance"] < 1
    assert report[f"{PREFIX}/by/place/in/accuracy"] == 6 / 9 == report[f"{PREFIX}/by/place/out/accuracy"]
    assert "mine" in [row[0] for row in section.tables[0].rows]  # a file of one's own is a kind too
    with pytest.raises(ValueError, match="no column 'x'"):
        evaluate_sugarcrepe(encoder, data, kinds, by=["x"])


def test_kinds_are_any_files_names(encoder, samples):
    texts = ["red cat", "blue dog", "green bird"]
    pairs = [Pair(f"k{i}.jpg", text, "another") for i, text in enumerate(texts)]
    kinds = {"neg50%": [*pairs, pairs[0]], "gap": pairs, "gap_two": [*pairs, pairs[0]]}
    report, section = evaluate_sugarcrepe(encoder, data_of(samples, texts), kinds)
    for key, kind in {"neg50%25": "neg50%", "gap (group)": "gap", "gap_two": "gap_two"}.items():
        count = len(kinds[kind])
        assert report[f"{PREFIX}/{key}/accuracy"] == 1.0 and report[f"{PREFIX}/{key}/count"] == count
        (row,) = [row for row in section.tables[0].rows if row[0] == kind]
        assert row[1] == f"{count}" and row[2].value == 1.0 and row[2].interval is not None


def test_one_kind_is_no_mean(encoder, samples):
    _, section = evaluate_sugarcrepe(encoder, data_of(samples, ["a b"]), {"swap_att": [Pair("k0", "a b", "b c")]})
    assert [row[0] for row in section.tables[0].rows] == ["Swapped attributes"]
    assert section.headlines[0].meaning == "of images prefer their true caption"


def test_missing_images_are_counted_and_named(encoder, samples):
    kinds = {"swap_att": [Pair(f"{name}.jpg", "a", "b") for name in ("k0", "x1", "x2", "x2", "x3", "x4")]}
    with pytest.raises(FileNotFoundError) as error:
        evaluate_sugarcrepe(encoder, data_of(samples, ["a"]), kinds)
    assert "4 of 5 images are not in --data" in str(error.value) and "x1.jpg, x2.jpg, x3.jpg and 1 more" in str(
        error.value
    )
    assert "val2017.zip" in str(error.value)


def test_a_collapsed_encoder_gets_nothing(samples):
    data = data_of(samples, ["a", "b"])
    data.images[:] = ConstantEncoder.dim**-0.5
    pairs = {"swap_att": [Pair("k0", "a", "b"), Pair("k1", "b", "a")]}
    assert evaluate_sugarcrepe(ConstantEncoder(), data, pairs)[0][f"{PREFIX}/accuracy"] == 0.0


def test_nan_is_refused(encoder, samples):
    data = data_of(samples, ["a", "b"])
    data.images[1, 3] = np.nan
    with pytest.raises(ValueError, match="hold NaN"):
        evaluate_sugarcrepe(encoder, data, {"swap_att": [Pair("k0", "a", "b")]})


def test_as_the_benchmarks_select_a_caption(samples):
    """Where no two scores are equal: argmax over (right, wrong) is the right one, each kind alone, and their plain mean."""
    rng = np.random.default_rng(0)
    texts = [f"w{i} w{i + 1}" for i in range(40)]
    encoder = WordEncoder()
    data = data_of(samples, texts)
    data.images[:] = rng.standard_normal(data.images.shape)
    data.images /= np.linalg.norm(data.images, axis=1, keepdims=True)
    kinds = {
        kind: [Pair(f"k{i}.jpg", f"{kind} r{i}", f"{kind} n{i}") for i in rng.integers(0, 40, size)]
        for kind, size in (("add_obj", 30), ("swap_obj", 7), ("swap_att", 25))
    }
    report, _ = evaluate_sugarcrepe(encoder, data, kinds)
    theirs = {}
    for kind, pairs in kinds.items():
        picked = []
        for pair in pairs:
            image = data.images[int(pair.filename[1:-4])]
            picked.append(int(np.argmax(encoder.embed_texts([pair.caption, pair.negative]) @ image)))
        theirs[kind] = float(np.mean(np.array(picked) == 0))
    assert theirs == {kind: pytest.approx(report[f"{PREFIX}/{kind}/accuracy"]) for kind in kinds}
    assert report[f"{PREFIX}/accuracy"] == pytest.approx(np.mean([*theirs.values()]))


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["add_obj", "add_att", "swap_att"]), st.booleans()), min_size=1
    ),
    st.integers(0, 3),
)
def test_means_and_their_intervals_are_those_of_drawn_images(found, seed):
    row, kind, won = (list(column) for column in zip(*found, strict=True))
    report = _means(Pairs(np.array(row), [], [], kind), np.array(won, float), 40, seed)

    def mean(rows):
        of = {k: [won[i] for i in rows if kind[i] == k] for k in dict.fromkeys(kind)}
        return np.mean([np.mean(values) for values in of.values()]) if all(of.values()) else None

    assert report[f"{PREFIX}/accuracy"] == pytest.approx(mean(range(len(row))))
    images = sorted(set(row))
    if len(images) < 2:
        assert f"{PREFIX}/accuracy/low" not in report
        return
    drawn = []
    for counts in next(draws(len(images), 40, seed)):
        rows = [i for i in range(len(row)) for _ in range(int(counts[images.index(row[i])]))]
        drawn.append(mean(rows))
    drawn = np.array([np.nan if value is None else value for value in drawn])
    low, high = share_interval(drawn, mean(range(len(row))), len(images))
    assert report[f"{PREFIX}/accuracy/low"] == pytest.approx(low)
    assert report[f"{PREFIX}/accuracy/high"] == pytest.approx(high)
