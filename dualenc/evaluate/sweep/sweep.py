"""Encoders x data sets x templates: every combination measured once, whatever stops in between.

OUT/rows/*.json      a finished combination each, under a hash of the encoder's fingerprint, the data's checksum, and
                     the settings (classes, prompts, K): what changed is measured again, and nothing else
OUT/embedded/*       a store for each encoder and data set, which all templates share; may be removed at any time
OUT/encoders.json    fingerprints and sizes of the encoders that were loaded, so that a finished sweep loads none
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dualenc.evaluate.page.provenance import Checksum, checksum
from dualenc.evaluate.sweep.evidence import Outcome, keep, known, remember, remembered
from dualenc.evaluate.sweep.spec import Combination, Data, Encoder, Sweep, combinations

log = logging.getLogger("dualenc")


def run_sweep(sweep: Sweep, out: str | Path, decode: str = "exact", **compute: Any) -> list[Outcome]:
    """Measure what `out` has no evidence of, and return all combinations in the order of the file.

    Each encoder is loaded once and each (encoder, data set) embedded once; what fails is logged and left for the next
    run. decode, compute: as `DualEncoder.load` and `embed_source`.
    """
    out = Path(out)
    data = {entry: _checked(entry) for entry in sweep.data}
    found: list[Outcome] = []
    with tqdm(total=len(combinations(sweep)), desc="sweep", unit="row", disable=None) as bar:
        for encoder in sweep.encoders:
            some = [combination for combination in combinations(sweep) if combination.encoder == encoder]
            wanted = [_wanted(sweep, combination, data[combination.data]) for combination in some]
            for outcome in _of_encoder(encoder, wanted, out, decode, compute):
                if outcome.error is not None:
                    log.warning("%s: %s", label(outcome.combination), outcome.error)
                found.append(outcome)
                bar.update()
    return found


def label(combination: Combination) -> str:
    """A combination in one line."""
    return " · ".join(filter(None, (combination.encoder.name, combination.data.name, combination.templates)))


def _checked(data: Data) -> Checksum | str:
    """The data's checksum, or why it has none."""
    try:
        return checksum(data.path)
    except Exception as error:
        return _reason(error)


def _wanted(sweep: Sweep, combination: Combination, data: Checksum | str) -> Outcome:
    """What is to be measured: an outcome without a report, or with the error that is known already."""
    if isinstance(data, str):
        return Outcome(combination, None, None, {}, None, data)
    try:
        return Outcome(combination, None, data, _settings(sweep, combination), None)
    except Exception as error:
        return Outcome(combination, None, data, {}, None, _reason(error))


def _settings(sweep: Sweep, combination: Combination) -> dict[str, Any]:
    """Everything but encoder and data that decides the numbers, as plain values."""
    data = combination.data
    if data.task == "retrieval":
        return {"task": data.task, "ks": list(sweep.ks)}
    from dualenc.evaluate.zeroshot.prompts import read_prompts
    from dualenc.model.names import templates

    classes, prompts = read_prompts(data.path, data.classes, None, data.label, "name them with `classes:`")
    prompts = prompts if combination.templates is None else templates(combination.templates)
    return {
        "task": data.task,
        "classes": classes.names,
        "own": classes.prompts,
        "prompts": prompts,
        "label": data.label,
    }


def _of_encoder(
    encoder: Encoder, wanted: list[Outcome], out: Path, decode: str, compute: dict[str, Any]
) -> Iterator[Outcome]:
    """The outcomes of one encoder, loaded only where one of them is not there yet."""
    done = known(out, wanted, remembered(out, encoder, decode))
    if not _pending(done):
        yield from done
        return
    try:
        model = _load(encoder, decode)
        facts = remember(out, encoder, decode, model)
    except Exception as error:
        yield from _failed(done, error)
        return
    done = known(out, wanted, facts)
    for data in dict.fromkeys(one.combination.data for one in done):
        yield from _of_pair(model, data, [one for one in done if one.combination.data == data], out, compute)


def _of_pair(model: Any, data: Data, wanted: list[Outcome], out: Path, compute: dict[str, Any]) -> Iterator[Outcome]:
    """The outcomes of one encoder on one data set, embedded only where one of them is not there yet."""
    pending = _pending(wanted)
    try:
        embedded = _embedded(model, data, pending[0], out, compute) if pending else None
    except Exception as error:
        yield from _failed(wanted, error)
        return
    for one in wanted:
        try:
            yield _measured(model, embedded, one, out) if one in pending else one
        except Exception as error:
            yield from _failed([one], error)


def _pending(outcomes: list[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.report is None and one.error is None]


def _failed(outcomes: list[Outcome], error: Exception) -> list[Outcome]:
    """With `error` where there was neither report nor error yet."""
    log.debug("the traceback of what comes next", exc_info=error)
    return [one._replace(error=_reason(error)) if _pending([one]) else one for one in outcomes]


def _measured(model: Any, embedded: Any, one: Outcome, out: Path) -> Outcome:
    start = time.time()
    if one.settings["task"] == "retrieval":
        from dualenc.evaluate.retrieval import evaluate_retrieval

        if not len(embedded.texts):
            raise ValueError("no captions, so there is nothing to look for; retrieval needs pairs")
        report, _ = evaluate_retrieval(model, embedded, one.settings["ks"], examples=0)
    else:
        from dualenc.evaluate.zeroshot.zeroshot import evaluate_zeroshot
        from dualenc.model.names import Classes

        classes = Classes(one.settings["classes"], one.settings["own"])
        prompts = None if classes.prompts else one.settings["prompts"]
        found, _ = evaluate_zeroshot(model, embedded, classes, prompts, one.settings["label"], examples=0)
        report = {key.removeprefix("zeroshot/"): value for key, value in found.items()}
    one = one._replace(report=report, measured=True, dropped=sum(embedded.dropped.values()))
    keep(out, one, time.time() - start)
    return one


def _embedded(model: Any, data: Data, one: Outcome, out: Path, compute: dict[str, Any]) -> Any:
    """The data as this encoder embeds it, kept in a store."""
    from dualenc.data.shards import open_source
    from dualenc.embed.run import read_embedded, write_store
    from dualenc.embed.store import is_store

    if is_store(data.path):
        return read_embedded(data.path, model)
    assert one.data is not None
    store = out / "embedded" / f"{model.fingerprint[:16]}-{one.data.value[:16]}"
    if not (store / "manifest.json").is_file():
        write_store(model, open_source(data.path), store, dtype="float32", **compute)
    return read_embedded(store, model)


def _load(encoder: Encoder, decode: str) -> Any:
    from dualenc.model.encoder import DualEncoder

    return DualEncoder.load(encoder.path, decode=decode)


def _reason(error: Exception) -> str:
    """An error in one line; its kind too where it is none that we word ourselves."""
    text = " ".join(str(error).split())[:400]
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
