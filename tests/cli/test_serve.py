"""`dualenc serve`: words to settings; what it does with them is tested in tests/serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dualenc.cli import build_parser, main
from dualenc.cli.serve import named, token
from dualenc.serve.settings import Settings


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What a server would have been started with."""
    started: list[Settings] = []
    monkeypatch.delenv("DUALENC_TOKEN", raising=False)
    monkeypatch.setattr("dualenc.serve.run.serve", lambda settings: started.append(settings) or 0)
    monkeypatch.setattr("dualenc.serve.run.leave", lambda code: None)
    return started


def serve(told: list[Settings], *words: str) -> Settings:
    assert main(["serve", *words]) == 0
    return told.pop()


def test_defaults_are_those_of_the_settings(told: list[Settings]) -> None:
    assert serve(told, "runs/photos") == Settings({"photos": Path("runs/photos")})


def test_every_option_arrives(told: list[Settings], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\nnot this\n")
    words = "a=x/y b=z --encoder E --host ::1 --port 81 --workers 3 --threads 2 --rate 2.5 --fetch-urls --max-body 3MB"
    more = [
        "--precision",
        "int8",
        "--log",
        "json",
        "--token-file",
        str(tmp_path / "token"),
        "--cors",
        "http://a",
        "--cors",
        "http://b",
    ]
    expected: dict[str, Any] = {
        "indexes": {"a": Path("x/y"), "b": Path("z")},
        "encoder": "E",
        "host": "::1",
        "port": 81,
        "workers": 3,
        "threads": 2,
        "token": "secret",
        "cors": ("http://a", "http://b"),
        "rate": 2.5,
        "fetch_urls": True,
        "max_body": 3_000_000,
        "precision": "int8",
        "log": "json",
    }
    assert serve(told, *words.split(), *more) == Settings(**expected)


def test_an_origin_takes_no_index(told: list[Settings]) -> None:
    got = serve(told, "--cors", "http://a", "x", "--cors=*")
    assert (got.cors, list(got.indexes)) == (("http://a", "*"), ["x"])


def test_the_token_is_never_among_the_words() -> None:
    options = vars(build_parser().parse_args(["serve", "x"]))
    assert "token" not in options
    assert "token_file" in options


def test_a_token_of_the_environment(told: list[Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DUALENC_TOKEN", "outside")
    assert serve(told, "x").token == "outside"
    (tmp_path / "token").write_text("inside")
    assert serve(told, "x", "--token-file", str(tmp_path / "token")).token == "inside"
    monkeypatch.setenv("DUALENC_TOKEN", "")
    assert token(None) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["x", "other/x"], "two indexes are called 'x'"),
        (["a=x", "a=y"], "two indexes are called 'a'"),
        (["=x"], "'=x' is neither INDEX nor NAME=INDEX"),
        (["a="], "'a=' is neither INDEX nor NAME=INDEX"),
        (["x", "--max-body", "much"], "--max-body 'much' is no amount of bytes"),
        (["x", "--max-body", "3 XB"], "--max-body '3 XB' is no amount of bytes"),
        (["x", "--workers", "0"], "workers=0"),
        (["x", "--port", "70000"], "port=70000"),
        (["x", "--token-file", "nowhere"], "nowhere: No such file or directory"),
        (["x", "--token-file", "empty"], "empty has no token in its first line"),
    ],
)
def test_what_cannot_be_is_one_line(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").write_text("\n")
    assert main(["serve", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named(["a=b"]) == {"a=b": Path("a=b")}  # a folder that is called so
    assert named(["c=d=e", "."]) == {"c": Path("d=e"), tmp_path.name: Path(".")}
    assert list(named(["z", "y", "x=y"])) == ["z", "y", "x"]


@pytest.mark.parametrize(
    ("size", "count"), [("20MB", 20_000_000), ("20MiB", 20 << 20), ("4096", 4096), ("0.5 GB", 500_000_000)]
)
def test_sizes(told: list[Settings], size: str, count: int) -> None:
    assert serve(told, "x", "--max-body", size).max_body == count


@pytest.mark.parametrize("missing", ["no-such-folder", "empty"])
def test_no_index_is_one_line(missing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["serve", str(tmp_path / missing), "--port", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "index build" in line


@pytest.mark.parametrize(("words", "warned"), [([], True), (["--token-file", "token"], False)])
def test_a_warning_where_others_could_search(
    words: list[str], warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("secret")
    monkeypatch.delenv("DUALENC_TOKEN", raising=False)
    assert main(["serve", "nowhere", "--port", "0", "--host", "0.0.0.0", *words]) == 1
    assert ("can be reached from other machines" in capsys.readouterr().err) is warned
