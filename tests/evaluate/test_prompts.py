"""Class names that are given in another order than the data's own layout numbers its classes."""

from __future__ import annotations

from dualenc.data.shards import open_source
from dualenc.embed.run import write_store
from dualenc.evaluate.zeroshot import prompts as module
from dualenc.evaluate.zeroshot.prompts import chosen_classes, own_names
from dualenc.model.encoder import DualEncoder
from tests.small import loaded, png, write_shards


def folders(root, *names):
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_bytes(png(seed=i))
    return root


def test_a_folder_a_store_of_it_a_table_and_classnames(tmp_path):
    folder = folders(tmp_path / "in", "cat", "dog", "owl")
    write_store(
        DualEncoder(loaded(), device="cpu"), open_source(folder), tmp_path / "store", workers=0, accelerator="cpu"
    )
    (tmp_path / "in" / "table.csv").write_text("path,label\ncat/0.png,cat\ndog/0.png,dog\nowl/0.png,owl\n")
    write_shards(tmp_path / "shards", 3, shards=1)
    assert own_names(tmp_path / "shards") is None
    assert chosen_classes("owl,cat", tmp_path / "shards").names == ["owl", "cat"]
    (tmp_path / "shards" / "classnames.txt").write_text("cat\ndog\nowl\n")
    for data in (folder, tmp_path / "store", tmp_path / "in" / "table.csv", tmp_path / "shards"):
        assert chosen_classes("owl,cat,dog", data).names == own_names(data) == ["cat", "dog", "owl"]
        assert chosen_classes("owl,cat,dog", data, "breed").names == ["owl", "cat", "dog"], (
            "its own names number another"
        )


def test_other_names_are_taken_by_number_and_told_once(tmp_path, caplog):
    module._tell.cache_clear()
    folder = folders(tmp_path / "in", "cat", "dog")
    for _ in range(2):
        assert chosen_classes("Katze,Hund", folder).names == ["Katze", "Hund"]
    (line,) = caplog.messages
    assert line.endswith("those given take their place by number: 0 is 'Katze', there 'cat'")
