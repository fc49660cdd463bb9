"""A sweep's outcomes as one tidy table, a row each, in results.csv and results.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dualenc.evaluate.sweep.evidence import Outcome
from dualenc.files import whole_file

KNOWN = pa.schema(
    {
        "encoder": pa.string(),
        "fingerprint": pa.string(),
        "parameters": pa.int64(),
        "samples_seen": pa.int64(),
        "data": pa.string(),
        "data_sha256": pa.string(),
        "samples": pa.int64(),
        "dropped": pa.int64(),
        "task": pa.string(),
        "templates": pa.string(),
        "prompts": pa.int64(),
    }
)  # what stands in every row; after it the metrics, and last the reason where there are none
_LEFT_OUT = ("recall/", "by/")  # of a class, of a group: they are in rows/*.json


def table(outcomes: Sequence[Outcome]) -> pa.Table:
    """One row per combination: KNOWN, every metric with its `/low` and `/high`, `error`."""
    rows = [row(outcome) for outcome in outcomes]
    found = [item for outcome in outcomes for item in metrics_of(outcome).items()]
    metrics = list(dict.fromkeys(key for key, value in found if value is not None))
    columns = {field.name: pa.array([one[field.name] for one in rows], field.type) for field in KNOWN}
    columns |= {key: pa.array([one.get(key) for one in rows], _type(rows, key)) for key in metrics}
    return pa.table(columns | {"error": pa.array([one["error"] for one in rows], pa.string())})


def write_table(outcomes: Sequence[Outcome], out: str | Path) -> None:
    """Write `out`/results.csv and `out`/results.parquet."""
    made = table(outcomes)
    with whole_file(Path(out) / "results.csv") as partial:
        pa.csv.write_csv(made, partial)
    with whole_file(Path(out) / "results.parquet") as partial:
        pa.parquet.write_table(made, partial)


def row(outcome: Outcome) -> dict[str, Any]:
    """A combination with its metrics, flat; what is not known is None."""
    combination, facts, data = outcome.combination, outcome.facts, outcome.data
    prompts = outcome.settings.get("prompts")
    return {
        "encoder": combination.encoder.name,
        "fingerprint": facts and facts.fingerprint,
        "parameters": facts and facts.parameters,
        "samples_seen": combination.encoder.samples_seen or (facts and facts.samples_seen),
        "data": combination.data.name,
        "data_sha256": data and data.value,
        "samples": data and data.samples,
        "dropped": outcome.dropped,
        "task": combination.data.task,
        "templates": templates_of(outcome),
        "prompts": prompts and len(prompts),
        **metrics_of(outcome),
        "error": outcome.error,
    }


def templates_of(outcome: Outcome) -> str | None:
    """The templates' name; "own" are those beside the data, or prompts that the classes bring. None for retrieval."""
    combination = outcome.combination
    return None if combination.data.task == "retrieval" else combination.templates or "own"


def metrics_of(outcome: Outcome) -> dict[str, float | int | None]:
    """The numbers of a report, with their intervals, less those of single classes and groups and less chance."""
    report = outcome.report or {}
    return {
        key: value
        for key, value in report.items()
        if not isinstance(value, str)
        and key not in KNOWN.names  # zero-shot counts its "templates", which the row has as "prompts"
        and not key.startswith(_LEFT_OUT)
        and not key.endswith("/chance")
    }


def _type(rows: Sequence[dict[str, Any]], key: str) -> pa.DataType:
    values = [one.get(key) for one in rows]
    return pa.int64() if all(value is None or isinstance(value, int) for value in values) else pa.float64()
