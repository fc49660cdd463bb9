"""`dualenc data filter`: the pairs that meet a condition, as new shards or a list of keys, and a report of what went."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from dualenc.beside import CLASS_NAMES, TEMPLATES, class_folder
from dualenc.data.sample import BadSample, Sample
from dualenc.data.shards import Shards, Source
from dualenc.data.write import SHARD_SAMPLES, shards
from dualenc.evaluate.quality.clauses import Condition, condition
from dualenc.evaluate.quality.score import distribution
from dualenc.files import refuse_existing, whole_file, whole_folder, write_json

NEEDED = {"key": pa.string(), "caption_number": pa.int32(), "caption": pa.string(), "score": pa.float32()}
SIGNATURES = {b"\x89PNG": "png", b"RIFF": "webp"}  # how a file begins; all else that a shard may hold is a JPEG


@dataclasses.dataclass
class FilterReport:
    """What was kept and what went. failed: how many pairs fail each clause of the condition, `alone`: that one only."""

    keep: str
    pairs: int
    kept_pairs: int
    failed: dict[str, dict[str, int]]
    distribution: dict[str, float | None]  # of the score, before/… and after/…
    samples: int = 0
    whole: int = 0  # samples that kept all of their captions
    fewer: int = 0  # … that lost some
    gone: int = 0  # … that lost all
    not_scored: int = 0  # … that the table does not name, and so went: they did not decode, or have no caption
    elsewhere: int = 0  # pairs of the table whose samples are not in these shards
    shards: list[str] = dataclasses.field(default_factory=list)
    class_files_left_out: list[str] = dataclasses.field(default_factory=list)  # folders whose class names differ, maybe

    def to_json(self) -> dict[str, Any]:
        """Plain types, as in `filter.json`."""
        return vars(self)

    def __str__(self) -> str:
        kept = self.whole + self.fewer
        lines = [f"kept {self.kept_pairs:,} of {self.pairs:,} pairs ({_percent(self.kept_pairs, self.pairs)})"]
        for clause, count in self.failed.items():
            lines.append(f"  {count['pairs']:>9,} fail {clause} ({count['alone']:,} of them nothing else)")
        lines.append(
            f"kept {kept:,} of {self.samples:,} samples: {self.whole:,} with all of their captions, {self.fewer:,} with "
            f"fewer; {self.gone:,} have none left, {self.not_scored:,} were not scored"
        )
        if self.elsewhere:
            lines.append(f"passed over {self.elsewhere:,} scores of samples that are not in this data")
        if self.class_files_left_out:
            lines.append(f"class names of several folders are left out: {', '.join(self.class_files_left_out)}")
        for side in ("before", "after"):
            values = [(name.rpartition("/")[2], v) for name, v in self.distribution.items() if name.startswith(side)]
            lines.append(f"score {side:<7}" + "".join(f"{n:>6} {'–' if v is None else f'{v:.3f}'}" for n, v in values))
        return "\n".join(lines)


def read_scores(paths: Sequence[str | Path]) -> pa.Table:
    """The tables of `dualenc data score`, one after the other. ValueError: what is no such table; a pair given twice."""
    named, tables = ", ".join(map(str, paths)), [_read(path) for path in paths]
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{named} do not go together ({_line(error)}); score the parts alike") from error
    if not table.num_rows:
        raise ValueError(f"{named}: not one row, so there is nothing to keep; score the data again")
    bad = ~np.isfinite(
        table["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    )  # DuckDB takes NaN for the largest
    if bad.any():
        key = table["key"][int(np.argmax(bad))].as_py()
        raise ValueError(f"{int(bad.sum())} scores are no numbers, such as that of {key!r}; score these data again")
    pairs = table.group_by(["key", "caption_number"]).aggregate([([], "count_all")])
    if pairs.num_rows < table.num_rows:
        twice = pairs["key"][int(np.argmax(pairs["count_all"].to_numpy()))].as_py()
        raise ValueError(f"{named}: {twice!r} is scored more than once; give one score to each pair")
    return table


def _read(path: str | Path) -> pa.Table:
    """One table. ValueError where it is damaged, or no table of scores."""
    try:
        table = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
        table.validate(full=True)  # bytes of a damaged file that are no text, too
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; make it with `dualenc data score --out {path}`") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} does not open as parquet ({_line(error)}); score again") from error
    if absent := [name for name in NEEDED if name not in table.column_names]:
        raise ValueError(f"{path} has no column {', '.join(absent)}; give a table that `dualenc data score` wrote")
    return _typed(path, table)


def _typed(path: str | Path, table: pa.Table) -> pa.Table:
    """The table with the needed columns of the types that `score_pairs` writes. ValueError where that cannot be."""
    for name, kind in NEEDED.items():
        try:
            typed = table[name].cast(kind)
        except pa.ArrowException as error:
            raise ValueError(
                f"{path}: column {name} is not {kind} ({_line(error)}); give a table that `dualenc data score` wrote"
            ) from error
        if name in ("key", "caption_number") and typed.null_count:
            raise ValueError(f"{path}: column {name} is empty in {typed.null_count:,} rows; score the data again")
        table = table.set_column(table.column_names.index(name), name, typed)
    return table


def _line(error: Exception) -> str:
    """The first line of what Arrow says."""
    return str(error).splitlines()[0]


def filter_pairs(
    source: Source,
    scores: pa.Table,
    keep: str,
    out: str | Path | None = None,
    keys: str | Path | None = None,
    shard_size: int = SHARD_SAMPLES,
    progress: bool = True,
) -> FilterReport:
    """Write the pairs for which `keep` is true as shards into the folder `out`, or their keys into the file `keys`.

    A sample keeps the captions that pass, and goes when none is left, or when `scores` does not name it. Images and
    KEY.json are copied as they are. Beside the shards stand filter.json, this report, and the class names where all of the
    source has the same file of them. `keys` is
    text, a key a line, or, with the suffix .parquet, (key, caption_number). Both appear whole or not at all.
    ValueError: a condition that cannot be used, or that nothing meets; scores of other data; both or neither of out and keys.
    """
    if (out is None) == (keys is None):
        raise ValueError("give either a folder for shards or a file for keys (--out or --keys), not both")
    target = Path(str(out if out is not None else keys))
    refuse_existing(target)
    found = condition(scores, keep)
    report = _report(scores, keep, found)
    if not report.kept_pairs:
        raise ValueError(
            f"--keep {keep!r}: none of {report.pairs:,} pairs meets it, so nothing would be left; loosen it"
        )
    chosen = _Chosen(source, scores, found.mask, report)
    if keys is not None:
        _write_keys(target, scores, found.mask, chosen, progress)
    else:
        _write_shards(target, source, chosen, report, shard_size, progress)
    return report


class _Chosen:
    """Which captions of each sample stay; counts what becomes of the samples."""

    def __init__(self, source: Source, scores: pa.Table, mask: npt.NDArray[np.bool_], report: FilterReport):
        self.source, self.report, self.mask = source, report, mask
        self._captions, self._numbers = scores["caption"], scores["caption_number"].to_numpy()
        self._rows: dict[str, list[int]] = {}
        for row, key in enumerate(scores["key"].to_pylist()):
            self._rows.setdefault(key, []).append(row)
        known = sum(len(self._rows.get(key, ())) for key in source.keys)
        if not known:
            raise ValueError(f"none of the scored samples is in {source.path}: these are scores of other data")
        report.elsewhere = len(mask) - known

    def captions(self, i: int, sample: Sample | None = None) -> list[str] | None:
        """The captions that sample i keeps, or None where it goes. ValueError where its captions are not those scored."""
        key, report = self.source.keys[i], self.report
        report.samples += 1
        if key not in self._rows:
            report.not_scored += 1
            return None
        try:
            there = (sample or self.source.sample(i, ("txt", "json"))).captions()
        except BadSample:
            there = []
        rows = sorted(self._rows[key], key=lambda row: self._numbers[row])
        for row in rows:
            number, caption = int(self._numbers[row]), self._captions[row].as_py()
            if not 0 <= number < len(there) or there[number] != caption:
                raise ValueError(
                    f"{key}: caption {number} is not the one that was scored, so the scores are of other data; score again"
                )
        kept = [self._captions[row].as_py() for row in rows if self.mask[row]]
        report.gone += not kept
        report.whole += bool(kept) and len(kept) == len(there)
        report.fewer += bool(kept) and len(kept) < len(there)
        return kept or None


def _report(scores: pa.Table, keep: str, found: Condition) -> FilterReport:
    value = scores["score"].to_numpy()
    spread = distribution(value, "before") | distribution(value[found.mask], "after")
    failing = np.sum([~mask for mask in found.clauses.values()], axis=0)
    failed = {
        clause: {"pairs": int((~mask).sum()), "alone": int((~mask & (failing == 1)).sum())}
        for clause, mask in found.clauses.items()
    }
    return FilterReport(keep, len(value), int(found.mask.sum()), failed, spread)


def _write_shards(
    out: Path, source: Source, chosen: _Chosen, report: FilterReport, shard_size: int, progress: bool
) -> None:
    if not isinstance(source, Shards):
        raise ValueError(f"{source.path} holds no shards; make some with `dualenc data pack`, or write --keys")
    hidden = None if progress else True
    with whole_folder(out) as folder:
        with shards(folder, shard_size) as writer:
            for i in tqdm(range(len(source)), desc="filtering", unit="img", disable=hidden):
                sample = source.sample(i)
                captions = chosen.captions(i, sample)
                if captions is not None:
                    writer.write(_copied(sample, captions))
        report.shards = sorted(path.name for path in folder.glob("*.tar"))
        homes = {class_folder(name) for name in source.names}
        named = sorted(home for home in homes if home is not None)
        if len(homes) > 1:
            report.class_files_left_out = [str(home) for home in named]
        for home, beside in itertools.product(named if len(homes) == 1 else [], (CLASS_NAMES, TEMPLATES)):
            if (home / beside).is_file():
                shutil.copyfile(home / beside, folder / beside)
        write_json(folder / "filter.json", report.to_json())


def _copied(sample: Sample, captions: list[str]) -> dict[str, Any]:
    """The sample as webdataset writes it: its own bytes, but for the captions where some are gone."""
    image = sample.parts["image"]
    suffix = next((suffix for start, suffix in SIGNATURES.items() if image.startswith(start)), "jpg")
    whole = captions == sample.captions()
    text = sample.parts["txt"] if whole else "\n".join(captions).encode()
    copied: dict[str, Any] = {"__key__": sample.key, suffix: image, "txt": text}
    return copied | {kind: sample.parts[kind] for kind in ("json", "cls") if kind in sample.parts}


def _write_keys(path: Path, scores: pa.Table, mask: npt.NDArray[np.bool_], chosen: _Chosen, progress: bool) -> None:
    source, hidden = chosen.source, None if progress else True
    numbers = tqdm(range(len(source)), desc="filtering", unit="img", disable=hidden)
    kept = [source.keys[i] for i in numbers if chosen.captions(i) is not None]
    with whole_file(path) as partial:
        if path.suffix == ".parquet":
            here = pc.is_in(scores["key"], value_set=pa.array(kept, pa.string())).to_numpy()
            pq.write_table(scores.select(["key", "caption_number"]).filter(pa.array(mask & here)), partial)
        else:
            partial.write_text("".join(f"{key}\n" for key in kept), encoding="utf-8")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f} %"
