"""What the fast decode costs in accuracy: python benchmarks/decode.py FLICKR8K_ZIP_OR_FOLDER [--seeds 3]

Trains Flickr8k for 51,000 samples (configs/flickr8k.yaml with other lengths, images decoded anew each time) with the
fast and with the exact decode, from the same seeds, and the built-in scenes once each; the test set's Recall@K of every
run goes into benchmarks/results/decode.json, with mean and standard deviation over the seeds.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path

from record import record

RUNS = Path("runs/decode")
SAMPLES = 51_000
NAMES = ("text_to_image/recall@10", "image_to_text/recall@10", "mean_recall")


def dualenc(*words: str) -> None:
    print("$ dualenc", " ".join(words), flush=True)
    subprocess.run([sys.executable, "-m", "dualenc", *words], check=True)


def pack_flickr8k(source: Path) -> Path:
    """Shards of the three splits; those of an earlier call are used again."""
    shards = RUNS / "flickr8k"
    if shards.exists():
        return shards
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as archive:
            archive.extractall(RUNS / "source")
        source = RUNS / "source"
    for split in ("train", "val", "test"):
        where = ["--images", f"{source}/images", "--where", f"split={split}"]
        dualenc("data", "pack", f"{source}/captions.jsonl", f"{shards}/{split}", *where)
    return shards


def flickr8k(shards: Path, decode: str, seed: int) -> dict[str, float]:
    """Test scores of one training run of about SAMPLES samples."""
    run = RUNS / f"flickr8k-{decode}-{seed}"
    common = ["--config", "flickr8k", f"--trainer.default_root_dir={run}", f"--data.test={shards}/test"]
    common += [f"--data.train={shards}/train", f"--data.val={shards}/val", "--data.cache=null", "--data.workers=2"]
    steps = [f"--trainer.max_steps={SAMPLES // 256}", f"--data.decode={decode}"]
    return fit_and_test(run, common, [*steps, f"--seed_everything={seed}", f"--data.seed={seed}"])


def scenes(decode: str) -> dict[str, float | str]:
    """Test scores of the demo's training, and the fingerprint of what came out."""
    shards, run = RUNS / "scenes", RUNS / f"scenes-{decode}"
    if not shards.exists():
        dualenc("data", "scenes", str(shards))
    common = ["--config", "scenes", f"--trainer.default_root_dir={run}", f"--data.test={shards}/test"]
    common += [
        f"--data.{name}={shards}/{folder}"
        for name, folder in (("train", "train"), ("val", "val"), ("zeroshot", "colour"))
    ]
    scores = fit_and_test(run, common, [f"--data.decode={decode}"])
    return {**scores, "fingerprint": json.loads((run / "encoder" / "dualenc.json").read_text())["fingerprint"]}


def fit_and_test(run: Path, common: list[str], more: list[str]) -> dict[str, float]:
    shutil.rmtree(run, ignore_errors=True)
    dualenc("fit", *common, *more)
    dualenc(
        "test",
        *common,
        f"--model.start_from={run}/encoder",
        *[f"--model.{key}=null" for key in ("embed_dim", "vision", "text")],
    )
    with open(run / "test" / "metrics.csv", newline="") as file:
        row = list(csv.DictReader(file))[-1]
    return {name: float(row[f"test/{name}"]) for name in NAMES}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("flickr8k", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    shards = pack_flickr8k(options.flickr8k)
    results: dict = {
        "samples": SAMPLES // 256 * 256,
        "scenes": {decode: scenes(decode) for decode in ("fast", "exact")},
    }
    results["scenes"]["equal"] = results["scenes"]["fast"] == results["scenes"]["exact"]
    runs: dict = {"fast": [], "exact": []}
    for seed in range(options.seeds):
        for decode, found in runs.items():
            found.append(flickr8k(shards, decode, seed))
            print(decode, seed, found[-1], flush=True)
    for decode, found in runs.items():
        columns = {name: [scores[name] for scores in found] for name in NAMES}
        spread = {name: statistics.stdev(values) if len(values) > 1 else None for name, values in columns.items()}
        means = {name: statistics.mean(values) for name, values in columns.items()}
        results[f"flickr8k_{decode}"] = {"runs": found, "mean": means, "standard_deviation": spread}
    print(record("decode", results))


if __name__ == "__main__":
    main()
