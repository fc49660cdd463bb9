"""`dualenc eval composition`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, compute
from dualenc.cli.evaluation import bootstrap_option, check_draws, embedded_data, finish, report_options
from dualenc.files import sha256


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "composition",
        run,
        "true captions against nearly equal wrong ones: the data's own swaps (KEY.json: swap_attribute, swap_relation), "
        "SugarCrepe, Winoground",
        "dualenc eval composition --encoder runs/demo/encoder --data val2017 --sugarcrepe sugar-crepe/data --out runs/sugarcrepe",
    )
    report_options(parser)
    sets = parser.add_mutually_exclusive_group()
    sets.add_argument(
        "--sugarcrepe", metavar="PATH", help="SugarCrepe's folder of JSON files, or one; --data is then COCO's val2017"
    )
    sets.add_argument("--winoground", metavar="PATH", help="Winoground's examples.jsonl; --data is then its images")
    parser.add_argument(
        "--by",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="also by group: the values of these metadata columns of the images (Winoground: fields of examples.jsonl; "
        "default collapsed_tag, num_main_preds, secondary_tag)",
    )
    bootstrap_option(parser)


def run(options: argparse.Namespace) -> int:
    check_draws(options.bootstrap)
    chosen = {"bootstrap": options.bootstrap, "by": options.by}
    part: Any
    if options.sugarcrepe:
        from dualenc.evaluate.composition import sugarcrepe

        kinds = sugarcrepe.read_sugarcrepe(options.sugarcrepe)
        options.provenance = _provenance("sugarcrepe", sugarcrepe.sugarcrepe_files(options.sugarcrepe))
        encoder, embedded = _images(options, sugarcrepe.image_names(kinds), sugarcrepe.IMAGES)
        part = sugarcrepe.evaluate_sugarcrepe(encoder, embedded, kinds, **chosen)
    elif options.winoground:
        from dualenc.evaluate.composition import winoground

        quads = winoground.read_winoground(options.winoground)
        options.provenance = _provenance("winoground", [winoground.examples_file(options.winoground)])
        encoder, embedded = _images(options, winoground.image_names(quads), winoground.SOURCE)
        part = winoground.evaluate_winoground(encoder, embedded, quads, **chosen)
    else:
        from dualenc.evaluate.composition.swaps import evaluate_composition

        encoder, embedded = embedded_data(options, options.data)
        part = evaluate_composition(encoder, embedded, **chosen)
    return finish(options, encoder, [part], "Composition")


def _provenance(name: str, files: Sequence[Path]) -> dict[str, str]:
    """The files that the captions come from, with their checksums."""
    return {f"{name}/{file.name}/sha256": sha256(file) for file in files} | {name: str(files[0].parent)}


def _images(options: argparse.Namespace, names: Sequence[str], where: str) -> tuple[Any, Any]:
    """The encoder, and the named images of --data embedded, each once and without captions of its own."""
    from dualenc.data.lookup import find
    from dualenc.data.shards import open_source
    from dualenc.data.source import Chosen
    from dualenc.embed.run import embed_source
    from dualenc.embed.store import is_store
    from dualenc.evaluate.composition.sugarcrepe import refuse_missing
    from dualenc.model.encoder import DualEncoder

    if is_store(options.data):
        return embedded_data(options, options.data)
    try:
        source = open_source(options.data)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; {where}") from None
    row = find(source.keys, names)
    refuse_missing([name for name, i in zip(names, row, strict=True) if i < 0], len(names), where)
    encoder = DualEncoder.load(options.encoder, decode=options.decode or "exact")
    wanted = Chosen(source, sorted(set(row.tolist())), ("image", "json", "cls"))
    return encoder, embed_source(encoder, wanted, **compute(options))
