"""`dualenc eval sweep`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dualenc.cli.common import command, compute, compute_options, print_json, printable
from dualenc.cli.evaluation import print_table

ABOUT = """
SWEEP.yaml:

  encoders:                          # a name or path, or an entry with more to say
    - ViT-B-32:laion2b_s34b_b79k
    - {name: ours, path: runs/flickr8k/encoder}
    - {name: big, path: ViT-L-14:openai, samples_seen: 12800000000}
  data:
    - {name: flickr8k, path: shards/flickr8k/test}               # retrieval, both ways
    - {name: cifar10, path: shards/cifar10/test, task: zeroshot} # classes: FILE, or classnames.txt beside the data
  templates: [plain, simple, "a photo of a {}."]                 # of zeroshot (default: those beside the data)
  ks: [1, 5, 10]                                                 # of retrieval

The folder OUT gets results.csv, results.parquet, report.json and report.html. Run again, a sweep measures only what
changed in the YAML, in an encoder or in the data, and what failed. OUT/embedded holds the embeddings that templates
share; it may be removed at any time.\
"""


def register(evaluations: Any) -> None:
    parser = command(
        evaluations,
        "sweep",
        run,
        "encoders x data sets x templates, a row each, and only what is not there yet",
        "dualenc eval sweep sweep.yaml --out runs/sweep",
    )
    parser.description = f"{parser.description}\n{ABOUT}"
    parser.add_argument("sweep", metavar="SWEEP.yaml", help="encoders, data, templates (see above)")
    parser.add_argument("--out", required=True, help="folder for the results, and for what is known already")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    compute_options(parser)


def run(options: argparse.Namespace) -> int:
    from dualenc.evaluate.page.provenance import provenance
    from dualenc.evaluate.page.report import write_report
    from dualenc.evaluate.sweep.plot import sections, values
    from dualenc.evaluate.sweep.spec import read_sweep
    from dualenc.evaluate.sweep.sweep import run_sweep
    from dualenc.evaluate.sweep.table import row, write_table

    outcomes = run_sweep(read_sweep(options.sweep), options.out, options.decode or "exact", **compute(options))
    write_table(outcomes, options.out)
    whole = sections(outcomes)
    made = provenance(["dualenc", *sys.argv[1:]], [], [])
    page = write_report(options.out, values(outcomes), whole, provenance=made, title="Sweep")
    sys.stderr.write(f"report: {page}\n")
    if options.json:
        print_json([row(outcome) for outcome in outcomes])
    else:
        for table in whole[0].tables:
            sys.stdout.write("\n")
            print_table(table)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if failed:
        sys.stderr.write(
            printable(f"{len(failed)} of {len(outcomes)} failed; the same command tries them again") + "\n"
        )
    return 1 if failed else 0
