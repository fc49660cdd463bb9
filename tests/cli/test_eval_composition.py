"""`dualenc eval composition` from files to the page, and the kinds of data that every `eval` verb takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dualenc.cli import eval_composition, main
from dualenc.embed import run as embedding
from dualenc.files import sha256
from tests.data.layouts import benchmark_set
from tests.small import COLOURS, png, sample, write_tar

ALONE = ["--workers", "0", "--accelerator", "cpu"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def report(capsys: pytest.CaptureFixture[str], words: list[str]) -> dict:
    assert main(["eval", *words, *ALONE, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], words: list[str], *mentions: str) -> None:
    assert main(["eval", *words, *ALONE]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(error) == 1
    for mention in mentions:
        assert mention in error[0], error[0]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Six images, of which SugarCrepe's and Winoground's files name four; one that nobody names is broken."""
    folder = tmp_path / "val2017"
    folder.mkdir()
    for i, colour in enumerate([*COLOURS.values()][:5]):
        (folder / f"{i:012d}.png").write_bytes(png(colour=colour, seed=i))
        (folder / f"{i:012d}.txt").write_text("a caption of the folder's own, which is not asked for")
    (folder / "broken.png").write_bytes(b"no picture")
    files = tmp_path / "crepe"
    files.mkdir()
    for kind, rows in (("swap_att", [0, 1, 2, 3]), ("add_obj", [3, 2, 2])):
        pairs = {str(2 * n): entry(i, f"{kind} {n}") for n, i in enumerate(rows)}
        pairs["0"]["filename"] = f"val2017/{pairs['0']['filename']}"  # the same image by another name
        (files / f"{kind}.json").write_text(json.dumps(pairs))
    lines = [
        {
            "image_0": f"{i:012d}",
            "image_1": f"{i + 1:012d}",
            "caption_0": f"a {i}",
            "caption_1": f"{i} a",
            "tag": f"t{i}",
        }
        for i in (0, 2)
    ]
    (tmp_path / "examples.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def entry(image: int, text: str) -> dict[str, str]:
    return {"filename": f"{image:012d}.png", "caption": f"right {text}", "negative_caption": f"wrong {text}"}


def test_sugarcrepe_from_a_folder_of_images(capsys, coco, encoder, encoder_folder, monkeypatch):
    asked = []
    embed_source = embedding.embed_source

    def watched(used, source, **settings):
        asked.append([*source.keys])
        made = embed_source(used, source, **settings)
        assert len(made.texts) == 0
        return made

    monkeypatch.setattr(embedding, "embed_source", watched)
    words = ["composition", "--encoder", str(encoder_folder), "--data", "val2017"]
    found = report(capsys, [*words, "--sugarcrepe", "crepe", "--out", "out"])
    assert asked == [[f"{i:012d}" for i in range(4)]]  # each image once, though it has several captions, and no other
    for kind in ("swap_att", "add_obj"):
        pairs = json.loads(Path(f"crepe/{kind}.json").read_text()).values()
        images = encoder.embed_images([str(coco / Path(pair["filename"]).name) for pair in pairs])
        right, wrong = (encoder.embed_texts([pair[n] for pair in pairs]) for n in ("caption", "negative_caption"))
        assert found[f"composition/sugarcrepe/{kind}/accuracy"] == np.mean(
            (images * right).sum(1) > (images * wrong).sum(1)
        )
    kinds = [found[f"composition/sugarcrepe/{kind}/accuracy"] for kind in ("swap_att", "add_obj")]
    assert found["composition/sugarcrepe/accuracy"] == np.mean(kinds)
    page = Path("out/report.html").read_text()
    assert "Composition: SugarCrepe" in page and "right add_obj 0" in page and page.count("data:image/jpeg") >= 4
    one = report(capsys, [*words, "--sugarcrepe", "crepe/add_obj.json", "--bootstrap", "0"])
    assert not any(key.endswith("/low") for key in one) and one["composition/sugarcrepe/add_obj/count"] == 3


def test_what_the_captions_come_from_is_known(coco, encoder_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(eval_composition, "finish", lambda options, *_: seen.append(options.provenance) or 0)
    words = ["eval", "composition", "--encoder", str(encoder_folder), "--data", "val2017", *ALONE]
    assert main([*words, "--sugarcrepe", "crepe"]) == main([*words, "--winoground", "examples.jsonl"]) == 0
    names = [f"crepe/{kind}.json" for kind in ("swap_att", "add_obj")]
    assert seen[0] == {f"sugarcrepe/{Path(n).name}/sha256": sha256(n) for n in names} | {"sugarcrepe": "crepe"}
    assert seen[1] == {"winoground/examples.jsonl/sha256": sha256("examples.jsonl"), "winoground": "."}


def test_winoground_from_shards_and_from_a_store(capsys, coco, encoder_folder):
    for i in range(5):
        members = [(f"{i:012d}.png", (coco / f"{i:012d}.png").read_bytes()), (f"{i:012d}.txt", b"a caption")]
        write_tar(Path(f"shards/{i}.tar"), members)
    words = ["composition", "--encoder", str(encoder_folder), "--winoground", "examples.jsonl"]
    found = report(capsys, [*words, "--data", "shards", "--by", "tag"])
    assert found == report(capsys, [*words, "--data", "val2017", "--by", "tag"])
    assert {found[f"composition/winoground/{name}_score"] for name in ("text", "image", "group")} <= {0.0, 0.5, 1.0}
    assert found["composition/winoground/by/tag/t2/count"] == 1
    embed = ["embed", "--encoder", str(encoder_folder), "--data", "shards", "--out", "store", "--dtype", "float32"]
    assert main([*embed, *ALONE]) == 0
    capsys.readouterr()
    assert report(capsys, [*words, "--data", "store", "--by", "tag"]) == found


def test_what_is_missing_says_where_it_is_had(capsys, coco, encoder_folder):
    words = ["composition", "--encoder", str(encoder_folder)]
    refused(capsys, [*words, "--data", "val2017", "--sugarcrepe", "nothing"], "nothing", "RAIVNLab/sugar-crepe")
    refused(capsys, [*words, "--data", "nothing", "--sugarcrepe", "crepe"], "nothing: no such file", "val2017.zip")
    (coco / f"{2:012d}.png").unlink()
    missing = "1 of 5 images are not in --data, or do not decode (000000000002.png)"
    refused(capsys, [*words, "--data", "val2017", "--sugarcrepe", "crepe"], missing, "val2017.zip")
    refused(capsys, [*words, "--data", "val2017", "--winoground", "examples.jsonl"], "1 of 4", "facebook/winoground")
    (coco / f"{2:012d}.png").write_bytes(b"no picture")  # told when it is to be decoded
    refused(capsys, [*words, "--data", "val2017", "--sugarcrepe", "crepe"], missing)
    refused(capsys, [*words, "--data", "val2017"], "no sample has swap_attribute")
    refused(capsys, [*words, "--data", "val2017", "--bootstrap", "-1"], "--bootstrap -1")
    refused(
        capsys, [*words, "--data", "data/wds_flickr8k"], "clip-benchmark/wds_flickr8k --local-dir data/wds_flickr8k"
    )


def test_classes_of_a_folder_of_a_table_and_of_a_benchmark_set(capsys, encoder_folder):
    pictures = {"red": 3, "blue": 2, "green": 4}
    lines = ["file,label"]
    for colour, count in pictures.items():
        for i in range(count):
            path = Path("pictures", colour, f"{i}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(colour=COLOURS[colour], seed=i))
            lines.append(f"{path},{colour}")
    Path("table.csv").write_text("\n".join(lines))
    words = ["zeroshot", "--encoder", str(encoder_folder), "--bootstrap", "0"]
    by_folder = report(capsys, [*words, "--data", "pictures"])
    assert by_folder["zeroshot/images"] == 9 and by_folder["zeroshot/classes"] == 3
    recalls = {key: value for key, value in by_folder.items() if key.startswith("zeroshot/recall/")}
    assert set(recalls) >= {f"zeroshot/recall/{colour}" for colour in pictures}
    by_table = report(capsys, [*words, "--data", "table.csv"])
    assert {key: by_table[key] for key in recalls} == recalls and by_table["zeroshot/acc1"] == by_folder[
        "zeroshot/acc1"
    ]
    benchmark_set(Path("wds_x"))
    whole = report(capsys, [*words, "--data", "wds_x"])
    assert whole["zeroshot/images"] == 6 and whole["zeroshot/templates"] == 2
    assert whole == report(capsys, [*words, "--data", "wds_x/test"])


def test_captions_of_a_table_and_of_a_benchmark_set(capsys, encoder_folder):
    rows = ["image,text"]
    for i, colour in enumerate(COLOURS):
        Path(f"{i}.png").write_bytes(png(colour=COLOURS[colour], seed=i))
        rows += [f"{i}.png,a {colour} picture", f"{i}.png,all {colour}"]
        write_tar(Path(f"shards/{i}.tar"), sample(str(i), colour, [f"a {colour} picture", f"all {colour}"], seed=i))
    Path("table.csv").write_text("\n".join(rows))
    words = ["retrieval", "--encoder", str(encoder_folder), "--ks", "1", "--bootstrap", "0"]
    found = report(capsys, [*words, "--data", "table.csv"])
    assert found["text_to_image/queries"] == 16 and found["text_to_image/gallery"] == 8
    assert found == report(capsys, [*words, "--data", "shards"])
    benchmark_set(Path("wds_y"), "retrieval")
    assert report(capsys, [*words, "--data", "wds_y"])["text_to_image/queries"] == 12
