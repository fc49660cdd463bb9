"""Classifiers that are kept: made once for an encoder and its prompts, and never believed when damaged."""

from __future__ import annotations

import os
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from dualenc.evaluate.zeroshot import classifier as module
from dualenc.evaluate.zeroshot.classifier import cache_folder, classifier
from dualenc.model.names import Classes, class_prompts, classifier_of
from tests.evaluate.conftest import WordEncoder

NAMES, TEMPLATES = ["cat", "dog", "owl"], ["a photo of a {}", "the {c}"]


class Marked(WordEncoder):
    """A WordEncoder that says which one it is."""

    def __init__(self, fingerprint="f" * 64):
        super().__init__()
        self.fingerprint = fingerprint


def made(folder, names=NAMES, templates=TEMPLATES, fingerprint="f" * 64):
    """The classifier, and whether any text was embedded for it."""
    encoder = Marked(fingerprint)
    rows = classifier(encoder, names, templates, folder)
    wanted = classifier_of(WordEncoder().embed_texts, class_prompts(Classes(list(names)), templates))
    assert np.array_equal(rows, wanted)
    return rows, bool(encoder.calls)


def only(folder):
    (path,) = folder.glob("*")
    return path


def test_it_is_made_once(tmp_path):
    _, worked = made(tmp_path / "kept")
    assert worked
    again, worked = made(tmp_path / "kept")
    assert not worked
    assert again.dtype == np.float32
    assert again.shape == (3, 32)
    again[0] = 0  # a caller may do what it likes with its own


@pytest.mark.parametrize(
    "other",
    [
        {"names": ["cat", "owl", "dog"]},
        {"names": ["cat", "dog", "fox"]},
        {"templates": ["a photo of a {}"]},
        {"templates": TEMPLATES[::-1]},
        {"fingerprint": "e" * 64},
    ],
)
def test_another_encoder_or_other_prompts_have_their_own(tmp_path, other):
    made(tmp_path)
    assert made(tmp_path, **other)[1]
    assert len(list(tmp_path.iterdir())) == 2


def test_prompts_are_what_counts_not_where_they_come_from(tmp_path):
    made(tmp_path)
    encoder = Marked()
    own = Classes(["CAT", "DOG", "OWL"], [["a photo of a cat", "the cat"], ["a photo of a dog", "the dog"], ["an owl"]])
    classifier(encoder, own, None, tmp_path)
    assert encoder.calls
    own.prompts[2][:] = ["a photo of a owl", "the owl"]
    encoder.calls.clear()
    classifier(encoder, own, None, tmp_path)
    assert not encoder.calls


def _flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "a bit in the rows": lambda path: _flip(path, -3),
    "a bit in the header": lambda path: _flip(path, 20),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04K\x01."),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(tmp_path, damage):
    made(tmp_path)
    path = only(tmp_path)
    DAMAGE[damage](path)
    assert made(tmp_path)[1]
    assert made(tmp_path)[1] == (damage == "a folder")  # which is not ours to remove


def test_a_file_under_a_wrong_name_is_not_believed(tmp_path):
    made(tmp_path / "a", NAMES)
    made(tmp_path / "b", ["cat", "dog", "fox"])
    os.replace(only(tmp_path / "b"), only(tmp_path / "a"))
    assert made(tmp_path / "a", NAMES)[1]


def test_an_encoder_of_another_width_under_the_same_fingerprint(tmp_path):
    made(tmp_path)
    path = only(tmp_path)
    about = {"fingerprint": "f" * 64, "prompts": "p", "made_by": "1"}
    assert module.read(path, about, 3, 32) is None  # other prompts
    assert made(tmp_path)[1] is False
    encoder = Marked()
    encoder.dim = 16
    encoder.embed_texts = lambda texts: np.eye(16, dtype=np.float32)[: len(texts)]
    assert classifier(encoder, NAMES, TEMPLATES, tmp_path).shape == (3, 16)


