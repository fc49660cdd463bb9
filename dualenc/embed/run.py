"""Encoder and source in, embeddings out, over Lightning's predict loop: one device or several, the same code."""

from __future__ import annotations

import collections
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import dualenc.torchvision_ops  # noqa: F401  (before Lightning)

import numpy as np
import pyarrow as pa
import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from tqdm import tqdm

from dualenc.data.loader import make_loader
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.shards import Source
from dualenc.embed.describe import describe
from dualenc.embed.store import Store, open_store
from dualenc.embed.store_writer import StoreWriter
from dualenc.model.encoder import DualEncoder

log = logging.getLogger("dualenc")

MOST_JOBS = 10_000  # above it, empty parts alone would take minutes
PART_SAMPLES = 50_000  # samples per part of a store: what a killed job loses at most


class Embedded(NamedTuple):
    """Embeddings of N images and their T captions, in the order of the source, with what is known of each."""

    images: np.ndarray  # (N, D) float32, unit rows
    texts: np.ndarray  # (T, D) float32, unit rows
    image_row: np.ndarray  # (T,) int64: the image of each caption
    metadata: (
        pa.Table
    )  # N rows: key, caption, captions, image_path, image_offset, image_size, label, KEY.json's scalars
    text_metadata: pa.Table  # T rows: key, caption, image_row
    dropped: dict[str, int]  # reason -> samples left out


class _Predict(pl.LightningModule):
    """Collects the embeddings of every batch on rank 0."""

    def __init__(self, encoder: DualEncoder, bar: tqdm):
        super().__init__()
        self.model, self.encoder, self.bar = encoder.model, encoder, bar
        self.parts: list[dict[str, Any]] = []
        self.truncated = 0

    def predict_step(self, batch: dict[str, Any], _: int) -> None:
        row = batch["text_row"]
        kept = batch["valid"][row]
        text = self.encoder.text_features(batch["all_text"])[kept] if len(row) else torch.empty(0, 0)
        part = {
            "image": self.encoder.image_features(batch["image"])[batch["valid"]].float().cpu().numpy(),
            "position": batch["position"][batch["valid"]].cpu().numpy(),
            "text": text.float().cpu().numpy(),
            "owner": batch["position"][row][kept].cpu().numpy(),
            "dropped": [reason for reason in batch["reason"] if reason and reason != "padding"],
        }
        if dist.is_available() and dist.is_initialized():
            parts: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
            dist.gather_object(part, parts)
            self.parts += parts or []
        else:
            self.parts.append(part)
        self.truncated += batch["truncated"]
        self.bar.update(len(batch["key"]))


