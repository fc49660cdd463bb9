"""`dualenc classify`: name what is in images, few or millions."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, print_json, printable, used_for
from dualenc.cli.evaluation import CLASSES, ENCODER, TEMPLATES

NAMED = 10  # broken images that are named; the others are counted
MOST_JSON = 10_000  # images whose scores one JSON list may hold
MOST_LABELS = 20  # labels that the summary lists


def register(commands: Any) -> None:
    parser = command(
        commands,
        "classify",
        run_classify,
        "name what is in images, by text alone",
        "dualenc classify --encoder runs/demo/encoder --classes 'a red circle,a blue square' picture.jpg",
    )
    parser.add_argument("images", nargs="+", help="image files, folders of images, shards, a table, or one store")
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument("--classes", required=True, help=CLASSES)
    parser.add_argument("--templates", help=TEMPLATES + " (default plain)")
    parser.add_argument(
        "--out", help="write a parquet file with one row an image; run again to go on after an interruption"
    )
    parser.add_argument(
        "--top", type=int, metavar="N", help="classes per image, best first (default 1; with --json and no --out all)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        metavar="COSINE",
        help="where the best class scores lower, the image shows none of these; the summary of --out says what scores there are",
    )
    parser.add_argument(
        "--min-probability",
        type=float,
        metavar="P",
        help="where the best class has a smaller share of the probability, it is undecided between these",
    )
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes (default 2; one batch needs none)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")
    parser.add_argument(
        "--decode", choices=("exact", "fast"), help="fast reads large JPEGs at a part of their size (default exact)"
    )
    parser.add_argument("--no-cache", action="store_true", help="make the classifier anew, and do not keep it")


def run_classify(options: argparse.Namespace) -> int:
    from dualenc.embed.store import is_store, open_store
    from dualenc.evaluate.tag.sources import open_pictures
    from dualenc.evaluate.tag.tagging import Rules, checked_rules
    from dualenc.evaluate.zeroshot.classifier import classifier
    from dualenc.model.encoder import DualEncoder
    from dualenc.model.names import Classes, class_prompts, read_classes, templates

    classes = read_classes(options.classes)
    prompts = class_prompts(classes, templates(options.templates))  # whatever is wrong is told before any work
    default = len(classes.names) if options.json and not options.out else 1
    wanted = default if options.top is None else options.top
    rules = checked_rules(Rules(classes.names, 1.0, wanted, options.threshold, options.min_probability))
    store = open_store(options.images[0]) if len(options.images) == 1 and is_store(options.images[0]) else None
    source: Any = open_pictures(options.images) if store is None else None
    count = len(source) if store is None else store.rows
    if options.json and count > MOST_JSON:
        raise ValueError(f"--json makes one list, and {count:,} images are too many for it; use --out without --json")
    encoder: Any = DualEncoder.load(options.encoder, options.device, options.decode or "exact", **used_for(store))
    _same_encoder(encoder, store, options.images[0])
    rules = rules._replace(scale=float(encoder.model.logit_scale.detach().exp()))
    weights = classifier(encoder, Classes(classes.names, prompts), cache=None if options.no_cache else "default")
    work = _Work(options, encoder, source, store, count, prompts, weights, rules)
    return _into_file(work, Path(options.out)) if options.out else _onto_terminal(work)


@dataclasses.dataclass
class _Work:
    """One run: what is tagged and with what, and what was seen of images that are broken."""

    options: argparse.Namespace
    encoder: Any
    source: Any  # None where there is a store
    store: Any
    count: int
    prompts: list[list[str]]
    weights: Any
    rules: Any
    broken: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def tables(self, first: int = 0) -> Iterator[Any]:
        """Tables of labels from row `first` on."""
        from tqdm import tqdm

        from dualenc.evaluate.tag.sources import picture_blocks, store_blocks
        from dualenc.evaluate.tag.tagging import labelled

        if self.store is not None:
            blocks = store_blocks(self.store, first)
        else:
            size, workers = self.options.batch_size, self.options.workers
            blocks = picture_blocks(self.encoder, self.source, first, size, workers if self.count > size else 0)
        with tqdm(total=self.count, initial=first, desc="classifying", unit="img", disable=None) as bar:
            for block in blocks:
                self._name_broken(block)
                yield labelled(block, self.weights, self.rules)
                bar.update(len(block.keys))

    def _name_broken(self, block: Any) -> None:
        for key, path, reason in zip(block.keys, block.paths, block.reasons, strict=True):
            if reason is not None:
                self.broken[reason] += 1
                if self.broken.total() <= NAMED:
                    sys.stderr.write(f"dualenc: left out: {printable(self.shown(key, path))}: {reason}\n")

    def shown(self, key: str, path: str | None) -> str:
        """An image as the user knows it: its file, below the folder that they named, or its key."""
        if self.store is None and path is not None and not path.endswith(".tar"):
            given, root = self.source.names[0] if self.source.names else "", self.source.path
            if path.startswith(root + os.sep):
                return os.path.join(given, path[len(root) + 1 :])
            return key if os.path.abspath(key) == path else path
        return key

    def plan(self) -> dict[str, Any]:
        """What fixes the labels."""
        from dualenc.evaluate.tag.sources import source_digest, store_digest

        files = store_digest(self.store) if self.store is not None else source_digest(self.source)
        where = str(self.store.folder.resolve()) if self.store is not None else self.source.path
        rules = {name: getattr(self.rules, name) for name in ("top", "threshold", "min_probability")}
        prompts = hashlib.sha256(json.dumps([self.rules.names, self.prompts]).encode()).hexdigest()
        return {"encoder": self.encoder.fingerprint, "prompts": prompts, "source": where, "files": files} | rules


def _into_file(work: _Work, out: Path) -> int:
    from dualenc.evaluate.tag.parts import write_labels

    if out.is_dir():
        raise IsADirectoryError(
            f"{out} is a folder, and the labels are one file; name one, such as {out / 'labels.parquet'}"
        )
    finished = out.exists()
    found = write_labels(out, work.plan(), work.count, work.tables)
    if finished:
        sys.stderr.write(f"dualenc: {out} was finished before and stays as it is; remove it to make the labels anew\n")
    if work.options.json:
        import pyarrow.parquet as pq

        print_json(list(_rows(work, [pq.read_table(out)])))
    else:
        _print_summary(out, found)
    return int(_tell_broken(work, found.reasons))


def _onto_terminal(work: _Work) -> int:
    if work.options.json:
        print_json(list(_rows(work, work.tables())))
    else:
        for row in _rows(work, work.tables()):
            best = "  ".join(f"{score:.3f}  {printable(name)}" for name, score in row["scores"].items())
            if row["label"] is None:
                best = f"{row['score']:.3f}  ({row['reason']})"
            sys.stdout.write(f"{best}  {printable(row['path'])}\n")
    return int(_tell_broken(work, work.broken))


def _rows(work: _Work, tables: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Rows as a script reads them, without the images that have no scores."""
    for row in itertools.chain.from_iterable(table.to_pylist() for table in tables):
        if row["score"] is not None:
            said = {
                "path": work.shown(row["key"], row["path"]),
                **{n: row[n] for n in ("label", "score", "probability")},
            }
            yield said | {"reason": row["reason"], "scores": dict(zip(row["labels"], row["scores"], strict=True))}


