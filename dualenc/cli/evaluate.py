"""`dualenc eval …`."""

from __future__ import annotations

from typing import Any

from dualenc.cli import eval_compare, eval_composition, eval_probe, eval_retrieval, eval_sweep, eval_zeroshot
from dualenc.cli.common import group

VERBS = (eval_retrieval, eval_zeroshot, eval_compare, eval_probe, eval_composition, eval_sweep)


def register(commands: Any) -> None:
    evaluations = group(commands, "eval", "measure an encoder")
    for verb in VERBS:
        verb.register(evaluations)
