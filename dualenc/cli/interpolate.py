"""`dualenc interpolate`: encoders between a starting and a tuned one, and the curve of what they are worth."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dualenc.cli.common import command, compute, compute_options, print_json
from dualenc.cli.evaluation import ENCODER

ALPHA = 0.5
ALPHAS = "0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"
BATCHES = 100


def register(commands: Any) -> None:
    parser = command(
        commands,
        "interpolate",
        run,
        "average the weights of a fine-tuned encoder with those it started from (WiSE-FT)",
        "dualenc interpolate ViT-B-32:openai runs/finetune/encoder runs/wise --new shards/val --old shards/imagenet",
    )
    parser.add_argument("start", metavar="START", help=f"what the tuning started from: {ENCODER}")
    parser.add_argument("tuned", metavar="TUNED", help="the tuned encoder, of the same architecture: likewise")
    parser.add_argument("out", metavar="OUT", help="the encoder folder; with --new, a folder with report and encoder/")
    parser.add_argument(
        "--alpha", type=float, metavar="A", help=f"share of the tuned weights, 0..1 (default {ALPHA}; not with --new)"
    )
    parser.add_argument(
        "--new",
        metavar="DATA",
        help="measure a curve on the task that was tuned for, and write the best encoder: shards of a validation set, "
        "classified where they have classnames.txt, else searched",
    )
    parser.add_argument("--old", metavar="DATA", help="also measure a task that the tuned encoder should not forget")
    parser.add_argument("--alphas", metavar="A,B,…", help=f"points of the curve (default {ALPHAS})")
    parser.add_argument(
        "--data", metavar="SHARDS", help="measure batch-norm statistics on these (needed where the towers have them)"
    )
    parser.add_argument(
        "--batches", type=int, default=BATCHES, help=f"batches of --data that are read (default {BATCHES})"
    )
    parser.add_argument("--json", action="store_true", help="print what was measured, or written, as JSON")
    compute_options(parser)


def run(options: argparse.Namespace) -> int:
    alphas = _alphas(options)
    from dualenc.files import refuse_existing

    refuse_existing(Path(options.out))
    from dualenc.evaluate.interpolate.interpolate import check_alphas, load_ends, open_task
    from dualenc.model.interpolate import check_alpha

    if options.new is None:
        check_alpha(alphas[0])
    else:
        alphas = check_alphas(alphas)
    named = {"new": options.new, "old": options.old}
    tasks = [open_task(role, path) for role, path in named.items() if path is not None]  # a wrong path is told at once
    ends = load_ends(options.start, options.tuned, alphas, _statistics(options))
    if tasks:
        return _curve(options, ends, alphas, tasks)
    return _one(options, ends, alphas[0])


def _alphas(options: argparse.Namespace) -> list[float]:
    """The alphas asked for: one, or the curve's. ValueError for options that have no effect together."""
    if options.new is None:
        for name in ("old", "alphas"):
            if getattr(options, name) is not None:
                raise ValueError(
                    f"--{name} is for a curve, and a curve needs --new DATA; give it, or leave out --{name}"
                )
        return [ALPHA if options.alpha is None else options.alpha]
    if options.alpha is not None:
        raise ValueError("--alpha has no effect beside --new, which tries --alphas and chooses one; leave out either")
    text = ALPHAS if options.alphas is None else options.alphas
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ValueError(f"--alphas {text!r} is not a list of numbers; write {ALPHAS}") from None


def _statistics(options: argparse.Namespace) -> Any:
    if options.data is None:
        return None
    from dualenc.data.shards import open_source
    from dualenc.evaluate.interpolate.interpolate import Statistics

    for name, value, least in (("batches", options.batches, 1), ("batch-size", options.batch_size, 2)):
        if value < least:
            raise ValueError(f"--{name} is {value}, so there are no statistics to measure; use {least} or more")
    return Statistics(open_source(options.data), options.batches, options.batch_size, options.workers)


def _one(options: argparse.Namespace, ends: Any, alpha: float) -> int:
    from dualenc.evaluate.interpolate.interpolate import encoder_at

    device = "cpu" if options.accelerator == "cpu" else None
    mark = encoder_at(ends, alpha, options.decode or "exact", device).save(options.out)
    if options.json:
        print_json({"encoder": options.out, "alpha": alpha, "fingerprint": mark})
    else:
        sys.stdout.write(f"{options.out}: the encoder at alpha {alpha:g}, fingerprint {mark[:12]}…\n")
    return 0


def _curve(options: argparse.Namespace, ends: Any, alphas: list[float], tasks: list[Any]) -> int:
    from tqdm import tqdm

    from dualenc.evaluate.interpolate.interpolate import best, curve, encoder_at
    from dualenc.evaluate.interpolate.report import values, write
    from dualenc.model.folder import versions

    decode, points = options.decode or "exact", []
    with _writable(Path(options.out)), tqdm(total=len(alphas), desc="alphas", unit="alpha", disable=None) as bar:
        for point in curve(ends, alphas, tasks, decode, **compute(options)):
            points.append(point)
            tqdm.write(_line(point), file=sys.stderr)
            bar.update()
    chosen = best(points)
    device = "cpu" if options.accelerator == "cpu" else None
    folder = Path(options.out) / "encoder"
    mark = encoder_at(ends, chosen.alpha, decode, device).save(folder)
    made: dict[str, Any] = {"command": " ".join(["dualenc", *sys.argv[1:]]), **ends.names}
    if ends.statistics is not None:
        made["statistics"] = ends.statistics.about()
    page = write(options.out, points, tasks, made | {"fingerprint": mark, "versions": versions()})
    sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json(values(points, tasks))
        return 0
    sys.stdout.write(f"{folder}: the encoder at alpha {chosen.alpha:g}, the best of {len(points)} on {_on(tasks)}\n")
    return 0


@contextlib.contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Make the folder before the hours of work whose result it is for; take it away again where they fail."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        folder.rmdir()
        raise


def _line(point: Any) -> str:
    said = [f"{role} {100 * value:.1f} %" for role, value in point.scores.items()]
    if len(said) > 1:
        said.append(f"mean {100 * point.mean:.1f} %")
    return f"alpha {point.alpha:g}: {', '.join(said)}"


def _on(tasks: list[Any]) -> str:
    return (
        " and ".join(dict.fromkeys(task.path for task in tasks)) + ": measure it on data that had no part in the choice"
    )
