"""The command line explains itself, quickly: help needs none of the heavy libraries."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

from dualenc.cli import LIGHTNING, build_parser, explain, main

COMMANDS = {
    "data scenes",
    "data pack",
    "data check",
    "data bench",
    "data mine",
    "data score",
    "data filter",
    "data overlap",
    "fit",
    "validate",
    "test",
    "embed",
    "index build",
    "index tune",
    "index info",
    "index add",
    "index remove",
    "index merge",
    "index compact",
    "index duplicates",
    "index neighbours",
    "index adopt",
    "search",
    "serve",
    "eval retrieval",
    "eval zeroshot",
    "eval compare",
    "eval probe",
    "eval composition",
    "eval sweep",
    "classify",
    "interpolate",
    "export",
}


def commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action.choices, dict):
            for name, inner in action.choices.items():
                below = list(commands(inner, f"{path}{name} "))
                yield from below or [(f"{path}{name}", inner)]


def test_the_commands_are_these() -> None:
    assert {name for name, _ in commands(build_parser())} == COMMANDS


def test_each_command_gives_an_example_that_parses() -> None:
    parser = build_parser()
    checked = 0
    for name, inner in commands(parser):
        if name in LIGHTNING:
            continue
        example = (inner.epilog or "").removeprefix("example: ")
        assert example.startswith(f"dualenc {name}"), name
        assert parser.parse_args(shlex.split(example)[1:]).run, name
        checked += 1
    assert checked == len(COMMANDS) - len(LIGHTNING)


def test_every_option_says_what_it_does() -> None:
    for name, inner in commands(build_parser()):
        for action in inner._actions:
            assert action.help or not action.option_strings, f"{name} {action.option_strings}"


@pytest.mark.parametrize("words", [["--help"], ["data", "--help"], ["search", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from dualenc.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit as done: assert not done.code\n"
        "heavy = {'torch', 'faiss', 'open_clip', 'pytorch_lightning', 'numpy', 'pyarrow', 'duckdb', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "usage: dualenc" in ran.stdout


def test_a_noun_alone_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index"]) == 2
    assert "usage: dualenc index" in capsys.readouterr().out


def test_lightning_commands_explain_their_settings() -> None:
    """`dualenc fit --help` shows each setting with its meaning."""
    pytest.importorskip("pytorch_lightning")
    ran = subprocess.run([sys.executable, "-m", "dualenc", "fit", "--help"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    for text in ("--model.lr", "peak learning rate", "--data.batch_size", "--ckpt_path"):
        assert text in " ".join(ran.stdout.split()), text


def test_errors_are_one_line_with_a_cure() -> None:
    assert explain(OSError(28, "No space left on device", "x")) == (
        "x: No space left on device: the output could not be written; free some space or write elsewhere"
    )
    assert "\n" not in explain(ValueError("two\nlines"))
    assert "--debug" in explain(KeyError("surprise"))
