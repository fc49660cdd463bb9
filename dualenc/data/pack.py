"""Images with captions, however messy, into shards: what is not used is counted, listed and explained."""

from __future__ import annotations

import collections
import dataclasses
import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualenc.data.item_files import Unusable, free_key, image_path, shown
from dualenc.data.items import Dropped, Item, folder_items
from dualenc.data.rows import kind_of
from dualenc.data.tables import choose_columns, survey, table_items
from dualenc.data.write import SHARD_BYTES, SHARD_SAMPLES, encode_sample, shards
from dualenc.files import refuse_existing, whole_folder, write_json
from dualenc.images import MAX_PIXELS, BadImage, Decoded, decode_fully

KEPT = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}  # formats whose bytes go into a shard as they are
LOSSY = ("JPEG", "MPO", "AVIF", "JPEG2000")  # what is repaired of these becomes JPEG again, all else PNG
JPEG_QUALITY = 95
SHOWN = 3  # names per reason in the printed report


@dataclasses.dataclass
class PackReport:
    """What became of every image. `dropped` and `repaired`: names by reason; `left_out`: rows that `where` excludes."""

    source: str
    written: int = 0
    captions: int = 0
    left_out: int = 0
    shards: list[str] = dataclasses.field(default_factory=list)
    classes: list[str] | None = None
    dropped: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    repaired: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def to_json(self) -> dict[str, Any]:
        """Plain types, as in `pack.json`."""
        return vars(self) | {"dropped": dict(self.dropped), "repaired": dict(self.repaired)}

    def __str__(self) -> str:
        lines = [f"{self.written} images with {self.captions} captions in {len(self.shards)} shards"]
        if self.left_out:
            lines.append(f"{self.left_out} rows left out by the condition")
        for title, reasons in (("dropped", self.dropped), ("repaired", self.repaired)):
            for reason, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
                more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                lines.append(f"{title} {len(names)}: {reason} ({', '.join(names[:SHOWN])}{more})")
        return "\n".join(lines)


def pack(
    source: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    image_column: str | None = None,
    caption_columns: Sequence[str] | None = None,
    key_column: str | None = None,
    class_column: str | None = None,
    images: str | Path | None = None,
    where: Sequence[str] = (),
    shard_size: int = SHARD_SAMPLES,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> PackReport:
    """Write the images of `source` with their captions as `out/000000.tar`, ..., and `out/pack.json`, the report.

    source: a folder of images with captions in NAME.txt beside them, or a CSV, TSV, JSONL or parquet table with a
    column of image paths, relative to the folder `images` (default: the table's own). Columns that are not named are found by
    their usual names; a caption column may hold lists, and rows with one image are captions of one sample. Without a
    `key_column` an image's path is its key. `class_column`: numbers, or names, listed in `out/classnames.txt`; captions
    may then be missing. where: "COLUMN=VALUE", all of which a row must meet. Other columns become metadata.
    Files that any decoder reads alike keep their bytes; others are written anew, as JPEG or PNG.
    Raises ValueError when nothing at all can be packed, and for a column that does not exist.
    """
    source, out = Path(source), Path(out)
    kind = kind_of(source, format)
    refuse_existing(out)
    root = Path(os.path.abspath(images if images is not None else source if kind == "folder" else source.parent))
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder, so no image can be found; name the folder of images")
    report = PackReport(str(source))
    items, total = _items(source, kind, (image_column, caption_columns, key_column, class_column, where), report)
    with whole_folder(out) as folder:
        taken: set[str] = set()
        with shards(folder, shard_size, shard_bytes) as writer:
            for item in tqdm(
                items, total=total, desc=f"packing {source.name}", unit="img", disable=None if progress else True
            ):
                sample = _sample(item, root, taken, max_pixels, report)
                if sample is not None:
                    writer.write(sample)
                    report.written += 1
        if not report.written:
            raise ValueError(_nothing(report))
        if report.classes is not None:
            (folder / "classnames.txt").write_text("\n".join(report.classes) + "\n", encoding="utf-8")
        report.shards = sorted(path.name for path in folder.glob("*.tar"))
        write_json(folder / "pack.json", report.to_json())
    return report


def _items(
    source: Path, kind: str, columns: tuple[Any, ...], report: PackReport
) -> tuple[Iterator[Item | Dropped | None], int | None]:
    """What to pack, and how many rows there will be where that is known."""
    if kind == "folder":
        if any(columns):
            raise ValueError(f"{source} is a folder, which has no columns; name a table, or leave the columns out")
        return folder_items(source), None
    chosen = choose_columns(source, kind, *columns)
    known = survey(source, kind, chosen)
    if known.rows and not known.chosen and chosen.where:
        seen = "; ".join(f"{column}: {', '.join(values) or 'nothing'}" for column, values in known.seen.items())
        asked = ", ".join(f"{column}={value}" for column, value in chosen.where)
        raise ValueError(f"{source}: no row has {asked}, so nothing can be packed; what there is ({seen})")
    report.classes = known.classes
    return table_items(source, kind, chosen, known), known.rows - known.chosen + known.images


def _sample(
    item: Item | Dropped | None, root: Path, taken: set[str], max_pixels: int, report: PackReport
) -> dict[str, Any] | None:
    """The sample to write, or None, with the report saying why."""
    if item is None:
        report.left_out += 1
        return None
    if isinstance(item, Dropped):
        report.dropped[item.reason].append(shown(item.name))
        return None
    try:
        path = image_path(item.image, root)
        decoded = decode_fully(data := _bytes(path), max_pixels)
        key, renamed = free_key(item, path.relative_to(root) if item.key is None else None, taken)
    except (BadImage, Unusable) as error:
        report.dropped[str(error)].append(shown(item.image))
        return None
    suffix, image, converted = _image(data, decoded)
    for note in (*item.notes, *converted, *renamed):
        report.repaired[note].append(shown(item.image))
    report.captions += len(item.captions)
    return encode_sample(key, image, suffix, item.captions, item.metadata, item.label)


def _bytes(path: Path) -> bytes:
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise Unusable("path is a folder")
        if not stat.S_ISREG(mode):
            raise Unusable("path is not an ordinary file")  # reading a pipe would wait for ever
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise Unusable("missing file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, Unusable):
            raise
        raise Unusable("file cannot be read") from None


def _image(data: bytes, decoded: Decoded) -> tuple[str, bytes, list[str]]:
    """Suffix, bytes, and the reasons why they are not the file's own."""
    if not decoded.repairs and decoded.format in KEPT:
        return KEPT[decoded.format], data, []
    reasons = list(decoded.repairs) or [f"{decoded.format} file"]
    buffer = io.BytesIO()
    if decoded.format in LOSSY:
        decoded.image.save(buffer, "JPEG", quality=JPEG_QUALITY)
        return "jpg", buffer.getvalue(), reasons
    decoded.image.save(buffer, "PNG")
    return "png", buffer.getvalue(), reasons


def _nothing(report: PackReport) -> str:
    reasons = ", ".join(f"{len(names)} {reason} (e.g. {names[0]})" for reason, names in report.dropped.items())
    return (
        f"{report.source}: nothing could be packed: {reasons or 'it holds no images'}; correct the source and try again"
    )
