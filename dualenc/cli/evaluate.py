"""`dualenc eval …`."""

from __future__ import annotations

from typing import Any

from dualenc.cli import eval_composition, eval_retrieval, eval_zeroshot
from dualenc.cli.common import group


def register(commands: Any) -> None:
    evaluations = group(commands, "eval", "measure an encoder")
    for verb in (eval_retrieval, eval_zeroshot, eval_composition):
        verb.register(evaluations)
