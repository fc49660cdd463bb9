"""The whole loader: what two workers gain over one process, and how much memory twenty epochs take."""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dualenc.torchvision_ops  # noqa: F401  (before Lightning and open_clip)

import torch
from open_clip.tokenizer import SimpleTokenizer
from timing import progress, seconds

from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder, epoch_order
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.data.transforms import Augment
from dualenc.model.spec import tokenizer_spec

WORKERS, BATCH, EPOCHS = 2, 32, 20
IMAGE = {  # as `dualenc.model.spec.input_spec` gives them for ViT-B-32
    "size": [224, 224],
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


def training_loader(shards: Path, workers: int, batch: int = BATCH) -> Any:
    """The loader of training at 224 px with the default augmentation."""
    source = open_source(shards)
    prepare = Prepare(
        {"image": IMAGE, "text": tokenizer_spec(SimpleTokenizer(), True)}, Augment(), seed=0, decode="fast"
    )
    order = BatchOrder(len(source), batch, functools.partial(_order, len(source)))
    return make_loader(source, prepare, order, workers, all_captions=False)


def _order(n: int, epoch: int) -> Any:
    return epoch_order(n, seed=0, epoch=epoch)


def run_epoch(loader: Any, epoch: int) -> int:
    """Take every batch of an epoch; returns the samples that could be used."""
    loader.sampler.set_epoch(epoch)
    return sum(int(batch["valid"].sum()) for batch in loader)


def loader(shards: Path, repeats: int, batch: int = BATCH) -> dict[str, float | int]:
    """Samples/s of one process, of two that know nothing of each other, and of the loader with two workers.

    In each repeat one after the other; the processes live through all repeats, so that no start is timed.
    """
    context = multiprocessing.get_context("fork")
    pipes = []
    for _ in range(2):
        mine, other = context.Pipe()
        context.Process(target=_alone, args=(other, shards, batch), daemon=True).start()
        pipes.append(mine)
    both = training_loader(shards, WORKERS, batch)
    n = len(both.sampler) * batch

    def alone(epoch: int, processes: list[Any]) -> float:
        """Samples/s of some processes with an epoch each."""

        def work() -> None:
            for pipe in processes:
                pipe.send(epoch)
            assert all(pipe.recv() == n for pipe in processes)

        return n * len(processes) / seconds(work)

    rates: dict[str, list[float]] = {"one": [], "two": [], "workers": []}
    for epoch in range(repeats + 1):  # the first starts workers and fills memos
        progress(f"loader: {epoch} of {repeats}")
        ways = {
            "one": lambda e=epoch: alone(e, pipes[:1]),
            "two": lambda e=epoch: alone(e, pipes),
            "workers": lambda e=epoch: n / seconds(lambda: run_epoch(both, e)),
        }
        for name in list(ways) if epoch % 2 else reversed(ways):
            rates[name].append(ways[name]())
    for pipe in pipes:
        pipe.send(None)
    middle = {name: statistics.median(values[1:]) for name, values in rates.items()}
    gains = [
        (w / one) / (two / one) for one, two, w in zip(*(rates[k][1:] for k in ("one", "two", "workers")), strict=True)
    ]
    return {
        "samples": n,
        "batch": batch,
        "workers": WORKERS,
        **{f"{name}_samples_per_second": round(value, 1) for name, value in middle.items()},
        "gain_two_processes": round(middle["two"] / middle["one"], 3),
        "gain_two_workers": round(middle["workers"] / middle["one"], 3),
        "share": round(statistics.median(gains), 3),
    }


def _alone(pipe: Any, shards: Path, batch: int) -> None:
    torch.set_num_threads(1)
    mine = training_loader(shards, 0, batch)
    while (epoch := pipe.recv()) is not None:
        pipe.send(run_epoch(mine, epoch))


def memory(shards: Path, epochs: int = EPOCHS, batch: int = BATCH) -> dict[str, Any]:
    """Proportional resident memory (PSS) of this process and its loader workers after each epoch, in MiB."""
    several = training_loader(shards, WORKERS, batch)
    used, files = [], []
    for epoch in range(epochs):
        run_epoch(several, epoch)
        family = [os.getpid(), *(worker.pid for worker in several._iterator._workers)]
        used.append(round(sum(pss(pid) for pid in family) / 2**20, 1))
        files.append(sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in family))
        progress(f"memory: epoch {epoch + 1} of {epochs}: {used[-1]} MiB, {files[-1]} open files")
    settled = used[1]
    return {
        "samples": len(several.sampler) * batch,
        "workers": WORKERS,
        "epochs": epochs,
        "mib": used,
        "open_files": files,
        "growth": round(max(used[2:]) / settled - 1, 4),
    }


def pss(pid: int) -> int:
    """Bytes of a process's memory, shared pages divided among those who share them."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def copies(images: list[tuple[Path, list[str]]], times: int) -> Iterator[tuple[Path, list[str]]]:
    """The same pictures several times, for epochs that are long enough to time."""
    for _ in range(times):
        yield from images
