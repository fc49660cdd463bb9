"""What a sample buys: python benchmarks/train_flickr8k.py ZIP [--variants base,open_clip] [--seeds 0,1] [--samples 51000]

Trains Flickr8k from scratch with named variants of the recipe and several seeds, each by `dualenc fit` with the options that
RECIPES lists, and open_clip's own model, loss and preprocessing (train_flickr8k_peer.py) on as many samples. Each run chooses
its checkpoint on the validation split; its Recall@K on the test split, 1,000 images x 5 captions, goes into
results/train_flickr8k.json as soon as it has finished. Runs that have finished are not repeated, and one of ours that was
killed goes on from its last checkpoint; --only-record trains nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import record as records

from dualenc.files import sha256

RUNS = Path("runs/train_flickr8k")
PEER, WEIGHTS = "open_clip", "open_clip_model.safetensors"
PLAIN = [  # the recipe of facts' plain loop, whatever configs/flickr8k.yaml says by now; a variant's options come after it
    "--model.lr=1e-3",
    "--model.weight_decay=0.2",
    "--model.warmup_steps=20",
    "--data.batch_size=256",
    "--data.cache=80",
    "--data.captions=1",
    "--data.augment.scale=[1.0,1.0]",
    "--data.augment.ratio=[1.0,1.0]",
    "--data.augment.shift=0.0625",
    "--data.augment.flip=0.5",
    "--data.augment.color_jitter=0.0",
    "--data.augment.word_dropout=0.0",
]
CROP = ["--data.augment.scale=[0.5,1.0]", "--data.augment.ratio=[0.75,1.33]", "--data.augment.color_jitter=0.4"]
FIVE = ["--data.captions=5"]
WORDS = ["--data.augment.word_dropout=0.1"]
SMALL = ["--data.batch_size=128", "--model.warmup_steps=40"]
GROUP, MASK = "--model.positives=group", "--model.mask_false_negatives=true"
SMOOTH, AVERAGE = "--model.label_smoothing=0.1", "--model.ema=0.99"
RECIPES: dict[str, list[str]] = {
    "base": [],
    "augmentation": CROP,
    "captions5": FIVE,
    "word_dropout": WORDS,
    "captions5_augmentation": [*FIVE, *CROP],
    "captions5_words": [*FIVE, *WORDS],
    "captions5_augmentation_words": [*FIVE, *CROP, *WORDS],
    "lr_2e-3": ["--model.lr=2e-3"],
    "batch_128": SMALL,
    "batch_64": ["--data.batch_size=64", "--model.warmup_steps=80"],
    "batch_512": ["--data.batch_size=512", "--model.warmup_steps=10"],
    "batch_1024": ["--data.batch_size=1024", "--model.warmup_steps=5", "--model.accumulate=4"],
    "captions5_group": [*FIVE, GROUP],
    "mask": [MASK],
    "label_smoothing": [SMOOTH],
    "ema": [AVERAGE],
    "captions5_group_mask": [*FIVE, GROUP, MASK],
    "captions5_words_mask_ema": [*FIVE, *WORDS, MASK, AVERAGE],
    "everything": [*FIVE, *WORDS, *CROP, GROUP, MASK, SMOOTH, AVERAGE],
    "captions5_batch_128": [*FIVE, *SMALL],
    "chosen": ["--data.captions=2", *CROP, *WORDS, *SMALL, MASK, AVERAGE],
}
SCORES = [f"{way}/recall@{k}" for way in ("text_to_image", "image_to_text") for k in (1, 5, 10)]


class Run(NamedTuple):
    """One training run. folder: where it lies; epochs and every: how long it is and when it is validated, in epochs."""

    variant: str
    seed: int
    samples: int  # that were asked for
    shown: int  # that whole epochs of whole batches make of them
    epochs: int
    every: int
    folder: Path


def plan(variant: str, seed: int, samples: int, images: int) -> Run:
    """A run of about `samples` samples, in whole epochs, validated three times or more, the last time at the end."""
    options = [*PLAIN, *RECIPES.get(variant, [])]
    batch = int([o for o in options if o.startswith("--data.batch_size=")][-1].partition("=")[2])
    if batch > images:
        raise ValueError(f"{variant}: a batch of {batch} of {images} images cannot be made; pack more images")
    shown = images // batch * batch
    epochs = max(1, round(samples / shown))
    every = next((n for n in (5, 4, 3, 2) if epochs % n == 0 and epochs // n >= 3), 1)
    return Run(variant, seed, samples, epochs * shown, epochs, every, RUNS / f"{samples}" / f"{variant}-seed{seed}")


def command(run: Run, shards: Path) -> list[str]:
    """The words that train it."""
    root, begun = run.folder, (run.folder / "checkpoints" / "last.ckpt").exists()
    if run.variant == PEER:
        script = str(Path(__file__).with_name("train_flickr8k_peer.py"))
        length = [f"--epochs={run.epochs}", f"--validate-every={run.every}", f"--seed={run.seed}"]
        return [sys.executable, script, f"{shards}", f"{root}/encoder", *length]
    return [
        *(sys.executable, "-m", "dualenc", "fit", "--config", "flickr8k"),
        *PLAIN,
        *RECIPES[run.variant],
        *(f"--data.train={shards}/train", f"--data.val={shards}/val", "--data.test=null"),
        *(f"--seed_everything={run.seed}", f"--data.seed={run.seed}", f"--trainer.default_root_dir={root}"),
        *(f"--trainer.max_epochs={run.epochs}", f"--trainer.check_val_every_n_epoch={run.every}"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
        *(["--ckpt_path=last"] if begun else []),
    ]


def train(run: Run, shards: Path, threads: int) -> None:
    """Run the command, its output in a file beside the folder; how long it took, over all attempts that ended, in another."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    log, clock = run.folder.with_suffix(".log"), run.folder.with_suffix(".seconds")
    start = time.monotonic()
    with open(log, "a", encoding="utf-8") as output:
        environment = os.environ | {"OMP_NUM_THREADS": f"{threads}"}
        done = subprocess.run(command(run, shards), stdout=output, stderr=subprocess.STDOUT, env=environment)
    before = float(clock.read_text()) if clock.exists() else 0.0
    clock.write_text(f"{before + time.monotonic() - start:.1f}\n")
    if done.returncode:
        raise RuntimeError(f"{run.folder.name} failed, exit status {done.returncode}; {log} says why")


