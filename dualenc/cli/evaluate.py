"""`dualenc eval …` and `dualenc classify`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, compute, compute_options, group, is_store, print_json, used_for

BLOCK = 64  # images that `classify` holds at a time
ENCODER = "encoder folder, .ckpt, open_clip NAME:TAG, or hf-hub:org/repo"
CLASSES = "class names: a,b,c, a .txt or .json file, or imagenet"
TEMPLATES = "prompt templates: imagenet, simple, plain, a .txt file, or one such as 'a photo of a {}.'"


def register(commands: Any) -> None:
    evaluations = group(commands, "eval", "measure an encoder")
    parser = command(
        evaluations,
        "retrieval",
        run_retrieval,
        "recall@K from text to image and from image to text, exactly",
        "dualenc eval retrieval --encoder runs/demo/encoder --data runs/demo/store --out runs/demo",
    )
    _options(parser)
    parser.add_argument("--ks", default="1,5,10", help="values of K (default 1,5,10)")
    parser.add_argument(
        "--zeroshot", nargs="+", default=[], metavar="DATA", help="also classify these shards with classnames.txt"
    )
    parser.add_argument("--composition", action="store_true", help="also compare true captions with swapped ones")
    parser = command(
        evaluations,
        "zeroshot",
        run_zeroshot,
        "zero-shot classification",
        "dualenc eval zeroshot --encoder runs/demo/encoder --data runs/demo/shards/colour --out runs/colour",
    )
    _options(parser)
    parser.add_argument("--classes", help=CLASSES + " (default: classnames.txt beside the data)")
    parser.add_argument("--templates", help=TEMPLATES + " (default: those beside the data, else plain)")
    parser = command(
        evaluations,
        "composition",
        run_composition,
        "true captions against captions with attributes or relation swapped (KEY.json: swap_attribute, swap_relation)",
        "dualenc eval composition --encoder runs/demo/encoder --data runs/demo/store",
    )
    _options(parser)
    parser = command(
        commands,
        "classify",
        run_classify,
        "name what is in images, by text alone",
        "dualenc classify --encoder runs/demo/encoder --classes 'a red circle,a blue square' picture.jpg",
    )
    parser.add_argument("images", nargs="+", help="image files, or folders of images")
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument("--classes", required=True, help=CLASSES)
    parser.add_argument("--templates", default="plain", help=TEMPLATES + " (default plain)")
    parser.add_argument("--json", action="store_true", help="print JSON with all scores")
    parser.add_argument("--out", help="also write a parquet file with one row an image")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", required=True, help=ENCODER)
    parser.add_argument("--data", required=True, help="shards, a folder of images with captions, or a store")
    parser.add_argument("--out", help="write report.json and report.html into this folder")
    parser.add_argument("--curve", help="metrics.csv of the training run (default: log/metrics.csv beside the encoder)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    compute_options(parser)


def run_retrieval(options: argparse.Namespace) -> int:
    from dualenc.evaluate.composition import evaluate_composition
    from dualenc.evaluate.retrieval import evaluate_retrieval

    try:
        ks = tuple(int(k) for k in options.ks.split(","))
    except ValueError:
        raise ValueError(f"--ks {options.ks!r} is not a list of whole numbers; write 1,5,10") from None
    encoder, embedded = _embedded(options, options.data)
    if not len(embedded.texts):
        raise ValueError(f"{options.data}: no captions, so there is nothing to look for; retrieval needs pairs")
    parts = [evaluate_retrieval(encoder, embedded, ks)]
    several = len(options.zeroshot) > 1
    for data in options.zeroshot:
        parts.append(_zeroshot(options, encoder, _embedded(options, data, encoder)[1], data, named=several))
    if options.composition:
        parts.append(evaluate_composition(encoder, embedded))
    return _finish(options, encoder, parts, "Retrieval")


def run_zeroshot(options: argparse.Namespace) -> int:
    encoder, embedded = _embedded(options, options.data)
    part = _zeroshot(options, encoder, embedded, options.data, options.classes, options.templates)
    return _finish(options, encoder, [part], "Zero-shot classification")


def run_composition(options: argparse.Namespace) -> int:
    from dualenc.evaluate.composition import evaluate_composition

    encoder, embedded = _embedded(options, options.data)
    return _finish(options, encoder, [evaluate_composition(encoder, embedded)], "Composition")


def _embedded(options: argparse.Namespace, data: str, encoder: Any = None) -> tuple[Any, Any]:
    if options.curve and not Path(options.curve).is_file():
        raise FileNotFoundError(
            f"{options.curve}: no such file, so there is no training curve; check or leave out --curve"
        )
    from dualenc.data.shards import open_source
    from dualenc.embed.run import embed_source, read_embedded
    from dualenc.embed.store import open_store
    from dualenc.model.encoder import DualEncoder

    source = None if is_store(data) else open_source(data)  # before the encoder: a wrong path is told at once
    if encoder is None:
        store = open_store(data) if source is None else None
        encoder = DualEncoder.load(options.encoder, decode=options.decode or "exact", **used_for(store))
    if source is None:
        return encoder, read_embedded(data, encoder)
    return encoder, embed_source(encoder, source, **compute(options))


def _zeroshot(
    options: argparse.Namespace,
    encoder: Any,
    embedded: Any,
    data: str,
    classes: str | None = None,
    prompts: str | None = None,
    named: bool = False,
) -> Any:
    from dualenc.evaluate.zeroshot import evaluate_zeroshot
    from dualenc.model.names import class_files, class_names, templates

    beside = class_files(data) if classes is None else (class_names(classes), templates())
    chosen = templates(prompts) if prompts else beside[1]
    name = f"zeroshot/{Path(data).name}" if named else "zeroshot"
    title = f"Zero-shot: {Path(data).name}" if named else "Zero-shot classification"
    return evaluate_zeroshot(encoder, embedded, beside[0], chosen, name=name, title=title)


def _finish(options: argparse.Namespace, encoder: Any, parts: list[Any], title: str) -> int:
    from dualenc.evaluate.report import write_report
    from dualenc.model.folder import versions

    report = {key: value for values, _ in parts for key, value in values.items()}
    if options.out:
        beside = Path(encoder.path).parent / "log" / "metrics.csv"
        curve = options.curve or (beside if Path(encoder.path).exists() and beside.is_file() else None)
        provenance = {
            "command": " ".join(["dualenc", *sys.argv[1:]]),
            "encoder": encoder.path,
            "fingerprint": encoder.fingerprint,
            "data": options.data,
            "versions": versions(),
        }
        page = write_report(options.out, report, [section for _, section in parts], curve, provenance, title)
        sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json(report)
        return 0
    for _, section in parts:
        sys.stdout.write(f"\n{section.title}: {section.about}\n")
        for table in section.tables:
            _print_table(table)
    return 0


def _print_table(table: Any) -> None:
    def cell(value: Any) -> str:
        return value if isinstance(value, str) else f"{100 * value.value:.1f} %"

    rows = [table.columns, *[[cell(value) for value in row] for row in table.rows]]
    widths = [max(len(row[i]) for row in rows) for i in range(len(table.columns))]
    for row in rows:
        sys.stdout.write(
            "  " + "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n"
        )


def run_classify(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from dualenc.data.shards import FOLDER_EXTENSIONS
    from dualenc.evaluate.zeroshot import class_scores, classifier
    from dualenc.model.encoder import DualEncoder
    from dualenc.model.names import class_names, templates

    names, prompts = class_names(options.classes), templates(options.templates)
    files = []
    for path in map(Path, options.images):
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such image or folder; check the path")
        inside = (
            sorted(p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in FOLDER_EXTENSIONS)
            if path.is_dir()
            else [path]
        )
        files += inside
    if not files:
        raise ValueError(
            f"{', '.join(options.images)}: no images ({', '.join(FOLDER_EXTENSIONS)}) in it; name another folder"
        )
    encoder = DualEncoder.load(options.encoder)
    weights = classifier(encoder, names, prompts)
    rows: list[dict[str, Any]] = []
    bar = tqdm(total=len(files), desc="classifying", unit="img", disable=None)
    for start in range(0, len(files), BLOCK):
        pictures = {path: picture for path in files[start : start + BLOCK] if (picture := _picture(path)) is not None}
        scores: Any = class_scores(encoder.embed_images(list(pictures.values())), weights) if pictures else []
        for path, row in zip(pictures, scores, strict=True):
            best = {"path": str(path), "label": names[int(row.argmax())], "score": float(row.max())}
            rows.append(best | {"scores": dict(zip(names, map(float, row), strict=True))})
        bar.update(min(BLOCK, len(files) - start))
    bar.close()
    if options.out:
        _write_labels(options.out, rows, names)
    if options.json:
        print_json(rows)
    else:
        for row in rows:
            sys.stdout.write(f"{row['score']:.3f}  {row['label']}  {row['path']}\n")
    return int(len(rows) < len(files))


def _picture(path: Path) -> Any:
    """The image, or None with a line that says why it is left out."""
    from dualenc.images import open_image

    try:
        return open_image(path)
    except (ValueError, OSError) as error:
        sys.stderr.write(f"dualenc: left out: {error}\n")
        return None


def _write_labels(out: str, rows: list[dict[str, Any]], names: list[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from dualenc.files import whole_file

    table = pa.table(
        {
            "path": pa.array([r["path"] for r in rows], pa.string()),
            "label": pa.array([r["label"] for r in rows], pa.string()),
            "score": pa.array([r["score"] for r in rows], pa.float32()),
        }
        | {f"score: {name}": pa.array([r["scores"][name] for r in rows], pa.float32()) for name in names}
    )
    with whole_file(out) as partial:
        pq.write_table(table, partial)
