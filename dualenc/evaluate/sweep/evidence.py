"""What a sweep knows already: finished rows and encoders that were loaded, as evidence on disk."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any, NamedTuple

from dualenc.evaluate.page.provenance import Checksum, settings_digest
from dualenc.evaluate.sweep.spec import Combination, Encoder
from dualenc.files import read_json, write_json

FORMAT = 1  # of the evidence: raised when a metric changes its meaning, so that old rows are measured again


class Facts(NamedTuple):
    """What a row says of its encoder."""

    fingerprint: str
    parameters: int
    samples_seen: int | None


class Outcome(NamedTuple):
    """A combination with its report, or with the reason why it has none."""

    combination: Combination
    facts: Facts | None
    data: Checksum | None
    settings: dict[str, Any]
    report: dict[str, Any] | None
    error: str | None = None
    measured: bool = False  # in this run, and not in an earlier one
    dropped: int | None = None  # samples that could not be embedded; None in evidence from before they were counted


def remembered(out: Path, encoder: Encoder, decode: str) -> Facts | None:
    """The facts of an encoder whose files have not changed since it was loaded."""
    there = _read(out / "encoders.json").get(_identity(encoder, decode))
    return Facts(*there) if isinstance(there, list) and len(there) == len(Facts._fields) else None


def remember(out: Path, encoder: Encoder, decode: str, model: Any) -> Facts:
    seen = model.provenance.get("samples_seen")
    parameters = sum(parameter.numel() for parameter in model.model.parameters())
    facts = Facts(model.fingerprint, parameters, seen if isinstance(seen, int) else None)
    write_json(out / "encoders.json", _read(out / "encoders.json") | {_identity(encoder, decode): list(facts)})
    return facts


def _identity(encoder: Encoder, decode: str) -> str:
    """Changes whenever the encoder might: its files' sizes and times, and its name and open_clip's version; of one on the
    Hugging Face hub the revision that is in the cache."""
    path, weights = Path(encoder.path), Path(encoder.path.partition(":")[2])  # "NAME:FILE" too
    files = sorted(path.rglob("*")) if path.is_dir() else [file for file in (path, weights) if file.is_file()]
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    where: Any = stats
    if encoder.path.startswith("hf-hub:"):
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(encoder.path.removeprefix("hf-hub:"), "open_clip_config.json")
        where = Path(config).parent.name if isinstance(config, str) else None
    return json.dumps([encoder.path, where, decode, importlib.metadata.version("open_clip_torch")])


def known(out: Path, wanted: list[Outcome], facts: Facts | None) -> list[Outcome]:
    """With the encoder's facts, and with reports where there is evidence of them."""
    return [_done(out, one._replace(facts=facts)) for one in wanted]


def _done(out: Path, one: Outcome) -> Outcome:
    if one.error is not None or one.facts is None:
        return one
    there = _read(_row(out, one))
    return one._replace(report=there["report"], dropped=there.get("dropped")) if there.get("key") == _key(one) else one


def keep(out: Path, one: Outcome, seconds: float) -> None:
    """Write the evidence of a finished row, whole or not at all."""
    known = {"key": _key(one), "report": one.report, "dropped": one.dropped, "seconds": round(seconds, 1)}
    write_json(_row(out, one), known)


def _key(one: Outcome) -> str:
    assert one.facts is not None and one.data is not None
    whole = {"format": FORMAT, "fingerprint": one.facts.fingerprint, "data": one.data.value, **one.settings}
    return settings_digest(whole)


def _row(out: Path, one: Outcome) -> Path:
    return out / "rows" / f"{_key(one)[:32]}.json"


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none, or a damaged one, which is then made again."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
