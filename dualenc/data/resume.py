"""Where a run goes on in its data, out of Lightning's counts of epochs and batches, which are in every checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl


def go_on(trainer: pl.Trainer) -> tuple[int, int]:
    """The epoch that comes or goes on, and how many of its batches are done; puts Lightning's counts right for it.

    To be called when Lightning asks for the training loader, which is before it looks at what it has restored. It (2.6)
    would take up two kinds of checkpoint wrongly: one written between an epoch's last batch and its last hook, where with
    trainer.max_steps it counts the next epoch twice and skips its data; and one of a run that max_steps or max_time ended
    within an epoch, which it takes for the epoch's end.
    """
    loop: Any = trainer.fit_loop
    inner, epochs = loop.epoch_loop, loop.epoch_progress
    batches = inner.batch_progress
    done = batches.current.processed  # a crash may have begun one more
    if not done:
        return trainer.current_epoch, 0
    if batches.is_last_batch and done == batches.current.ready:
        _set_finished(epochs, epochs.current.ready)
        if batches.total.completed < batches.total.processed:  # written before the batch's own last hook
            batches.total.completed = batches.total.processed
            inner._batches_that_stepped += 1
        batches.reset_on_run()
        loop._restarting = inner._restarting = False
        return epochs.current.ready, 0
    _set_finished(epochs, epochs.current.ready - 1)
    loop._restarting = True
    return epochs.current.ready - 1, done


def digest(streams: Sequence[Sequence[str]]) -> str:
    """SHA-256 over the addresses of shards, less the signatures in them, which expire."""
    plain = [[url if url.startswith("pipe:") else re.sub(r"\?.*", "", url) for url in urls] for urls in streams]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


def _set_finished(epochs: Any, count: int) -> None:
    """So many epochs are over; any begun after them goes on."""
    for counts in (epochs.total, epochs.current):
        counts.started = counts.ready
        counts.processed = counts.completed = count
