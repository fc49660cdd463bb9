"""Templates and class names by name, file and list; and the classifier they make, against open_clip's."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys

import numpy as np
import pytest

from dualenc.model import names
from dualenc.model.names import (
    Classes,
    class_files,
    class_names,
    class_prompts,
    classifier_of,
    fill,
    in_order_of,
    probabilities,
    read_classes,
    templates,
    zero_shot_classifier,
)


def test_docstring_examples():
    result = doctest.testmod(names)
    assert result.failed == 0
    assert result.attempted >= 3


def test_importing_names_loads_neither_torch_nor_open_clip():
    program = "import sys, dualenc.model.names; print([m for m in ('torch', 'open_clip') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"


def test_open_clips_sets_by_name():
    sets = names._open_clip_sets()
    for name, theirs in (("imagenet", sets.OPENAI_IMAGENET_TEMPLATES), ("simple", sets.SIMPLE_IMAGENET_TEMPLATES)):
        ours = templates(name)
        assert [fill(template, "red fox") for template in ours] == [template("red fox") for template in theirs]
    assert len(templates("imagenet")) == 80
    assert len(templates("simple")) == 7
    assert class_names("imagenet") == list(sets.IMAGENET_CLASSNAMES)
    assert len(class_names("imagenet")) == 1000


def test_plain_and_a_template_as_text():
    assert templates() == templates(None) == templates("plain") == ["{}"]
    assert templates("a photo of a {c}, a kind of {c}.") == ["a photo of a {c}, a kind of {c}."]


def test_a_template_file(tmp_path):
    path = tmp_path / "zeroshot_classification_templates.txt"
    path.write_text("\ufeffa photo of a {c}.\n itap of {}\r\n\n", encoding="utf-8")
    assert templates(path) == templates(str(path)) == ["a photo of a {c}.", "itap of {}"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a {}\nno place\n", "template 2 of .* has no place"),
        ("a {}\n\nb {}", "template 2"),
    ],
)
def test_a_template_file_that_cannot_be_used(tmp_path, text, says):
    path = tmp_path / "t.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        templates(path)
    assert "\n" not in str(error.value)


def test_unknown_templates():
    with pytest.raises(ValueError, match="'imagenett': no set or file of that name; use imagenet, plain, simple"):
        templates("imagenett")
    with pytest.raises(FileNotFoundError, match=r"gone.txt: no such template file"):
        templates("gone.txt")


def test_fill_leaves_other_braces_alone():
    assert fill("a {} {x} {c}", "{c} {}") == "a {c} {} {x} {c} {}"
    assert fill("a {}", r"back\slash \1 \g<0>") == r"a back\slash \1 \g<0>"


def test_class_names_from_a_list_and_files(tmp_path):
    (tmp_path / "c.txt").write_text("red circle\n blue, square\r\nkreis größer\n\n", encoding="utf-8")
    (tmp_path / "c.json").write_text('["cat", "dog"]')
    assert class_names(" cat,dog ,red fox") == ["cat", "dog", "red fox"]
    assert class_names(tmp_path / "c.txt") == ["red circle", "blue, square", "kreis größer"]
    assert class_names(tmp_path / "c.json") == ["cat", "dog"]
    many = [f"class {i}" for i in range(3000)]  # too long for a file name
    assert class_names(",".join(many)) == many


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat", "cat names 1 class"),
        ("", "class 0 of  is empty"),
        ("cat,,dog", "class 1 of cat,,dog is empty"),
        ("cat,dog, cat", "names the class 'cat' 2 times"),
    ],
)
def test_class_lists_that_cannot_be_told_apart(text, says):
    with pytest.raises(ValueError, match=says):
        class_names(text)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("c.txt", b"cat\n", "names 1 class"),
        ("c.txt", b"cat\n\ndog\n", "class 1 of .* is empty"),
        ("c.txt", b"", "is empty"),
        ("c.txt", b"caf\xe9\ndog", "is not UTF-8 text"),
        ("c.json", b"[1, 2]", "is not a list of names"),
        ("c.json", b'{"0": "cat", "1": "dog"}', "gives numbers where names belong"),
        ("c.json", b'{"cat": 1, "dog": "a dog"}', "is not a list of names"),
        ("c.json", b'{"cat": ["a", 2], "dog": "a dog"}', "is not a list of names"),
        ("c.json", b'{"cat": "a cat", "cat": "two cats", "dog": "a dog"}', "has 'cat' twice"),
        ("c.json", b'{"cat": "a cat", "cat ": "two cats", "dog": "a dog"}', "names the class 'cat' 2 times"),
        ("c.json", b'{"cat": [], "dog": "a dog"}', "class 'cat' of .* has no prompt"),
        ("c.json", b'{"cat": ["a cat", "  "], "dog": "a dog"}', "class 'cat' of .* has an empty prompt"),
        ("c.json", b'{"cat": "a pet", "dog": ["a pet "]}', "'cat' and 'dog' of .* have the same prompts"),
        ("c.json", b'{"cat": "a cat"}', "names 1 class"),
        ("c.json", b'{"pets": {"cat": "a cat", "dog": "a dog"}}', r"several sets \(pets\); name one, as .*c.json#NAME"),
        ("c.json", b"{}", "names 0 class"),
        ("c.json", b"[" * 100_000, "is not valid JSON"),
        ("c.json", b"[", "is not valid JSON"),
        ("c.json", b'["cat"]', "names 1 class"),
    ],
)
def test_class_files_that_cannot_be_used(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        read_classes(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_missing_class_file():
    with pytest.raises(FileNotFoundError, match=r"gone.json: no such class file"):
        class_names("gone.json")


def test_prompts_of_each_class(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"crane": ["a {} in water", "a bird: the {c}"], " dog": "a dog\'s photo"}')
    assert read_classes(path) == (["crane", "dog"], [["a crane in water", "a bird: the crane"], ["a dog's photo"]])
    classes = read_classes(str(path))
    assert class_prompts(classes) == class_prompts(classes, templates()) == classes.prompts
    with pytest.raises(ValueError, match=r"prompts of their own \('a crane in water', …\).*leave the templates out"):
        class_prompts(classes, ["a {}"])
    with pytest.raises(ValueError, match="has prompts for each class, where names alone are wanted"):
        class_names(path)


def test_one_of_several_sets(tmp_path):
    path = tmp_path / "en.json"
    sets = {
        "pets": ["cat", "dog"],
        "birds": {"owl": "an owl", "crow": ["a crow"]},
        "t": ["a {}", "the {c} "],
        "u": ["a"],
    }
    path.write_text(json.dumps(sets))
    assert read_classes(f"{path}#pets") == (["cat", "dog"], None)
    assert read_classes(f"{path}#birds") == (["owl", "crow"], [["an owl"], ["a crow"]])
    assert templates(f"{path}#t") == ["a {}", "the {c}"]
    for wrong, says in (("#pet", "no set 'pet'; it has pets"), ("#zzz", "it has pets, birds, t, u")):
        with pytest.raises(ValueError, match=says):
            read_classes(f"{path}{wrong}")
    with pytest.raises(ValueError, match=r"template 1 of .*#u \('a'\) has no place"):
        templates(f"{path}#u")
    with pytest.raises(ValueError, match="#birds is not a list of templates"):
        templates(f"{path}#birds")
    with pytest.raises(ValueError, match=r"holds several sets \(pets, birds, t, u\); name one"):
        templates(path)
    path.write_text('["a {}", "b {c}"]')
    assert templates(path) == ["a {}", "b {c}"]
    with pytest.raises(ValueError, match="has no set 'x'; it has no named sets: leave out #x"):
        templates(f"{path}#x")
    with pytest.raises(FileNotFoundError, match=r"gone.json: no such class file or template file"):
        templates("gone.json#x")
    hashed = tmp_path / "a.json#b.json"  # a file of that very name
    hashed.write_text('["cat", "dog"]')
    assert class_names(hashed) == ["cat", "dog"]


def test_names_and_templates_beside_the_shards(tmp_path):
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    assert class_files(tmp_path) == (["cat", "dog"], ["{}"])
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    (tmp_path / "00000.tar").touch()
    for data in (tmp_path, str(tmp_path), tmp_path / "00000.tar", str(tmp_path / "*.tar")):
        assert class_files(data) == (["cat", "dog"], ["a {c}"])
    (tmp_path / "classnames.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classnames.txt: no such class file"):
        class_files(tmp_path)


def test_names_and_templates_one_folder_above_the_shards(tmp_path, monkeypatch):
    (tmp_path / "classnames.txt").write_text("cat\ndog\n")
    (tmp_path / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.tar").touch()
    for data in (tmp_path / "test", tmp_path / "test" / "0.tar", str(tmp_path / "test" / "*.tar")):
        assert class_files(data) == (["cat", "dog"], ["a {c}"])
    monkeypatch.chdir(tmp_path / "test")
    assert class_files(".") == class_files("0.tar") == (["cat", "dog"], ["a {c}"])
    (tmp_path / "test" / "classnames.txt").write_text("owl\nfox\n")
    assert class_files(".") == (["owl", "fox"], ["{}"])  # other classes: those templates are not theirs


def test_a_file_of_open_clips_own_classes_is_taken_as_it_is(tmp_path):
    own = list(names._open_clip_sets().IMAGENET_CLASSNAMES)
    (tmp_path / "classnames.txt").write_text("\n".join(own))
    assert class_names(tmp_path / "classnames.txt") == own
    (tmp_path / "classnames.txt").write_text("\n".join([*own[:-1], own[0]]))
    with pytest.raises(ValueError, match="2 times"):
        class_names(tmp_path / "classnames.txt")


def word_embedder(dim=16):
    """Texts to rows that are not unit, so that forgetting to normalise shows."""
    table = {}

    def embed(texts):
        rng = np.random.default_rng(len(table))
        for text in texts:
            table.setdefault(text, rng.standard_normal(dim) * rng.uniform(0.2, 5))
        return np.array([table[text] for text in texts], np.float32)

    return embed


def test_classifier_equals_the_definition():
    embed, classes, prompts = word_embedder(), ["cat", "dog", "owl"], ["a {}", "the {c}", "{}"]
    got = zero_shot_classifier(embed, classes, prompts)
    for row, name in zip(got, classes, strict=True):
        each = [embed([prompt.replace("{}", name).replace("{c}", name)])[0].astype(np.float64) for prompt in prompts]
        mean = sum(e / np.linalg.norm(e) for e in each) / 3
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    assert got.dtype == np.float32
    assert np.linalg.norm(got, axis=1) == pytest.approx(1, abs=1e-6)


def test_classifier_equals_open_clips():
    import dualenc.torchvision_ops  # noqa: F401, I001
    import torch
    from open_clip import build_zero_shot_classifier

    embed = word_embedder()

    class Model:
        def encode_text(self, texts, normalize):
            rows = torch.tensor(embed(texts.texts))
            return torch.nn.functional.normalize(rows, dim=-1) if normalize else rows

    class Texts:
        def __init__(self, texts):
            self.texts = texts

        def to(self, device):
            return self

    classes, prompts = [f"class {i}" for i in range(23)], ["a {}", "the {}", "one {}."]
    theirs = build_zero_shot_classifier(Model(), Texts, classes, prompts)  # (D, C)
    assert np.abs(zero_shot_classifier(embed, classes, prompts) - theirs.numpy().T).max() < 1e-6


def test_classes_may_have_different_numbers_of_prompts_and_share_some():
    embed, prompts = word_embedder(), [["a", "b", "c"], ["d"], ["b", "d", "b"]]
    seen: list[str] = []
    got = classifier_of(lambda texts: (seen.extend(texts), embed(texts))[1], prompts)
    assert seen == ["a", "b", "c", "d"]  # each once
    for row, own in zip(got, prompts, strict=True):
        each = [embed([prompt])[0].astype(np.float64) for prompt in own]  # "b" counts twice where it stands twice
        mean = sum(e / np.linalg.norm(e) for e in each) / len(own)
        assert row == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)
    with pytest.raises(ValueError, match="class 1 has no prompt"):
        classifier_of(embed, [["a"], []])


def test_prompts_are_embedded_in_parts_of_bounded_size(monkeypatch):
    monkeypatch.setattr(names, "_PROMPTS_AT_ONCE", 10)
    embed, sizes = word_embedder(), []
    classes, prompts = [f"c{i}" for i in range(11)], ["a {}", "b {}", "c {}", "d {}"]

    def counting(texts):
        sizes.append(len(texts))
        return embed(texts)

    in_parts = zero_shot_classifier(counting, classes, prompts)
    assert sizes == [12, 8, 12, 8, 4]  # whole classes, each where its first prompt lies
    monkeypatch.undo()
    assert np.array_equal(in_parts, zero_shot_classifier(embed, classes, prompts))


@pytest.mark.parametrize(("classes", "prompts"), [(["cat"], ["{}"]), ([], ["{}"]), (["a", "b"], [])])
def test_a_classifier_of_too_little_is_refused(classes, prompts):
    with pytest.raises(ValueError, match="two classes and one template"):
        zero_shot_classifier(word_embedder(), classes, prompts)
    with pytest.raises(ValueError, match="two classes and one template"):
        class_prompts(Classes(classes), prompts)


def test_probabilities_sum_to_one_and_do_not_overflow():
    scores = np.array([[0.3, 0.2, -1.0], [1.0, 1.0, 1.0]])
    got = probabilities(scores, 100.0)
    assert got.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert got[0, 0] / got[0, 1] == pytest.approx(np.exp(10), rel=1e-4)
    assert np.isfinite(probabilities(scores, 1e6)).all()


def test_classes_take_the_order_of_the_datas_own_numbers():
    own = ["cat", "dog", "owl"]
    prompts = [["an owl", "owls"], ["a cat"], ["a dog"]]
    assert in_order_of(Classes(["owl", "cat", "dog"]), own) == Classes(own)
    assert in_order_of(Classes(["owl", "cat", "dog"], prompts), own) == Classes(own, [["a cat"], ["a dog"], prompts[0]])
    other = Classes(["Eule", "Katze", "Hund"])
    assert in_order_of(other, own) is other
    twice = Classes(["b", "a", "b"], [["first"], ["x"], ["second"]])
    assert in_order_of(twice, ["a", "b", "b"]).prompts == [["x"], ["first"], ["second"]]
    with pytest.raises(ValueError, match="2 class names for data whose labels number 3 classes"):
        in_order_of(Classes(["cat", "dog"]), own)