def score(encoder: Path, shards: Path) -> dict[str, Any]:
    """Recall of an encoder folder on shards, ties counted against it, and which weights these were."""
    from dualenc.data.shards import open_source
    from dualenc.embed.run import embed_source
    from dualenc.evaluate.metrics import retrieval_metrics
    from dualenc.model.encoder import DualEncoder

    model = DualEncoder.load(encoder)
    found = embed_source(model, open_source(shards), batch_size=250, workers=0, accelerator=model.device.type)
    scores = retrieval_metrics(found.images, found.texts, found.image_row)
    recalls = {name: round(scores[name], 6) for name in SCORES}
    return {
        "recall@10": round(
            statistics.mean(scores[f"{way}/recall@10"] for way in ("text_to_image", "image_to_text")), 6
        ),
        **recalls,
        "weights_sha256": sha256(encoder / WEIGHTS),
    }


def note(results: dict[str, Any], run: Run, scores: dict[str, Any], threads: int) -> None:
    """Put a run's scores into the results, with the mean and the spread of its variant anew."""
    clock = run.folder.with_suffix(".seconds")
    about = {"seconds": float(clock.read_text()) if clock.exists() else None, "threads": threads}
    entry = results.setdefault(f"{run.samples}", {}).setdefault(run.variant, {})
    entry |= {"options": [] if run.variant == PEER else [*PLAIN, *RECIPES[run.variant]]}
    entry |= {"samples": run.shown, "epochs": run.epochs, "validated_every": run.every}
    runs = entry.setdefault("runs", {})
    runs[f"{run.seed}"] = scores | about | {"date": datetime.date.today().isoformat()}
    columns = {name: [one[name] for one in runs.values()] for name in ("recall@10", *SCORES)}
    entry["mean"] = {name: round(statistics.mean(values), 6) for name, values in columns.items()}
    entry["standard_deviation"] = {
        name: round(statistics.stdev(values), 6) if len(values) > 1 else None for name, values in columns.items()
    }


def recorded(run: Run, results: dict[str, Any]) -> bool:
    """Whether the results hold this encoder's scores."""
    known = results.get(f"{run.samples}", {}).get(run.variant, {}).get("runs", {}).get(f"{run.seed}")
    return known is not None and known["weights_sha256"] == sha256(run.folder / "encoder" / WEIGHTS)