def embed_source(
    encoder: DualEncoder,
    source: Source,
    *,
    batch_size: int = 64,
    workers: int = 2,
    first: int = 0,
    last: int | None = None,
    accelerator: str = "auto",
    devices: int | str = 1,
) -> Embedded:
    """Embed samples first .. last - 1 of a source. Samples that fail are left out and counted by reason.

    On other ranks than 0 the result is empty. ValueError for settings that cannot be used.
    """
    last = len(source) if last is None else last
    trainer = _trainer(batch_size, workers, accelerator, devices)
    ranks = trainer.world_size
    order = BatchOrder(
        last - first, -(-batch_size // ranks) * ranks, rank=trainer.global_rank, ranks=ranks, first=first
    )
    with tqdm(total=-(-(last - first) // ranks), desc="embedding", unit="img", disable=None) as bar:
        predict = _Predict(encoder, bar)
        loader = make_loader(source, Prepare(encoder.spec, decode=encoder.decode), order, workers, all_captions=True)
        try:
            trainer.predict(predict, loader, return_predictions=False)
        finally:
            encoder.model.to(encoder.device).eval()  # Lightning leaves it on the CPU
    if predict.truncated:
        log.warning(
            "%d captions were cut at the context of %d tokens", predict.truncated, encoder.tokenizer.context_length
        )
    return _assemble(predict.parts, encoder.dim, source)


def _trainer(
    batch_size: int = 64, workers: int = 2, accelerator: str = "auto", devices: int | str = 1, **_: Any
) -> pl.Trainer:
    """Lightning's loop; ValueError for settings that cannot be used."""
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, so nothing could be embedded; use {least} or more")
    try:
        return pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"accelerator {accelerator!r} with devices {devices!r} cannot be used ({reason}); use cpu or auto, and 1"
        ) from error


def _assemble(parts: list[dict[str, Any]], dim: int, source: Source) -> Embedded:
    def joined(name: str, width: int | None = None) -> np.ndarray:
        found = [p[name] for p in parts if len(p[name])]
        empty = np.zeros((0, width) if width else 0, dtype=np.float32 if width else np.int64)
        return np.concatenate(found) if found else empty

    position, owner = joined("position"), joined("owner")
    order, text_order = np.argsort(position), np.argsort(owner, kind="stable")
    position, owner = position[order], owner[text_order]
    image_row = np.searchsorted(position, owner).astype(np.int64)
    metadata, captions = describe(source, position)
    text_metadata = pa.table(
        {
            "key": pa.array([source.keys[i] for i in owner], pa.string()),
            "caption": pa.array([c for some in captions for c in some], pa.string()),
            "image_row": pa.array(image_row),
        }
    )
    dropped = collections.Counter(reason for p in parts for reason in p["dropped"])
    return Embedded(
        joined("image", dim)[order], joined("text", dim)[text_order], image_row, metadata, text_metadata, dict(dropped)
    )


def write_store(
    encoder: DualEncoder,
    source: Source,
    out: str | Path,
    *,
    part: tuple[int, int] = (1, 1),
    dtype: str = "float16",
    part_samples: int = PART_SAMPLES,
    **settings: Any,
) -> Store | None:
    """Embed a source into a store: this job's share of its parts, each written whole, those already there left alone.

    part: (i, n), the i-th of n jobs, counted from 1; all n use the same arguments, at once or one after the other, and
    whichever is last finishes the store. settings: as `embed_source`. Returns the store, or None while other jobs'
    parts are missing. ValueError when nothing could be embedded, when a setting cannot be used, or when `out` was begun
    with another source, encoder or other settings (an encoder that was only moved may go on).
    """
    job, jobs = part
    if jobs > max(MOST_JOBS, len(source)):
        raise ValueError(f"part {job}/{jobs}: {len(source)} samples need no {jobs} jobs; use fewer")
    if not 1 <= job <= jobs:
        raise ValueError(f"part {job}/{jobs}: i must be between 1 and n, or the store would never be complete")
    parts = jobs * max(1, -(-len(source) // (part_samples * jobs)))
    bounds = [len(source) * p // parts for p in range(parts + 1)]
    plan = {
        "bounds": bounds,
        "dim": encoder.dim,
        "dtype": dtype,
        "fingerprint": encoder.fingerprint,
        "encoder": encoder.path,
        "source": source.path,
        "source_digest": source.digest(),
    }
    _ = encoder.spec, _trainer(**settings)  # whatever is wrong with these is told before anything is written
    writer = StoreWriter(out, plan)
    for number in [p for p in writer.missing_parts() if p % jobs == job - 1]:
        done = embed_source(encoder, source, first=bounds[number], last=bounds[number + 1], **settings)
        if rank() == 0:
            dropped = collections.Counter(done.dropped)
            if number == 0:
                dropped.update({reason: len(names) for reason, names in source.problems.items()})
            writer.write_part(number, done.images, done.texts, done.metadata, done.text_metadata, dropped)
    if rank() != 0 or not writer.finish():
        return None
    store = open_store(out)
    if not store.rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in store.manifest["dropped"].items())
        shutil.rmtree(out)
        raise ValueError(f"{source.path}: no image could be embedded ({reasons}); `dualenc data check` lists them")
    return store


def read_embedded(folder: str | Path, encoder: DualEncoder | None = None) -> Embedded:
    """A whole store in memory, as `embed_source` gives it. ValueError when it was made by another encoder."""
    store = open_store(folder)
    if encoder is not None and store.fingerprint not in (None, encoder.fingerprint):
        raise ValueError(
            f"{folder} was made by {store.encoder}, another encoder than {encoder.path}: scores would mean nothing; "
            "embed again with this encoder, or evaluate that one"
        )
    images, texts = (
        np.concatenate([np.zeros((0, store.dim), np.float32), *side()]) for side in (store.images, store.texts)
    )
    dropped = store.manifest.get("dropped", {})
    return Embedded(images, texts, store.image_row, store.metadata(), store.text_metadata(), dropped)


def rank() -> int:
    """This process's number among those of a run on several devices; 0 where it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
