"""An index's manifest: what it is, whose it is, how good it was measured to be, and the checksums of its files."""

from __future__ import annotations

import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa

from dualenc import __version__
from dualenc.files import read_json, sha256, whole_file
from dualenc.index.shape import misfit

NAME, FORMAT, VERSION = "manifest.json", "dualenc-index", 2


def new_head(
    mean: np.ndarray | None,
    side: str,
    dim: int,
    ids: np.ndarray,
    encoder: tuple[str | None, str | None],
    source: str | None,
) -> dict[str, Any]:
    """What the manifest of a new index says of what it is and whose. encoder: (fingerprint, name or path)."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "generation": 1,
        "next_segment": 2,
        "metric": "cosine",
        "side": side,
        "dim": dim,
        "next_id": int(ids.max()) + 1 if len(ids) else 0,
        "fingerprint": encoder[0],
        "encoder": encoder[1],
        "source": source,
        "mean": None if mean is None else [float(value) for value in mean],
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an index folder. FileNotFoundError or ValueError says why it is none, or a damaged one."""
    path = folder / NAME
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such index; build it with `dualenc index build STORE {folder}`")
    if not path.exists():
        raise FileNotFoundError(f"{folder} is not an index: no {NAME} in it; `dualenc index build STORE OUT` makes one")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{folder} is not an index: its {NAME} is another program's or a store's")
    if manifest.get("version") != VERSION:
        theirs = manifest.get("version")
        cure = "build the index again" if isinstance(theirs, int) and theirs < VERSION else "update dualenc"
        raise ValueError(f"{path}: index version {theirs}, this dualenc reads {VERSION}; {cure}")
    try:
        whole = manifest.pop("checksum", None) == _checksum(manifest)
    except ValueError:  # a number that is none
        whole = False
    if not whole:
        raise ValueError(f"{path} is damaged (its checksum does not fit); restore it or build the index again")
    if wrong := misfit(manifest):
        raise ValueError(f"{path} is damaged ({wrong} is not what it should be); restore it or build the index again")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Replace the manifest by one atomic rename: before it the folder is the old index, after it the new one."""
    with whole_file(folder / NAME) as partial:
        partial.write_text(_text({**manifest, "checksum": _checksum(manifest)}), encoding="utf-8")


def check_files(folder: Path, manifest: dict[str, Any], verify: bool = False) -> None:
    """Every file of the manifest is there, as long as it was; verify: and hashes to what it did."""
    for entry in (file for segment in manifest["segments"] for file in segment["files"].values()):
        path = folder / Path(entry["name"]).name  # a name from a file that anybody may have written: never a way out
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing from the index; restore it or build the index again")
        if path.stat().st_size != entry["bytes"]:
            raise ValueError(f"{path} has {path.stat().st_size} bytes, not {entry['bytes']}; restore it or build again")
        if verify and sha256(path) != entry["sha256"]:
            raise ValueError(f"{path} is altered (its SHA-256 does not fit); restore it or build the index again")
    if verify:
        stored = (folder / NAME).read_text(encoding="utf-8")
        if stored != _text({**manifest, "checksum": _checksum(manifest)}):
            raise ValueError(f"{folder / NAME} is altered; restore it or build the index again")


def file_entry(path: Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file, as the manifest holds them."""
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}


def versions() -> dict[str, str]:
    """What wrote the index."""
    names = {"dualenc": __version__, "faiss": faiss.__version__, "numpy": np.__version__, "pyarrow": pa.__version__}
    return {**names, "python": platform.python_version()}


def mean_of(manifest: dict[str, Any]) -> np.ndarray | None:
    """The (D,) float32 mean that was taken from the vectors; None for kinds that are not centred."""
    return None if manifest["mean"] is None else np.array(manifest["mean"], np.float32)


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _checksum(manifest: dict[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
