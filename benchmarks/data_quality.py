"""What filtering wrong captions buys: python benchmarks/data_quality.py --data SHARDS|ZIP [--runs DIR] [--seeds 0,1,2]

Flickr8k with 20 % of the training captions at the wrong image. Two encoders, each trained on one half of the noisy pairs,
score the other half (`dualenc data score`), and the fifth of each half with the lowest relative score goes (`dualenc data
filter`): a rule that knows the share of wrong captions, but none of them. Then the recipe of configs/flickr8k.yaml on
noisy, filtered and clean data, `--samples` images each, several seeds; every run, the two halves' too, chooses its checkpoint
on the (clean) validation split. How many of the wrong captions were found, and Recall@10 on the test split, go into
results/data_quality.json after each run. Runs that have finished are not repeated, a killed one goes on; --only-record
trains nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import data_quality_noise as noise
import numpy as np
import record as records
import train_flickr8k as flickr

from dualenc.files import write_json

THEME = "data_quality"
KINDS = ("noisy", "clean", "filtered")
KEEP = f"percentile >= {noise.SHARE:g}"
SAMPLES = 51_000  # images shown in a whole run; any other number is a trial
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)  # of the pairs dropped, along the curve


def folder_of(kind: str, runs: Path, samples: int) -> Path:
    """Where `kind` of data lies; what is filtered depends on how long the encoders that scored it were trained."""
    return runs / "data" / (kind if kind != "filtered" or samples == SAMPLES else f"{kind}-{samples}")


def data_of(kind: str, runs: Path, splits: Path, samples: int) -> Path:
    """A folder with train, val and test: `kind` of training pairs, and everybody's val and test."""
    folder = folder_of(kind, runs, samples)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "val", "test") if kind == "clean" else ("val", "test"):
        if not (folder / split).is_symlink():
            (folder / split).symlink_to((splits / split).resolve())
    return folder


def trained(kind: str, seed: int, options: argparse.Namespace, splits: Path) -> Path | None:
    """The run's folder, its encoder trained if it was not; None where it is missing and nothing is to be trained."""
    from dualenc.data.shards import open_source

    folder = options.runs / f"{options.samples}" / f"{kind}-seed{seed}"
    if not (folder / "encoder").exists() and not options.only_record:
        data = data_of(kind, options.runs, splits, options.samples)
        run = flickr.plan("base", seed, options.samples, len(open_source(data / "train")))
        flickr.train(run._replace(folder=folder), data, options.threads)
    return folder if (folder / "encoder").exists() else None


