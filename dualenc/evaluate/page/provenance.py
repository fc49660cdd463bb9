"""What was run to get an evaluation's numbers: command, encoders, data with a checksum, versions, machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from dualenc.data.sample import KINDS
from dualenc.data.shards import Source, open_source
from dualenc.embed.store import is_store, open_store
from dualenc.files import sha256

MOST_READ = 20_000  # samples whose bytes enter a checksum: all of a large set would be long to read


class Checksum(NamedTuple):
    """A SHA-256 of a data set, how many samples it has, and in words what the checksum covers."""

    value: str
    samples: int
    covers: str


def provenance(
    command: Sequence[str], encoder: Any, data: str | Path | Sequence[str | Path], **more: Any
) -> dict[str, Any]:
    """The `provenance` of `report.write_report`.

    command: the program's arguments, `["dualenc", *sys.argv[1:]]`. encoder: a DualEncoder, or a list of them: whatever
    has `path` and `fingerprint`. data: what `--data` takes, or several; the same one is read once. more: added as it is.
    """
    encoders: list[Any] = list(encoder) if isinstance(encoder, list | tuple) else [encoder]
    names = [str(name) for name in ([data] if isinstance(data, str | Path) else data)]
    made: dict[str, Any] = {"command": shlex.join(command)}
    for number, one in enumerate(encoders):
        end = _number(number)
        made |= {f"encoder{end}": str(one.path), f"fingerprint{end}": one.fingerprint}
    for number, name in enumerate(dict.fromkeys(names)):
        found, end = checksum(name), _number(number)
        made |= {
            f"data{end}": name,
            f"data{end}/samples": found.samples,
            f"data{end}/sha256": found.value,
            f"data{end}/sha256 covers": found.covers,
        }
    return made | more | {"date": _now(), "machine": machine(), "versions": versions()}


def checksum(data: str | Path) -> Checksum:
    """A checksum of shards, a folder of images, or a store: equal data give equal checksums on every machine.

    Of a store: what its manifest says of its files (of their bytes, where clip-retrieval wrote none). Of samples: their
    keys, the sizes of what they have, and their bytes (image, captions, metadata, class), in their order, wherever they
    lie and however they are packed; above MOST_READ samples, the bytes of every second, third, … one. Errors as `open_source`.
    """
    if is_store(data):
        return store_checksum(Path(data))
    return source_checksum(open_source(data))


def source_checksum(source: Source, most: int = MOST_READ) -> Checksum:
    """`checksum` of samples that are open already."""
    digest, every = hashlib.sha256(), max(1, -(-len(source) // most))
    for i, key in enumerate(source.keys):
        places = {kind: source.location(i, kind) for kind in KINDS}
        digest.update(_line([key, {kind: place[2] for kind, place in places.items() if place is not None}]))
        if i % every == 0:
            try:
                parts = source.sample(i).parts
            except OSError:  # counted and named by whoever embeds it
                parts = {}
            for kind, part in sorted(parts.items()):
                digest.update(_line([kind, len(part)]))
                digest.update(part)
    which = "all samples" if every == 1 else f"one sample in {every}"
    return Checksum(digest.hexdigest(), len(source), f"keys, sizes, and the bytes of {which}")


def store_checksum(folder: Path) -> Checksum:
    """`checksum` of a store."""
    store = open_store(folder)
    files = {name: there["sha256"] for part in store.manifest.get("parts", []) for name, there in part["files"].items()}
    covers = "the store's files, as its manifest has them"
    if not files:
        paths = sorted(path for path in folder.glob("*/*") if path.suffix in (".npy", ".parquet"))
        files, covers = {path.relative_to(folder).as_posix(): sha256(path) for path in paths}, "the store's files"
    return Checksum(hashlib.sha256(_line(sorted(files.items()))).hexdigest(), store.rows, covers)


def versions() -> dict[str, str]:
    """The versions that decide what an encoder computes and how it is scored."""
    from dualenc.model.folder import versions as of_encoder  # imports torch, which is there wherever an encoder is

    return {**of_encoder(), "python": platform.python_version()}


def machine() -> str:
    """The machine in a few words, such as "Linux x86_64, 2 CPUs, NVIDIA H200"."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    some = [f"{gpus.count(name)} × {name}" if gpus.count(name) > 1 else name for name in dict.fromkeys(gpus)]
    return ", ".join([f"{platform.system()} {platform.machine()}", f"{os.cpu_count()} CPUs", *some])


def settings_digest(settings: Mapping[str, Any]) -> str:
    """A SHA-256 of plain values: equal for equal settings, in whatever order they stand."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _number(place: int) -> str:
    return f" {place + 1}" if place else ""


def _line(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
