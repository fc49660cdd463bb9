"""`dualenc search` on odd data and odd surroundings."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dualenc import Index
from dualenc.cli import main
from dualenc.index.compose import combine
from tests.serve.fakes import FakeEncoder, use_fake_encoders
from tests.serve.running import in_thread, rows
from tests.small import COLOURS, png, sample, write_shards, write_tar


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder_folder: Path) -> Path:
    """Twelve samples whose metadata has a column that is called as the hits' own ones."""
    monkeypatch.chdir(tmp_path)
    odd = [
        sample(f"k{i}", list(COLOURS)[i % 8], seed=i, json={"score": "high", "id": "mine", "n": i}) for i in range(12)
    ]
    write_tar(Path("shards/0.tar"), [member for members in odd for member in members])
    words = ["embed", "--encoder", str(encoder_folder), "--data", "shards", "--out", "store", "--workers", "0"]
    assert main(words) == 0
    assert main(["index", "build", "store", "index"]) == 0
    return Path("index")


def hits(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["search", "index", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_own_score_and_id_stand(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = hits(capsys, "a red picture", "-k", "3")
    assert all(isinstance(hit["score"], float) and isinstance(hit["id"], int) for hit in found)
    assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)


def test_text_image_and_both(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("red.png").write_bytes(png(colour=COLOURS["red"], seed=0))
    by_image = hits(capsys, "--image", "red.png", "-k", "1")[0]
    assert by_image["key"] == "k0"  # the very picture
    assert by_image["score"] == pytest.approx(1, abs=2e-3)
    text, both = (
        {hit["key"]: hit["score"] for hit in hits(capsys, *w, "-k", "12")}
        for w in (["cat"], ["cat", "--image", "red.png"])
    )
    image = {hit["key"]: hit["score"] for hit in hits(capsys, "--image", "red.png", "-k", "12")}
    ratio = [(text[key] + image[key]) / both[key] for key in text]  # both count equally: a sum, up to its length
    assert np.ptp(ratio) < 0.05 * abs(np.mean(ratio))


def test_where(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {hit["n"] for hit in hits(capsys, "cat", "--where", "n >= 9")} == {9, 10, 11}


def test_nothing_to_search_for(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "index"]) == 1
    assert "give a text, --image FILE, or both" in capsys.readouterr().err


def near(index: Path, weights: dict[int, float], **search) -> list[int]:
    """Ids by the float64 sum of rows of the index."""
    own = Index.open(index).vectors(range(12)).astype(np.float64)
    return np.argsort(-own @ sum(weight * own[i] for i, weight in weights.items()), kind="stable").tolist()


def test_weighted_terms(index: Path, capsys: pytest.CaptureFixture[str], encoder_folder: Path) -> None:
    from dualenc import DualEncoder

    assert [hit["id"] for hit in hits(capsys, "2*#3 - 0.5*#1 + #7", "-k", "12")] == near(index, {3: 2, 1: -0.5, 7: 1})
    Path("red.png").write_bytes(png(colour=COLOURS["red"], seed=0))
    encoder, own = DualEncoder.load(encoder_folder), Index.open(index).vectors(range(12)).astype(np.float64)
    query = 2 * encoder.embed_texts(["red car"])[0] + encoder.embed_images(["red.png"])[0] - 0.25 * own[4]
    found = hits(capsys, '2*"red car" + red.png - 0.25*#4', "-k", "12")
    order = np.argsort(-own @ query)
    assert [hit["id"] for hit in found] == order.tolist()
    expected = (own @ query / np.linalg.norm(query))[order]
    assert np.abs(np.array([hit["score"] for hit in found]) - expected).max() < 1e-4


def test_a_row_is_looked_up_without_an_encoder(index: Path) -> None:
    code = """
import sys
from dualenc.cli import main
assert main(["search", "index", "#5", "-k", "3", "--json", "--where", "n > 2"]) == 0
print(*sorted({"torch", "open_clip", "pytorch_lightning"} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [hit["id"] for hit in json.loads(done.stdout)]
    assert found == [i for i in near(index, {5: 1}) if i > 2][:3]
    assert found[0] == 5
    assert done.stderr.strip() == ""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty rows of a (fake) encoder, with pictures in a shard; nothing here needs torch."""
    folder = tmp_path_factory.mktemp("plain")
    members = [(f"k{i}.png", png(colour=list(COLOURS.values())[i % 8], seed=i)) for i in range(30)]
    tar = write_tar(folder / "shard.tar", members)
    with tarfile.open(tar) as opened:
        places = [(member.offset_data, member.size) for member in opened]
    metadata = [
        {
            "key": f"k{i}",
            "caption": f"picture {i}",
            "n": i,
            "image_path": str(tar),
            "image_offset": at,
            "image_size": size,
        }
        for i, (at, size) in enumerate(places)
    ]
    Index.build(rows(30), folder / "photos", metadata=metadata, recipe="flat", encoder=FakeEncoder())
    return folder / "photos"


@pytest.fixture
def row(tmp_path: Path) -> Path:
    np.save(tmp_path / "row.npy", rows(1, seed=4)[0])
    return tmp_path / "row.npy"


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["search", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that says why."""
    capsys.readouterr()
    assert main(["search", *map(str, words)]) == 1
    said = capsys.readouterr().err  # a server in a thread has its log there, too
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("dualenc: error: ")]
    return line


def test_an_embedding_file(plain: Path, row: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index, query = Index.open(plain), np.load(row)
    ids, scores = index.search(query[None], k=5)
    found = answered(capsys, plain, "--embedding", row, "-k", "5")
    assert [hit["id"] for hit in found] == ids[0].tolist()
    assert [hit["score"] for hit in found] == pytest.approx(scores[0].tolist(), abs=1e-6)
    for form, name in (
        (query[None], "two.npy"),
        (query.astype(np.float16), "half.npy"),
        (query.astype(">f8"), "big.npy"),
    ):
        np.save(tmp_path / name, form)
        assert [hit["id"] for hit in answered(capsys, plain, "--embedding", tmp_path / name, "-k", "5")] == ids[
            0
        ].tolist()
    both = combine(np.stack([index.vectors([3])[0], query]), [2, 1])
    found = answered(capsys, plain, "2*#3", "--embedding", row, "-k", "30")
    assert [hit["id"] for hit in found] == index.search(both[None], k=30)[0][0].tolist()


@pytest.mark.parametrize(
    "words", [("#17",), ("--embedding", "row.npy"), ("#17", "--where", "n > 3", "--group-by", "key")]
)
def test_an_index_alone_is_searched_without_torch(plain: Path, row: Path, words: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom dualenc.cli import main\n"
        f"assert main(['search', {str(plain)!r}, *{words!r}]) == 0\n"
        "heavy = {'torch', 'open_clip', 'pytorch_lightning', 'PIL', 'httpx', 'fastapi', 'yaml', 'matplotlib', 'asyncio'}\n"
        "print(*sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=row.parent)
    assert len(done.stdout.splitlines()) == 10
    assert set(done.stderr.split()) <= {"yaml", "asyncio"}, done.stderr


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.ones(16), "is of length 4, not 1; divide it by"),
        (np.zeros(16), "is of length 0, not 1"),
        (np.full(16, np.nan), "is of length nan, not 1"),
        (np.eye(16)[:2], "has the shape (2, 16); a query is one row"),
        (np.float32(1), "has the shape (); a query is one row"),
        (np.eye(8)[0], "has 8 numbers, the rows of"),
        (np.array(["a"]), "holds no array of numbers"),
        (np.array([{}], object), "is no .npy file of numbers"),
        (b"text", "is no .npy file of numbers"),
        (b"", "is no .npy file of numbers"),
        (None, "No such file or directory: check the path"),
    ],
)
def test_an_embedding_file_that_is_none_is_one_line(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: object, said: str
) -> None:
    path = tmp_path / "bad.npy"
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif value is not None:
        np.save(path, value, allow_pickle=True)
    line = refused(capsys, plain, "--embedding", path)
    assert said in line
    assert str(path) in line


def test_an_archive_is_no_embedding(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "a.npz", rows(1))
    assert "holds no array of numbers" in refused(capsys, plain, "--embedding", tmp_path / "a.npz")


@pytest.fixture(scope="module")
def server(plain: Path) -> Iterator[str]:
    """The same index under a running server, with another first."""
    from dualenc.serve.app import create_app
    from dualenc.serve.settings import Settings

    other = plain.parent / "other"
    Index.build(rows(5, dim=8), other, recipe="flat")
    with pytest.MonkeyPatch.context() as patch:
        use_fake_encoders(patch)
        with in_thread(create_app(Settings({"photos": plain, "other": other}, encoder="fake", token="secret"))) as url:
            yield url


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUALENC_TOKEN", "secret")


@pytest.mark.parametrize(
    "words",
    [
        ("#17",),
        ("2*#17 - 0.5*#3", "-k", "30"),
        ("#17", "-k", "4", "--offset", "5"),
        ("#17", "--where", "n > 20"),
        ("#17", "--threshold", "0.2", "-k", "30"),
        ("#17", "--group-by", "key", "-k", "3"),
        ("--embedding", "row.npy"),
        ("#2", "--embedding", "row.npy", "-k", "30"),
    ],
)
def test_a_server_answers_as_the_folder_does(
    plain: Path,
    server: str,
    row: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple,
) -> None:
    monkeypatch.chdir(row.parent)
    local = answered(capsys, plain, *words)
    for index in ([], ["photos"], [str(plain)]):  # its name, or the very words that search the folder
        found = answered(capsys, *index, *words, "--server", server)
        assert [hit["score"] for hit in found] == pytest.approx([hit["score"] for hit in local], abs=1e-6)
        for there, here in zip(found, local, strict=True):
            assert there["image_url"] == f"{server}/items/{here['id']}/image?index=photos"
            private = {name for name in here if name.startswith("image_")}
            assert {n: v for n, v in there.items() if n not in ("image_url", "score")} == {
                n: v for n, v in here.items() if n not in private | {"score"}
            }
    assert main(["search", *words, "--server", server]) == 0
    printed = capsys.readouterr().out
    assert main(["search", str(plain), *words]) == 0
    lines = [line.rpartition("]")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line.rpartition("]")[0] for line in printed.splitlines()] == lines


def test_a_server_embeds_texts_and_uploads(
    plain: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    index, encoder, data = Index.open(plain), FakeEncoder(), png(colour=(9, 200, 9))
    (tmp_path / "green.png").write_bytes(data)
    text = encoder.embed_texts(["a red thing"])[0]
    image = encoder.embed_images([Image.open(io.BytesIO(data))])[0]
    expect = {
        ("a red thing",): text,
        ("photos", "a red thing"): text,
        ("photos", "--image", f"{tmp_path}/green.png"): image,
        ("a red thing", "--image", f"{tmp_path}/green.png"): combine(np.stack([text, image]), [1, 1]),
        (f'"a red thing" - 2*"{tmp_path}/green.png"',): combine(np.stack([text, image]), [1, -2]),
    }
    for words, query in expect.items():
        found = answered(capsys, *words, "--server", server, "-k", "30")
        assert [hit["id"] for hit in found] == index.search(query[None], k=30)[0][0].tolist(), words


def test_more_hits_than_one_answer_holds(
    plain: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dualenc.cli.search_server.MOST", 7)
    every = answered(capsys, "#17", "-k", "30", "--server", server)
    assert [hit["id"] for hit in every] == [hit["id"] for hit in answered(capsys, plain, "#17", "-k", "30")]
    assert answered(capsys, "#17", "-k", "100", "--server", server) == every
    assert answered(capsys, "#17", "-k", "9", "--offset", "3", "--server", server) == every[3:12]


def test_the_grid_s_pictures_come_from_the_server(
    plain: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for words, name in (((str(plain),), "here.png"), (("photos", "--server", server), "there.png")):
        assert main(["search", words[0], "#17", *words[1:], "-k", "4", "--grid", str(tmp_path / name)]) == 0
    here, there = (np.asarray(Image.open(tmp_path / name), np.float64) for name in ("here.png", "there.png"))
    assert here.shape == there.shape
    assert np.abs(here - there).mean() < 3  # a JPEG of the same pictures
    assert here.std() > 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "#1"], "serves no index 'nowhere'; it serves photos, other"),
        (["#1", "--encoder", "e"], "--encoder has no effect with --server"),
        (["#99"], "99"),
        (["#1", "--where", "height > 5"], "height"),
        (["#1", "-k", "0"], "-k 0"),
        ([], "nothing to search for"),
        ([" "], "empty"),
        (["--image", "nowhere.png"], "nowhere.png"),
    ],
)
def test_what_a_server_refuses_is_one_line(
    server: str, capsys: pytest.CaptureFixture[str], words: list, said: str
) -> None:
    assert said in refused(capsys, *words, "--server", server)


def test_a_folder_that_is_served_under_another_name_is_found(
    plain: Path, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(plain, tmp_path / "copied")
    assert answered(capsys, copy, "#17", "--server", server) == answered(capsys, "photos", "#17", "--server", server)
    Index.open(copy).remove([0])
    assert "serves no index" in refused(capsys, str(copy), "#17", "--server", server)


@pytest.mark.parametrize(("given", "said"), [("wrong", "not the token"), (None, "Bearer TOKEN")])
def test_who_has_no_right_token_is_told_where_to_give_it(
    server: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    given: str | None,
    said: str,
) -> None:
    monkeypatch.delenv("DUALENC_TOKEN")
    if given:
        monkeypatch.setenv("DUALENC_TOKEN", given)
    line = refused(capsys, "#17", "--server", server)
    assert said in line and "--token-file FILE or in DUALENC_TOKEN" in line


def test_a_folder_of_another_encoder_is_not_taken_for_the_server_s(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Index.build(rows(5), tmp_path / "photos", recipe="flat", encoder="0" * 64)
    assert "has another index as 'photos'" in refused(capsys, tmp_path / "photos", "#1", "--server", server)


def test_a_server_s_token(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUALENC_TOKEN", "another")
    assert "401" in refused(capsys, "#1", "--server", server)
    (tmp_path / "token").write_text("secret\n")
    assert len(answered(capsys, "#1", "--server", server, "--token-file", tmp_path / "token")) == 10
    assert "--token-file is for a server" in refused(capsys, "photos", "#1", "--token-file", tmp_path / "token")


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert "is `dualenc serve` running there?" in refused(capsys, "#1", "--server", "http://127.0.0.1:9")


def test_without_an_index_or_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["search"])
    assert stopped.value.code == 2
    assert "the following arguments are required: index" in capsys.readouterr().err


def test_pages_threshold_and_groups(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = hits(capsys, "#2", "-k", "12")
    assert len(every) == 12
    assert hits(capsys, "#2", "-k", "3", "--offset", "4") == every[4:7]
    assert hits(capsys, "#2", "-k", "9", "--offset", "10") == every[10:]
    assert hits(capsys, "#2", "--offset", "12") == []
    least = every[5]["score"] - 1e-6
    assert hits(capsys, "#2", "-k", "12", "--threshold", str(least)) == [hit for hit in every if hit["score"] >= least]
    one = hits(capsys, "#2", "-k", "12", "--group-by", "caption")
    firsts = {hit["caption"]: hit for hit in reversed(every)}
    assert one == sorted(firsts.values(), key=lambda hit: -hit["score"])
    assert len(one) < 12
    assert hits(capsys, "#2", "-k", "12", "--group-by", "key") == every
    assert main(["search", "index", "#2", "-k", "2", "--offset", "4"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["5", "6"]
    assert main(["search", "index", "#2", "--threshold", "1.5"]) == 0
    assert capsys.readouterr().out == "nothing found\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["#99"], "id 99 is not in the index of 12 rows"),
        (['"a" +'], "the query is read as several terms, but the end is neither"),
        (["#1 - #1"], "cancel"),
        (["cat", "-k", "0"], "-k 0"),
        (["cat", "--offset", "-1"], "offset"),
        (["cat", "--group-by", "height"], "group_by='height' is no column"),
        (["cat", "--where", "height > 5"], "height"),
        (["cat", "--image", "nowhere.png"], "nowhere.png"),
        ([" "], "empty"),
    ],
)
def test_what_goes_wrong_is_one_line(
    index: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    capsys.readouterr()
    assert main(["search", "index", *words]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert said in line
    assert "Traceback" not in line


def test_folders_named_like_recipes_are_not_in_the_way(index: Path) -> None:
    for name in ("flat", "auto", "ivf"):
        Path(name).mkdir()
    assert main(["index", "build", "store", "other"]) == 0


def test_a_foreign_encoder_is_refused(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dualenc.model.encoder import DualEncoder
    from tests.small import loaded

    DualEncoder(loaded("vit", seed=1), device="cpu").save("foreign")
    assert main(["search", "index", "cat", "--encoder", "foreign"]) == 1
    assert "search with that encoder" in capsys.readouterr().err


def test_scoring_without_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--config",
        "scenes",
        "--data.val",
        str(shards),
        "--data.zeroshot",
        "null",
        "--trainer.default_root_dir",
        "run",
    ]
    assert main(["validate", *words]) == 1
    assert "random weights" in capsys.readouterr().err
    for verb in ("validate", "fit"):
        assert main([verb, *words, "--ckpt_path", "last"]) == 1
        assert "no last.ckpt" in capsys.readouterr().err
    assert not Path("run").exists()


def test_missing_class_names_are_told_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards(Path("classes"), 8, shards=1, prefix="c", cls=lambda i: i % 2)
    words = ["fit", "--config", "scenes", "--data.train", str(shards), "--data.val", "null", "--data.batch_size", "8"]
    assert main([*words, "--data.zeroshot", "classes", "--trainer.default_root_dir", "run"]) == 1
    assert "classnames.txt" in capsys.readouterr().err
    assert not Path("run/checkpoints").exists()


def test_settings_without_effect_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    encoder_folder: Path,
    shards: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--data.train", str(shards), "--model.start_from", str(encoder_folder), "--model.embed_dim", "64"]
    assert main([*words, "--trainer.max_epochs", "1"]) == 1
    assert "model.embed_dim has no effect" in capsys.readouterr().err


def test_captions_do_nothing_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions = ["\x1b[31mred\x07\nforged  0.999", "family \U0001f468\u200d\U0001f469", "left \u202e thgir"]
    Index.build(rows(3), tmp_path / "odd", metadata=[{"caption": c} for c in captions], recipe="flat")
    assert main(["search", str(tmp_path / "odd"), "#0", "-k", "3"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 3 and captions[1] in printed
    assert not any(sign in printed for sign in "\x1b\x07\u202e")
    assert answered(capsys, tmp_path / "odd", "#0")[0]["caption"] == captions[0]
