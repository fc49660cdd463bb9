"""Tables at a terminal: beside each other where they fit, one under the other where not."""

from __future__ import annotations

from dualenc.cli.evaluation import print_table
from dualenc.evaluate.intervals import Interval
from dualenc.evaluate.sections import Share, Table

NOTE = "Ties count as misses. Rank\u00a01 is best."
TABLE = Table(["Class", "Images", "Right"], [["red\x1b[2J", "1,200", Share(0.5, 0.1, Interval(0.4, 0.6))]], NOTE)


def test_wide_enough(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table(TABLE)
    assert capsys.readouterr().out.splitlines() == [
        "  Class    Images  Right",
        "  red\ufffd[2J  1,200   50.0 % [40.0, 60.0], chance 10.0",
        "  Ties count as misses. Rank 1 is best.",
    ]


def test_what_a_share_is_measured_against_has_its_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    print_table(TABLE._replace(tick="perfect calibration"))
    assert "50.0 % [40.0, 60.0], perfect calibration 10.0\n" in capsys.readouterr().out


def test_too_narrow(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    print_table(TABLE._replace(note=""))
    assert capsys.readouterr().out.splitlines() == [
        "  red\ufffd[2J",
        "    Images  1,200",
        "    Right   50.0 % [40.0, 60.0], chance 10.0",
    ]
