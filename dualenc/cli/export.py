"""`dualenc export`: an encoder for other programs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from dualenc.cli.common import command

FORMATS = ("folder", "hf", "onnx", "int8")
WAYS = {"text_to_image": "text → image", "image_to_text": "image → text"}


def register(commands: Any) -> None:
    parser = command(
        commands,
        "export",
        run,
        "write an encoder for other programs, checked against the encoder itself before it appears",
        "dualenc export runs/demo/encoder runs/demo/int8 --to int8 --data runs/demo/shards/test",
    )
    parser.add_argument("encoder", help="encoder folder, .ckpt, open_clip NAME:TAG, or hf-hub:org/repo")
    parser.add_argument("out", help="the folder to write, whole or not at all; it must not exist")
    parser.add_argument(
        "--to",
        required=True,
        choices=FORMATS,
        help="folder: an encoder folder, which open_clip loads too; hf: transformers' CLIPModel with its processor, for plain "
        "vision transformers; onnx: image.onnx (uint8 pixels) and text.onnx (token ids), unit rows, any batch size; int8: "
        "the same with matrices in 8 bits (convolutions stay float)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        help="for int8: shards, a folder of images, or a store, to measure the recall that 8 bits cost",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at a time of --data (default 64)")
    parser.add_argument("--workers", type=int, default=2, help="loader processes of --data (default 2)")


def run(options: argparse.Namespace) -> int:
    """Check what needs no encoder, then load it and write."""
    from dualenc.files import refuse_existing

    if options.to == "int8" and not options.data:
        raise ValueError(
            "--to int8 without --data: 8 bits cost recall, and how much depends on the encoder, so it is measured; "
            "name some pairs with --data"
        )
    if options.to != "int8" and options.data:
        raise ValueError(f"--data has no effect with --to {options.to}, which changes no embedding; leave it out")
    refuse_existing(Path(options.out))
    from dualenc.model.export.check import TOLERANCE, need
    from dualenc.model.export.hf import PACKAGES as TRANSFORMERS
    from dualenc.model.export.onnx import PACKAGES as ONNX

    need(*{"folder": (), "hf": TRANSFORMERS, "onnx": ONNX, "int8": ONNX}[options.to])
    source = _source(options.data) if options.data else None  # before the encoder: a wrong path is told at once
    from dualenc.model.encoder import DualEncoder
    from dualenc.model.folder import NOTE

    encoder = DualEncoder.load(options.encoder, device="cpu")
    found = _export(encoder, source, options)
    gaps = found.get("max_difference", found)
    allowed = "" if options.to == "int8" else f" (allowed: {TOLERANCE:.0e})"
    sys.stdout.write(f"{options.out}: {options.to}, {encoder.dim} dimensions, fingerprint {encoder.fingerprint[:12]}\n")
    sys.stdout.write(
        f"largest difference of a value of unit rows: images {gaps['image']:.1e}, captions {gaps['text']:.1e}{allowed}\n"
    )
    if options.to == "hf":
        sys.stdout.write(f"what transformers reads otherwise: see differs in {Path(options.out) / NOTE}\n")
    if options.to == "int8":
        _print_cost(found)
    return 0


def _export(encoder: Any, source: Any, options: argparse.Namespace) -> dict[str, Any]:
    from dualenc.model import export

    if options.to != "int8":
        return getattr(export, f"export_{options.to}")(encoder, options.out)
    from dualenc.evaluate.quantised import quantised_recall

    settings = {"batch_size": options.batch_size, "workers": options.workers}
    return export.export_int8(
        encoder, options.out, lambda towers: quantised_recall(encoder, towers, source, **settings)
    )


def _source(data: list[str]) -> Any:
    """The samples of --data; of a store, those it was made from, whose pixels it does not hold."""
    from dualenc.data.shards import open_source
    from dualenc.embed.store import is_store, open_store

    if not (len(data) == 1 and is_store(data[0])):
        return open_source(data)
    store = open_store(data[0])
    plan, table = store.manifest.get("plan", {}), store.metadata()
    paths = table["image_path"].unique().to_pylist() if "image_path" in table.column_names else []
    shards = [path for path in paths if path and path.endswith(".tar")]
    if not shards and not plan.get("source"):
        raise ValueError(f"{data[0]} does not say what it was made from, and int8 needs the pixels; name the shards")
    source = open_source(shards or plan["source"])
    if plan.get("source_digest") not in (None, source.digest()):
        raise ValueError(
            f"{data[0]} was made from {source.path}, which has changed since; name the shards to measure on"
        )
    return source


def _print_cost(found: dict[str, Any]) -> None:
    for name, (before, after) in found["bytes"].items():
        sys.stdout.write(f"{name}: {before / 1e6:.1f} MB in float32, {after / 1e6:.1f} MB in int8\n")
    whole, small = found["recall"]["float"], found["recall"]["int8"]
    sys.stdout.write(f"{'':<24}{'float32':>9}{'int8':>9}{'change':>9}\n")
    for way, shown in WAYS.items():
        for name in (n.partition("/")[2] for n in whole if n.startswith(f"{way}/recall@")):
            a, b = (100 * side[f"{way}/{name}"] for side in (whole, small))
            sys.stdout.write(f"{shown + ' R' + name[6:]:<24}{a:>7.1f} %{b:>7.1f} %{b - a:>+9.1f}\n")
