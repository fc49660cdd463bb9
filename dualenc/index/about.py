"""What an index is, and what would do it good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dualenc.index.generation import open_generation

FARTHER = 1.2  # added rows this much farther from their centroids than the built ones: the centroids no longer fit
GROWN = 0.1  # share of rows that came since the recall was measured, or that are gone, before it is worth a word


def info(folder: str | Path, verify: bool = False) -> dict[str, Any]:
    """What an index is, from its manifest (without the mean's numbers), and `advice`; verify: hash every file first."""
    folder = Path(folder)
    manifest = open_generation(folder, verify).manifest  # the store's files that re-ranking reads are checked as well
    files = [file for segment in manifest["segments"] for file in segment["files"].values()]
    return {
        "folder": str(folder),
        **manifest,
        "mean": "taken from the vectors" if manifest["mean"] is not None else None,
        "bytes_on_disk": sum(file["bytes"] for file in files),
        "advice": advice(manifest),
    }


def advice(manifest: dict[str, Any]) -> str | None:
    """What would do the index good now, in one line; None when nothing would."""
    words = [_drift(manifest), _stale(manifest), _fragments(manifest)]
    return "; ".join(word for word in words if word) or None


def _drift(manifest: dict[str, Any]) -> str | None:
    first, *later = [segment for segment in manifest["segments"] if segment["spread"] is not None] or [None]
    built = manifest.get("spread")
    if built is None or first is None:
        return None
    rows = sum(segment["rows"] for segment in [first, *later])
    now = sum(segment["spread"] * segment["rows"] for segment in [first, *later]) / max(rows, 1)
    far = [segment for segment in later if segment["spread"] > FARTHER * built]
    share = sum(segment["rows"] for segment in far) / max(rows, 1)
    if now > FARTHER * built or share > GROWN:
        return (
            f"rows that were added lie farther from the centroids than those of the build ({now / built:.2f} times on "
            "average over all): a rebuild pays"
        )
    return None


def _stale(manifest: dict[str, Any]) -> str | None:
    measured = manifest["ann_recall"].get("rows")
    if manifest["results"] == "approximate" and measured and abs(manifest["rows"] - measured) > GROWN * measured:
        return f"recall was measured at {measured:,} rows, there are {manifest['rows']:,}: `dualenc index tune` measures again"
    return None


def _fragments(manifest: dict[str, Any]) -> str | None:
    gone = manifest["tombstones"]
    if gone > GROWN * max(manifest["rows"], 1):
        return f"{gone:,} removed rows still take their bytes: `dualenc index compact` frees them"
    return None
