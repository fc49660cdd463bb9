"""Image embeddings out of a store in place of a frozen tower's work (LiT: Zhai et al. 2022, "Locked-image text tuning").

The tower is frozen and sees each image unaugmented, so it would give the same row every epoch: the one that
`dualenc embed` stored. Gradients of everything else are what they would be with the tower, to the store's rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from dualenc.data.collate import key_group
from dualenc.data.prepare import Prepare
from dualenc.files import read_json
from dualenc.index.folder import listed, open_vectors
from dualenc.index.vectors import unit_rows
from dualenc.model import folder
from dualenc.model.towers import image_features

log = logging.getLogger("dualenc")

LOOKED_AT, SAME_IMAGE = (
    4,
    0.05,
)  # images that are embedded again, and how far a row may be off: half precision, fast decode
ABSENT = "not in the store"  # why a sample is dropped that the store has no row for


class ImageRows:
    """A store's image embeddings by key; the rows stay on disk, 16 bytes of each row's key are held.

    ValueError or FileNotFoundError: no finished store, a key twice. dim: D. fingerprint: whose embeddings they are; None
    where nobody recorded it.
    """

    def __init__(self, store: str | Path):
        self.store = Path(store)
        self.fingerprint = _manifest(self.store).get("fingerprint")
        self._rows = open_vectors(self.store / "img_emb").rows
        self.dim = self._rows.dim
        groups = np.fromiter((key_group(key) for key in _keys(self.store, len(self._rows))), np.int64, len(self._rows))
        self._order = np.argsort(groups, kind="stable")
        self._groups = groups[self._order]
        twice = np.flatnonzero(self._groups[1:] == self._groups[:-1])
        if len(twice):
            first, second = sorted(self._order[twice[0] : twice[0] + 2].tolist())
            raise ValueError(
                f"{self.store}: rows {first} and {second} have the same key, so which of them is the image's is unclear; embed "
                "data with keys of their own"
            )

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, groups: np.ndarray) -> np.ndarray:
        """int64: the row of each key's number (`key_group`); -1 for keys that the store lacks."""
        place = np.searchsorted(self._groups, groups).clip(max=len(self) - 1)
        return np.where(self._groups[place] == groups, self._order[place], -1)

    def row(self, place: int) -> np.ndarray:
        """(D,) float32."""
        return self._rows.take(np.array([place]))[0]

    def attach(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with `image_embedding` float32 (B, D), unit rows; one that has images stays as it is.

        To be called before the batch goes to its device. A sample that the store lacks is no longer valid, with the reason
        ABSENT. ValueError names a row that is not unit.
        """
        if "image" in batch:
            return batch
        rows = self.find(batch["group"].cpu().numpy())
        taken = np.zeros((len(rows), self.dim), np.float32)
        taken[:, 0] = 1  # a unit row like any other, where there is none
        there = rows >= 0
        taken[there] = unit_rows(self._rows.take(rows[there]), str(self.store), numbers=rows[there])
        valid, reasons = batch["valid"], zip(batch["reason"], there.tolist(), strict=True)
        embedding, known_rows = (torch.from_numpy(array).to(valid.device) for array in (taken, there))
        return batch | {
            "image_embedding": embedding,
            "valid": valid & known_rows,
            "reason": [reason if known else reason or ABSENT for reason, known in reasons],
        }


def image_rows(
    data: Any, model: nn.Module, start_from: str | None, preprocess: dict[str, Any] | None
) -> ImageRows | None:
    """What a run reads in place of images; None where `data` (PairData, set up) asks for none.

    Refused before any work: an image tower that is trained, a store that `start_from` (with `preprocess`) did not make, a
    store without any of the training samples. Samples that it lacks are counted in the log.
    """
    if getattr(data, "image_store", None) is None:
        return None
    visual: Any = model.visual
    if any(parameter.requires_grad for parameter in visual.parameters()):
        raise ValueError(
            "data.image_store holds what the image tower gave before training, so the tower must stay as it is: set "
            "model.image_blocks 0, and leave model.lora off the image tower"
        )
    if start_from is None:
        raise ValueError("data.image_store needs the encoder whose embeddings it holds: set model.start_from to it")
    rows = ImageRows(data.image_store)
    decode = _refuse_foreign(rows, start_from, preprocess or {})
    if data.streams is None:
        _refuse_others(rows, data.sources["train"].keys)
        _refuse_other_images(rows, data, model, decode)
    return rows


def _refuse_foreign(rows: ImageRows, start_from: str, preprocess: dict[str, Any]) -> str:
    """How its images were decoded. ValueError where the store holds another encoder's embeddings, or nobody knows whose."""
    if rows.fingerprint is None:
        raise ValueError(
            f"{rows.store}: nobody recorded which encoder made it, so its rows may not be those of {start_from}; embed "
            "again with `dualenc embed`"
        )
    # read again: the model that trains has another temperature by now, or LoRA's names
    model, tokenizer, model_cfg, _ = folder.load(start_from)
    if rows.dim != model_cfg["embed_dim"]:
        raise ValueError(
            f"{rows.store} holds embeddings of {rows.dim} dimensions, and {start_from} has {model_cfg['embed_dim']}: embed the "
            "training data with it, in whole"
        )
    model.visual.preprocess_cfg.update(preprocess)  # type: ignore[union-attr,operator]
    marks = folder.fingerprints(model, tokenizer, [("exact", None), ("fast", None)])
    if rows.fingerprint not in marks:
        raise ValueError(
            f"{rows.store} holds embeddings of encoder {rows.fingerprint[:12]}…, and {start_from} is {marks[0][:12]}…: embed the "
            "training data with it, or start from the encoder that made the store"
        )
    return ("exact", "fast")[marks.index(rows.fingerprint)]


def _refuse_other_images(rows: ImageRows, data: Any, model: nn.Module, decode: str) -> None:
    """ValueError where the rows of the first images are not what the tower makes of them: equal keys of other data."""
    source, prepare = data.sources["train"], Prepare(data.spec, decode=decode)
    device = next(model.parameters()).device
    for position in range(min(LOOKED_AT, len(source))):
        row = prepare(source.sample(position), 0, position)
        (place,) = rows.find(np.array([key_group(row["key"])]))
        if row["reason"] is not None or place < 0:
            continue
        with torch.no_grad():
            pixels = torch.tensor(row["image"]).permute(2, 0, 1).unsqueeze(0).to(device)
            ours = image_features(model, pixels)[0].float().cpu().numpy()
        if np.linalg.norm(ours - rows.row(int(place))) > SAME_IMAGE:
            raise ValueError(
                f"{rows.store} has another image under the key {row['key']} than data.train: it was made of other data with "
                "equal keys; embed data.train, and give that store"
            )


def _refuse_others(rows: ImageRows, keys: Sequence[str]) -> None:
    """Log how many training samples the store lacks; ValueError where it has none of them."""
    groups = np.fromiter(map(key_group, keys), np.int64, len(keys))
    missing = np.flatnonzero(rows.find(groups) < 0)
    if len(missing) == len(keys):
        raise ValueError(
            f"{rows.store} has none of the {len(keys):,} training samples (first: {keys[0]}): embed data.train, "
            "and give that store"
        )
    if len(missing):
        log.warning(
            "%s lacks %s of %s training samples (first: %s), which are dropped",
            rows.store,
            *(f"{count:,}" for count in (len(missing), len(keys))),
            keys[int(missing[0])],
        )


def _manifest(store: Path) -> dict[str, Any]:
    """A store's manifest, {} where there is none. FileNotFoundError or ValueError: no store with images, or an unfinished one."""
    if not (store / "img_emb").is_dir():
        raise FileNotFoundError(
            f"data.image_store {store}: no store of images there; make it with `dualenc embed --out {store}`"
        )
    path = store / "manifest.json"
    if not path.exists() and (store / ".parts").exists():
        raise ValueError(f"{store} is not finished: parts are still missing; run the same `dualenc embed` again")
    manifest = read_json(path) if path.exists() else {}
    if not isinstance(manifest, dict):
        raise ValueError(f"{path} is no store's; embed again")
    return manifest


def _keys(store: Path, rows: int) -> list[str]:
    """The key of each row. ValueError where the metadata does not give one to each."""
    keys: list[Any] = []
    for path in listed(store / "metadata", "*.parquet"):
        try:
            keys += pq.read_table(path, columns=["key"]).column("key").to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ValueError(
                f"{path} has no readable column of keys ({str(error).splitlines()[0]}); embed again"
            ) from error
    if len(keys) != rows or None in keys:
        raise ValueError(
            f"{store} has {rows} embeddings and {len(keys) - keys.count(None)} keys of images; embed again"
        )
    return [str(key) for key in keys]