def _print_summary(out: Path, found: Any) -> None:
    sys.stdout.write(f"{out}: {found.images:,} images, {sum(found.labels.values()):,} with a label\n")
    for number, (name, times) in enumerate(found.labels.items()):
        if number == MOST_LABELS:
            sys.stdout.write(f"  … and {len(found.labels) - MOST_LABELS:,} labels more\n")
            break
        sys.stdout.write(f"  {times:>12,}  {printable(name)}\n")
    for reason, times in found.reasons.items():
        sys.stdout.write(f"  {times:>12,}  ({reason})\n")
    if found.quantiles:
        below = ", ".join(f"{percent} % below {score:.3f}" for percent, score in found.quantiles.items())
        sys.stdout.write(f"  the best class's score: {below}\n")


def _tell_broken(work: _Work, reasons: dict[str, int]) -> bool:
    """Say how many images could not be used, and whether there are any."""
    from dualenc.evaluate.tag.tagging import NO_LABEL

    broken = {reason: times for reason, times in reasons.items() if reason not in NO_LABEL}
    for reason, names in (work.source.problems if work.source is not None else {}).items():
        broken[reason] = broken.get(reason, 0) + len(names)
    if broken:
        told = ", ".join(f"{reason}: {times:,}" for reason, times in broken.items())
        sys.stderr.write(f"dualenc: {sum(broken.values()):,} could not be used ({told})\n")
    return bool(broken)


def _same_encoder(encoder: Any, store: Any, name: str) -> None:
    if store is not None and store.fingerprint not in (None, encoder.fingerprint):
        raise ValueError(
            f"{name} was made by {store.encoder}, another encoder than {encoder.path}: scores would mean nothing; name that "
            "one, or give the images themselves"
        )
    if store is not None and store.dim != encoder.dim:
        raise ValueError(f"{name} has {store.dim} dimensions and {encoder.path} {encoder.dim}: it is another encoder's")
