"""`dualenc data score|filter|overlap`: which pairs to train on, and which images a test split must not hold."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, compute, compute_options, ks_of, print_json, printable, used_for
from dualenc.cli.evaluation import ENCODER, check_out, dropped, embedded_rows, note_dropped


def add(verbs: Any) -> None:
    for verb in (_add_score, _add_filter, _add_overlap):
        verb(verbs)


def _add_score(verbs: Any) -> None:
    parser = command(
        verbs,
        "score",
        run_score,
        "score each pair of image and caption, find near-duplicates, count words, into a table that `data filter` reads",
        "dualenc data score runs/photos/shards --encoder ViT-B-32:laion2b_s34b_b79k --out scores.parquet --report worst",
    )
    parser.add_argument("data", help="shards, a folder of images with captions, or a store of them")
    parser.add_argument("--encoder", help=f"{ENCODER}; of a store: counts tokens (it knows its own scores without)")
    parser.add_argument("--out", required=True, help="the table (parquet), one row a pair")
    parser.add_argument(
        "--store", help="embeddings of the data, made here or gone on with (default: beside --out, NAME.store)"
    )
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.95,
        help="cosine from which images are near-duplicates (default 0.95; a weak encoder needs more)",
    )
    parser.add_argument("--report", metavar="FOLDER", help="write report.html there: the worst pairs as pictures")
    parser.add_argument("--examples", type=int, default=24, metavar="N", help="worst pairs on the page (default 24)")
    parser.add_argument("--json", action="store_true", help="print counts and quantiles as JSON")
    compute_options(parser)


def _add_filter(verbs: Any) -> None:
    parser = command(
        verbs,
        "filter",
        run_filter,
        "keep the pairs that meet a condition on their scores, as new shards or as a list of keys",
        'dualenc data filter runs/photos/shards scores.parquet --keep "score > 0.2 and not duplicate" --out runs/photos/kept',
    )
    parser.add_argument("data", help="the shards that were scored")
    parser.add_argument("scores", nargs="+", help="tables of `data score`; several where parts were scored apart")
    parser.add_argument(
        "--keep",
        required=True,
        metavar="SQL",
        help="what must be true of a pair, over the table's columns: score (cosine), relative (standard deviations above "
        "the same caption and image with others), percentile (of relative, 0 to 1), duplicate, "
        "duplicate_of, copies (of the caption), words, tokens, truncated, width, height, key, caption, caption_number",
    )
    parser.add_argument("--out", help="a folder for new shards; a sample goes when none of its captions is left")
    parser.add_argument(
        "--keys", metavar="FILE", help="a list instead: keys, one a line (.parquet: with caption_number)"
    )
    parser.add_argument("--json", action="store_true", help="print what was kept and what went as JSON")


def _add_overlap(verbs: Any) -> None:
    parser = command(
        verbs,
        "overlap",
        run_overlap,
        "find images of a test split that are nearly in the training data, and recall without them; exit code 1 if any is",
        "dualenc data overlap runs/photos/train runs/photos/test --encoder runs/photos/encoder --report overlap",
    )
    parser.add_argument("train", help="shards, a folder of images, or a store")
    parser.add_argument("test", help="shards, a folder of images with captions, or a store")
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.95,
        help="cosine from which two images are nearly the same (default 0.95; a weak encoder needs more)",
    )
    parser.add_argument("--out", help="write all such pairs (parquet: test_key, train_key, score)")
    parser.add_argument("--report", metavar="FOLDER", help="write report.json and report.html there, with the pictures")
    parser.add_argument("--ks", default="1,5,10", help="values of K (default 1,5,10)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    compute_options(parser)


def run_score(options: argparse.Namespace) -> int:
    from dualenc.evaluate.quality.score import score_pairs

    _check(options)
    if options.examples < 0:
        raise ValueError(f"--examples {options.examples}: so many pairs cannot be shown; use 0 or more")
    encoder, store = _scored_store(options)
    spec = None if encoder is None else encoder.spec["text"]
    scored = score_pairs(store, options.out, threshold=options.threshold, spec=spec)
    note_dropped(options, options.data, _not_scored(store))
    scored = scored._replace(report=scored.report | dropped(options))
    if options.report:
        from dualenc.evaluate.page.report import write_report
        from dualenc.evaluate.quality.score_page import score_section

        section, made = score_section(scored, options.examples), _made(options, store)
        page = write_report(options.report, scored.report, [section], None, made, "Pairs by score")
        sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json(scored.report)
        return 0
    said = scored.report
    sys.stdout.write(
        f"{options.out}: {said['pairs']:,} pairs of {said['images']:,} images, median score {said['score/p50']:.3f}; "
        f"{said['duplicates']:,} near-duplicates, {said['repeated_captions']:,} repeated captions\n"
    )
    return 0


def _check(options: argparse.Namespace) -> None:
    """ValueError or OSError, before the work, where nothing can be alike, or where nothing can be written."""
    from dualenc.files import refuse_existing

    if not 0 < options.threshold <= 1:
        raise ValueError(f"--threshold {options.threshold:g}: no such cosine can be reached; use one above 0, up to 1")
    if options.out:
        refuse_existing(Path(options.out))
        if Path(options.out).is_dir():
            raise ValueError(f"--out {options.out} is a folder, and the table is one file; name a file")
        check_out(str(Path(options.out).parent))
    check_out(options.report)


def _scored_store(options: argparse.Namespace) -> tuple[Any, Any]:
    """The encoder where one was named, and the store: the one given, or the data embedded into one."""
    from dualenc.embed.store import is_store, open_store

    if is_store(options.data):
        if options.store:
            raise ValueError(f"{options.data} is a store already; leave out --store {options.store}")
        store = open_store(options.data)
        return (_encoder(options, store) if options.encoder else None), store
    if not options.encoder:
        raise ValueError(f"{options.data} is not embedded yet; name the encoder that scores it, --encoder E")
    from dualenc.data.shards import open_source
    from dualenc.embed.run import write_store

    source = open_source(options.data)  # before the encoder: a wrong path is told at once
    _check_captions(source)
    encoder = _encoder(options, None)
    folder = Path(options.store) if options.store else Path(options.out).with_suffix(".store")
    sys.stderr.write(f"embeddings: {folder} (kept: run again to go on, or to score with other settings)\n")
    return encoder, write_store(encoder, source, folder, dtype="float32", **compute(options))


def _check_captions(source: Any) -> None:
    """ValueError, before the encoder works, where no sample has a caption. It looks no further than the first that has."""
    from dualenc.data.sample import UNREADABLE, BadSample

    reasons: Counter[str] = Counter()
    for i in range(len(source)):
        try:
            if source.sample(i, ("txt",)).captions():
                return
        except (BadSample, OSError) as error:
            reasons[str(error) if isinstance(error, BadSample) else UNREADABLE] += 1
    if reasons:
        told = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        raise ValueError(
            f"{source.path}: of its {len(source):,} samples none has a caption that can be read ({told}), so there are no "
            "pairs to score; save captions as UTF-8, in files that can be read"
        )
    raise ValueError(
        f"{source.path}: none of its {len(source):,} samples has a caption, so there are no pairs to score; put captions "
        "beside the images, as KEY.txt"
    )


def _not_scored(store: Any) -> Counter[str]:
    """How many samples have no line in the table, by reason: the store is without them, or they have no caption."""
    silent = store.rows - len(set(store.image_row.tolist()))
    return Counter(store.manifest.get("dropped", {})) + Counter({"missing caption": silent})


def _encoder(options: argparse.Namespace, store: Any) -> Any:
    from dualenc.model.encoder import DualEncoder

    encoder = DualEncoder.load(options.encoder, decode=options.decode or "exact", **used_for(store))
    if store is not None and store.fingerprint not in (None, encoder.fingerprint):
        raise ValueError(
            f"{store.folder} was made by {store.encoder}, another encoder than {encoder.path}: its scores are not this "
            "one's; leave out --encoder, or embed again"
        )
    return encoder


def _made(options: argparse.Namespace, store: Any) -> dict[str, Any]:
    from types import SimpleNamespace

    from dualenc.evaluate.page.provenance import provenance

    encoder = SimpleNamespace(path=store.encoder, fingerprint=store.fingerprint)
    more = {"store": str(store.folder), "duplicates from a cosine of": options.threshold}
    return provenance(["dualenc", *sys.argv[1:]], encoder, options.data, **more)


def run_filter(options: argparse.Namespace) -> int:
    from dualenc.data.shards import open_source
    from dualenc.evaluate.quality.filter import filter_pairs, read_scores

    source = open_source(options.data)
    report = filter_pairs(source, read_scores(options.scores), options.keep, options.out, options.keys)
    if options.json:
        print_json(report.to_json())
    else:
        sys.stdout.write(
            f"{options.out or options.keys}:\n" + "".join(f"{printable(s)}\n" for s in f"{report}".split("\n"))
        )
    return 0


def run_overlap(options: argparse.Namespace) -> int:
    from dualenc.evaluate.quality.overlap import evaluate_overlap, fitting, overlap, overlap_section, shared_captions
    from dualenc.index.vectors import as_rows

    ks = ks_of(options.ks)
    _check(options)
    encoder, (train, test) = _both(options)
    captioned = len(set(test.image_row.tolist()))
    above, ks = [k for k in ks if k > captioned], fitting(ks, captioned)
    if above and captioned:
        sys.stderr.write(
            f"dualenc: recall at {', '.join(map(str, above))} left out: {printable(options.test)} has {captioned:,} images "
            "with captions\n"
        )
    found = overlap(as_rows(train.images), train.metadata["key"].to_pylist(), test, options.threshold, options.out)
    report = evaluate_overlap(test, found, options.threshold, ks)
    report |= {"shared_captions": shared_captions(train.text_metadata, test.text_metadata)} | dropped(options)
    section = overlap_section(report, test, train.metadata, found, ks)
    if options.report:
        from dualenc.evaluate.page.provenance import provenance
        from dualenc.evaluate.page.report import write_report

        made = provenance(["dualenc", *sys.argv[1:]], encoder, [options.train, options.test])
        page = write_report(options.report, report, [section], None, made, "Overlap of training and test data")
        sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json(report)
    else:
        _print_overlap(section, report)
    return int(found.rows.any())


def _both(options: argparse.Namespace) -> tuple[Any, list[Any]]:
    """The encoder, and training and test data embedded by it."""
    from dualenc.data.shards import open_source
    from dualenc.embed.store import is_store, open_store

    names = [options.train, options.test]
    stores = [open_store(name) if is_store(name) else None for name in names]
    sources = [None if store else open_source(name) for name, store in zip(names, stores, strict=True)]
    encoder = _encoder(options, next((store for store in stores if store is not None), None))
    return encoder, [_embedded(options, name, source, encoder) for name, source in zip(names, sources, strict=True)]


def _embedded(options: argparse.Namespace, data: str, source: Any, encoder: Any) -> Any:
    """One of both, embedded or read from its store (source: None). ValueError: nothing in it, or nothing named."""
    embedded = embedded_rows(options, data, source, encoder)
    if "key" not in embedded.metadata.column_names:
        raise ValueError(f"{data} does not name its samples (column key); embed with `dualenc embed`")
    return embedded


def _print_overlap(section: Any, report: dict[str, Any]) -> None:
    from dualenc.cli.evaluation import print_table

    sys.stdout.write(f"{section.about}\n")
    if report["shared_captions"] is not None:
        sys.stdout.write(
            f"{report['shared_captions']:,} test captions read the same as one of the training captions.\n"
        )
    for table in section.tables:
        print_table(table)