def all_of(runs: Sequence[Run], shards: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train what is missing, `options.jobs` side by side, and record each as it is done. Returns the results."""
    path = records.RESULTS / "train_flickr8k.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    lock = threading.Lock()

    def one(run: Run) -> None:
        if not (run.folder / "encoder").exists():
            if options.only_record:
                return
            train(run, shards, options.threads)
        with lock:
            if recorded(run, results):
                return
            note(results, run, score(run.folder / "encoder", shards / "test"), options.threads)
            records.record("train_flickr8k", results)
            print(table(results), flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        failed = [error for error in pool.map(lambda run: _error(one, run), runs) if error]
    for error in failed:
        sys.stderr.write(f"{error}\n")
    if failed:
        raise SystemExit(1)
    return results


def _error(call: Any, run: Run) -> Exception | None:
    """The other runs go on where one fails."""
    try:
        call(run)
    except (RuntimeError, ValueError, OSError) as error:
        return error
    return None


def table(results: dict[str, Any]) -> str:
    """Test recall by number of samples and variant, the best first."""
    lines = []
    for samples, variants in results.items():
        peer = variants.get(PEER, {}).get("mean", {}).get("recall@10")
        lines += [f"{int(samples):,} samples", f"{'':<32}{'R@10':>7}{'±':>7}{'of open_clip':>14}{'runs':>6}{'min':>7}"]
        for name, entry in sorted(variants.items(), key=lambda item: -item[1]["mean"]["recall@10"]):
            mean, spread = entry["mean"]["recall@10"], entry["standard_deviation"]["recall@10"]
            minutes = statistics.mean(one["seconds"] or 0 for one in entry["runs"].values()) / 60
            shown = f"{100 * spread:>7.2f}" if spread is not None else f"{'':>7}"
            times = f"{mean / peer:>13.2f}×" if peer else f"{'':>14}"
            lines.append(f"{name:<32}{100 * mean:>7.2f}{shown}{times}{len(entry['runs']):>6}{minutes:>7.1f}")
    return "\n".join(lines)


def packed(source: Path) -> Path:
    """Shards of the three splits of a zip or its folder; those of an earlier call are used again."""
    shards = RUNS / "shards"
    if source.suffix == ".zip" and not (RUNS / "source").exists():
        with zipfile.ZipFile(source) as archive:
            archive.extractall(RUNS / "source")
    where = RUNS / "source" if source.suffix == ".zip" else source
    for split in ("train", "val", "test"):
        if not (shards / split).exists():
            words = ["--images", f"{where}/images", "--where", f"split={split}"]
            pack = ["data", "pack", f"{where}/captions.jsonl", f"{shards}/{split}", *words]
            subprocess.run([sys.executable, "-m", "dualenc", *pack], check=True)
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("zip", nargs="?", type=Path, help="flickr8k_160.zip, or the folder of its contents")
    parser.add_argument(
        "--shards", type=Path, help="instead of the zip: train, val and test as `dualenc data pack` wrote them"
    )
    parser.add_argument("--variants", default=f"base,{PEER}", help=f"of {', '.join([*RECIPES, PEER])}")
    parser.add_argument("--seeds", default="0", help="of each variant, such as 0,1,2 (default 0)")
    parser.add_argument("--samples", default="51000", help="images shown in training, about (default 51000)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default 1)")
    parser.add_argument("--only-record", action="store_true", help="train nothing, evaluate what is there")
    options = parser.parse_args()
    if (options.zip is None) == (options.shards is None):
        parser.error("give the zip, or --shards")
    variants = options.variants.split(",")
    if unknown := [name for name in variants if name not in (*RECIPES, PEER)]:
        parser.error(f"unknown variant {unknown[0]}; there are {', '.join([*RECIPES, PEER])}")
    os.environ["OMP_NUM_THREADS"] = f"{options.threads}"  # of the evaluation, too
    shards = packed(options.zip) if options.zip else options.shards
    from dualenc.data.shards import open_source

    images = len(open_source(shards / "train"))
    runs = [
        plan(variant, int(seed), int(samples), images)
        for samples in options.samples.split(",")
        for seed in options.seeds.split(",")
        for variant in variants
    ]
    print(table(all_of(runs, shards, options)))


if __name__ == "__main__":
    main()
