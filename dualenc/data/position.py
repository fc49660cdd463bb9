"""Where a run stands in its data, out of Lightning's counts of epochs and batches, which are in every checkpoint."""

from __future__ import annotations

from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import pytorch_lightning as pl


def position(trainer: pl.Trainer) -> tuple[int, int]:
    """The epoch that comes or goes on, and how many of its batches are done.

    Asked for when Lightning asks for the training loader, which is before it looks at what it has restored.
    """
    loop: Any = trainer.fit_loop
    batches, epochs = loop.epoch_loop.batch_progress, loop.epoch_progress.current
    done = batches.current.processed  # a crash may have begun one more
    if done and batches.is_last_batch and done == batches.current.ready:
        _begin_next_epoch(loop)
        return epochs.ready, 0
    return (epochs.ready - 1 if done else trainer.current_epoch), done


def _begin_next_epoch(loop: Any) -> None:
    """Bring the counts to where a new epoch begins.

    A checkpoint may be of a moment between an epoch's last batch and its last hook. Lightning (2.6) goes on from there as
    if within the epoch where trainer.max_steps is set: it would count the next epoch twice, and skip its data.
    """
    epochs, inner = loop.epoch_progress, loop.epoch_loop
    batches = inner.batch_progress
    for counts in (epochs.total, epochs.current):
        counts.started = counts.processed = counts.completed = counts.ready
    if batches.total.completed < batches.total.processed:  # written before the batch's own last hook
        batches.total.completed = batches.total.processed
        inner._batches_that_stepped += 1
    batches.reset_on_run()
    loop._restarting = inner._restarting = False
