"""The whole line on one data set, timed by stage: python benchmarks/line.py scenes | flickr8k ZIP | emoji ZIP

Runs the commands that a user would type, from nothing, into runs/<data set>, and records the numbers. Each data set is
a function that names its commands; what they print goes to the terminal.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from record import record

RUNS = Path("runs")


def scenes(run: Path) -> list[list[str]]:
    """The built-in data, as `make demo` runs it."""
    shards = run / "shards"
    return [
        ["data", "scenes", f"{shards}"],
        ["fit", "--config", "scenes"],
        *_embed_and_index(run),
        ["eval", "retrieval", "--encoder", f"{run}/encoder", "--data", f"{run}/store", "--composition"]
        + ["--zeroshot", f"{shards}/colour", f"{shards}/shape", "--out", f"{run}"],
        [
            "search",
            f"{run}/index",
            "a small red circle left of a large blue square",
            "-k",
            "5",
            "--grid",
            f"{run}/hits.png",
        ],
    ]


def flickr8k(run: Path) -> list[list[str]]:
    """6,000 photos with five captions each; tested on 1,000 others."""
    return [
        *_pack(run, "source/images", "split", train="train", val="val", test="test"),
        *_fit_and_measure(run, "flickr8k"),
    ]


def emoji(run: Path) -> list[list[str]]:
    """Trained on one drawing style by name and keywords, tested on the other by name alone."""
    table = run / "source" / "captions.jsonl"
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["captions"] = [row["name"]]
        if row["style"] == "noto":  # the bare name in every second caption, as it is what the test asks for
            row["captions"] += [row["name"], *(f"{row['name']}: {', '.join(row['keywords'][:n])}" for n in (6, 3))]
        del row["keywords"]
    table.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return [*_pack(run, "source", "style", train="noto", test="emojitwo"), *_fit_and_measure(run, "emoji")]


def _pack(run: Path, images: str, column: str, **splits: str) -> list[list[str]]:
    table = ["data", "pack", f"{run}/source/captions.jsonl"]
    return [
        [*table, f"{run}/shards/{split}", "--images", f"{run}/{images}", "--where", f"{column}={value}"]
        for split, value in splits.items()
    ]


def _fit_and_measure(run: Path, config: str) -> list[list[str]]:
    return [
        ["fit", "--config", config],
        *_embed_and_index(run),
        ["eval", "retrieval", "--encoder", f"{run}/encoder", "--data", f"{run}/store", "--out", f"{run}"],
    ]


def _embed_and_index(run: Path) -> list[list[str]]:
    return [
        ["embed", "--encoder", f"{run}/encoder", "--data", f"{run}/shards/test", "--out", f"{run}/store"],
        ["index", "build", f"{run}/store", f"{run}/index"],
    ]


LINES = {"scenes": scenes, "flickr8k": flickr8k, "emoji": emoji}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=LINES)
    parser.add_argument("zip", nargs="?", help="the data set, where it is not built in")
    options = parser.parse_args()
    if (options.name != "scenes") != bool(options.zip):
        parser.error(
            f"{options.name} {'needs the path of its zip file' if options.name != 'scenes' else 'needs no file'}"
        )
    run = RUNS / ("demo" if options.name == "scenes" else options.name)
    shutil.rmtree(run, ignore_errors=True)
    start = time.monotonic()
    if options.zip:
        with zipfile.ZipFile(options.zip) as archive:
            archive.extractall(run / "source")
    seconds: dict[str, float] = {}
    for command in LINES[options.name](run):
        print("$ dualenc", " ".join(command), flush=True)
        before = time.monotonic()
        subprocess.run([sys.executable, "-m", "dualenc", *command], check=True)
        stage = command[0] if command[0] not in ("data", "index", "eval") else f"{command[0]} {command[1]}"
        seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - before, 1)
    report = json.loads((run / "report.json").read_text())
    scores = {key: value for key, value in report.items() if not key.startswith("provenance/")}
    note = json.loads((run / "encoder" / "dualenc.json").read_text())["training"]
    results = {
        "seconds": seconds,
        "total_seconds": round(time.monotonic() - start, 1),
        "samples_seen": note["samples_seen"],
    }
    print(record(f"line_{options.name}", results | {"scores": scores}))


if __name__ == "__main__":
    main()
