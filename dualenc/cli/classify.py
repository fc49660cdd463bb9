"""`dualenc classify`: name what is in images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, print_json
from dualenc.cli.evaluation import CLASSES, ENCODER, TEMPLATES

BLOCK = 64  # images that `classify` holds at a time


def register(commands: Any) -> None:
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