def test_none_is_kept_without_a_folder_or_a_fingerprint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(module.VARIABLE, raising=False)
    assert made(None)[1]
    assert made(None)[1]
    encoder = WordEncoder()
    classifier(encoder, NAMES, TEMPLATES)
    assert encoder.calls
    assert not list(tmp_path.iterdir())
    assert made("default")[1]
    assert not made("default")[1]
    assert only(tmp_path / "dualenc" / "classifiers").suffix == ".safetensors"


def test_where_they_are_kept(monkeypatch, tmp_path):
    monkeypatch.delenv(module.VARIABLE, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/dualenc/classifiers")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # the XDG specification: ignore it
    assert cache_folder() == Path("/home/someone/.cache/dualenc/classifiers")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/dualenc/classifiers")
    monkeypatch.setenv(module.VARIABLE, str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv(module.VARIABLE, "OFF")
    assert cache_folder() is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert made(tmp_path / "file" / "kept")[1]
    assert made("/proc/nowhere")[1]


def test_a_full_disk_is_no_error(tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert made(tmp_path)[1]
    assert not list(tmp_path.iterdir())


def test_those_not_used_for_longest_go(tmp_path, monkeypatch):
    made(tmp_path)
    size = only(tmp_path).stat().st_size
    monkeypatch.setattr(module, "LIMIT", 3 * size + size // 2)
    (tmp_path / "mine.txt").write_text("a user's own")
    for number in range(2):
        made(tmp_path, ["cat", "dog", f"class {number}"])
    for age, path in enumerate(sorted(tmp_path.glob("*.safetensors"), key=lambda p: p.stat().st_mtime_ns)):
        os.utime(path, (time.time() - 100 + age,) * 2)
    assert not made(tmp_path)[1]  # the oldest is used again
    made(tmp_path, ["cat", "dog", "class 2"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert not made(tmp_path)[1]
    assert not made(tmp_path, ["cat", "dog", "class 1"])[1]
    assert made(tmp_path, ["cat", "dog", "class 0"])[1]  # gone
    assert (tmp_path / "mine.txt").exists()
    monkeypatch.setattr(module, "LIMIT", 3 * 32 * 4 - 1)
    assert made(tmp_path, ["cat", "dog", "class 9"])[1]
    assert made(tmp_path, ["cat", "dog", "class 9"])[1]  # larger than all room: not kept, and nothing goes for it
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


def test_what_killed_runs_left_goes(tmp_path):
    old, young = tmp_path / ".a.tmp", tmp_path / ".b.tmp"
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    made(tmp_path)
    assert not old.exists()
    assert young.exists()


def _make_some(folder):
    for number in range(20):
        classifier(Marked(), ["cat", "dog", f"class {number % 4}"], TEMPLATES, folder)


def test_processes_may_share_a_folder(tmp_path):
    processes = [get_context("fork").Process(target=_make_some, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.iterdir())) == 4
    assert not any(made(tmp_path, ["cat", "dog", f"class {number}"])[1] for number in range(4))


def test_a_thousand_classes_come_back_whole(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    assert made(tmp_path, names)[1]
    assert not made(tmp_path, names)[1]
    assert only(tmp_path).stat().st_size < 1000 * 32 * 4 + 1000


def test_templates_beside_prompts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="leave the templates out"):
        classifier(Marked(), Classes(["a", "b"], [["a"], ["b"]]), TEMPLATES, tmp_path)


def test_those_made_when_prompts_embedded_otherwise_are_made_anew(tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr(module, "_MADE_BY", "1")
        made(tmp_path)
    assert made(tmp_path)[1]


def test_another_users_file_is_used_though_its_time_cannot_be_set(tmp_path, monkeypatch):
    def refused(path):
        raise PermissionError(1, "Operation not permitted", str(path))

    made(tmp_path)
    monkeypatch.setattr(module.os, "utime", refused)
    assert not made(tmp_path)[1]