def dualenc(*words: Any) -> str:
    """What `dualenc` says to stdout."""
    command = [sys.executable, "-m", "dualenc", *map(str, words)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def scored(runs: Path, samples: int) -> list[Path]:
    """The tables of scores of the two halves, each by the encoder that was trained on the other; made where they are missing."""
    tables = []
    for half, other in zip(noise.HALVES, noise.HALVES[::-1], strict=True):
        table = runs / f"{samples}" / f"{half}-scores.parquet"
        encoder = runs / f"{samples}" / f"{other}-seed0" / "encoder"
        if not table.exists():
            dualenc(
                "data", "score", runs / "data" / half / "train", "--encoder", encoder, "--out", table, "--workers", 0
            )
        tables.append(table)
    return tables


def filtered(runs: Path, samples: int) -> dict[str, Any]:
    """What `data filter` kept of the noisy pairs, and how many of the wrong ones it found; its shards in `folder_of`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables, out = scored(runs, samples), folder_of("filtered", runs, samples) / "train"
    if not out.exists():
        dualenc("data", "filter", runs / "data" / "noisy" / "train", *tables, "--keep", KEEP, "--out", out)
    halves = [
        pq.read_table(path, columns=["key", "caption_number", "score", "relative", "percentile"]) for path in tables
    ]
    whole = pa.concat_tables(halves)
    wrong = noise.shuffled_of(runs / "data", whole["key"].to_pylist(), whole["caption_number"].to_pylist())
    value = {name: whole[name].to_numpy() for name in ("score", "relative", "percentile")}
    borders = [noise.two_normals(half["relative"].to_numpy()) for half in halves]
    below = [half["relative"].to_numpy() < border for half, border in zip(halves, borders, strict=True)]
    order = np.argsort(value["percentile"], kind="stable")
    curve = {f"{share:g}": noise.found_at(np.isin(np.arange(len(order)), order[: round(share * len(order))]), wrong)
             for share in SHARES}  # fmt: skip
    report = json.loads((out / "filter.json").read_text(encoding="utf-8"))
    kept_wrong = int((wrong & (value["percentile"] >= noise.SHARE)).sum())
    return {
        "pairs": len(wrong),
        "wrong": int(wrong.sum()),
        "ranked_by": {name: noise.detection(value[name], wrong) for name in ("score", "relative")},
        "rules": {
            KEEP: noise.found_at(value["percentile"] < noise.SHARE, wrong),
            "two normals (the share is not known)": noise.found_at(np.concatenate(below), wrong),
        },
        "by_share_dropped": curve,
        "kept": {name: report[name] for name in ("kept_pairs", "samples", "whole", "fewer", "gone")}
        | {"wrong_share": kept_wrong / report["kept_pairs"]},
    }


def note_run(results: dict[str, Any], kind: str, seed: int, folder: Path, splits: Path) -> None:
    """Put a run's test recall into the results, with the mean and the spread of its kind anew."""
    entry = results.setdefault("training", {}).setdefault(kind, {"runs": {}})
    known = entry["runs"].get(f"{seed}")
    if known is None or known["weights_sha256"] != flickr.sha256(folder / "encoder" / flickr.WEIGHTS):
        seconds = float(folder.with_suffix(".seconds").read_text())
        entry["runs"][f"{seed}"] = flickr.score(folder / "encoder", splits / "test") | {"seconds": seconds}
    values = [one["recall@10"] for one in entry["runs"].values()]
    entry["recall@10"] = round(statistics.mean(values), 6)
    entry["standard_deviation"] = round(statistics.stdev(values), 6) if len(values) > 1 else None


def table(results: dict[str, Any]) -> str:
    """The record in a few lines."""
    lines = []
    if found := results.get("detection"):
        lines.append(f"{found['wrong']:,} of {found['pairs']:,} captions are wrong; of those dropped by")
        for rule, at in found["rules"].items():
            lines.append(
                f"  {rule:<40} {at['dropped']:>6,}: precision {at['precision']:.3f}, recall {at['recall']:.3f}"
            )
        for name, how in found["ranked_by"].items():
            lines.append(f"  ranked by {name:<12} ROC AUC {how['roc_auc']:.3f}, AP {how['average_precision']:.3f}")
    for kind, entry in results.get("training", {}).items():
        spread = entry["standard_deviation"]
        plus = "" if spread is None else f" ± {100 * spread:.2f}"
        lines.append(f"{kind:<10} R@10 {100 * entry['recall@10']:.2f}{plus}  ({len(entry['runs'])} seeds)")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="train, val and test shards, or flickr8k_160.zip")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/data_quality"), help="where runs lie (default %(default)s)"
    )
    parser.add_argument("--seeds", default="0,1,2", help="of each kind of data (default 0,1,2)")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help=f"images shown in training, about (default {SAMPLES})"
    )
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--kinds", default=",".join(KINDS), help="which data to train on (default %(default)s)")
    parser.add_argument("--only-record", action="store_true", help="train nothing, record what is there")
    parser.add_argument("--out", type=Path, help=f"the record (default results/{THEME}.json)")
    options = parser.parse_args()
    if options.samples != SAMPLES and options.out is None:
        parser.error(f"--samples makes a trial; give --out, results/{THEME}.json is for whole runs")
    options.out = options.out or records.RESULTS / f"{THEME}.json"
    return options


def main() -> None:
    options = arguments()
    os.environ["OMP_NUM_THREADS"] = f"{options.threads}"
    splits = options.data if (options.data / "train").exists() else flickr.packed(options.data)
    if not (options.runs / "data" / "shuffled.json").exists():
        noise.write_noisy(splits / "train", options.runs / "data")
    kinds = options.kinds.split(",")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise SystemExit(f"unknown kind {unknown[0]}; there are {', '.join(KINDS)}")
    results = json.loads(options.out.read_text(encoding="utf-8"))["results"] if options.out.exists() else {}
    if results.get("samples") != options.samples:
        results = {"samples": options.samples}
    halves = [trained(half, 0, options, splits) for half in noise.HALVES] if "filtered" in kinds else [None]
    if all(halves):
        results["detection"] = filtered(options.runs, options.samples)
        write_json(options.out, records.entry(results))
    for seed in map(int, options.seeds.split(",")):
        for kind in kinds:
            folder = trained(kind, seed, options, splits) if kind != "filtered" or all(halves) else None
            if folder is not None:
                note_run(results, kind, seed, folder, splits)
                write_json(options.out, records.entry(results))
                print(f"{table(results)}\n", flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
