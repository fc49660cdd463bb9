"""Zero-shot classifiers that are made once and kept: a file for each encoder and set of prompts.

80,000 prompts (1,000 classes, 80 templates) take a CPU minutes; what they make is 2 MB.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dualenc.evaluate.sections import TextEncoder
from dualenc.files import whole_file
from dualenc.model.names import Classes, class_prompts, classifier_of

log = logging.getLogger("dualenc")

VARIABLE = "DUALENC_CLASSIFIERS"  # the environment's: another folder, or OFF
OFF = "off"
LIMIT = 256 << 20  # bytes of all files together
_MADE_BY = "2"  # a new number when the same prompts come to mean another classifier
_ABANDONED = 3600.0  # seconds after which an unfinished file is nobody's
Rows = npt.NDArray[np.float32]


def cache_folder() -> Path | None:
    """Where classifiers are kept: $DUALENC_CLASSIFIERS, else dualenc/classifiers in $XDG_CACHE_HOME or ~/.cache.

    None, for not at all, where that variable says "off", or where there is no home.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen:
        return None if chosen.lower() == OFF else Path(chosen)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(caches):  # the XDG specification: a relative path there is to be ignored
        caches = os.path.expanduser("~/.cache")
    return Path(caches) / "dualenc" / "classifiers" if os.path.isabs(caches) else None


def classifier(
    encoder: TextEncoder,
    classes: Classes | Sequence[str],
    templates: Sequence[str] | None = None,
    cache: str | Path | None = "default",
) -> Rows:
    """One unit row per class, (C, D) float32, as `dualenc.model.names.classifier_of` makes it.

    templates: None for the names alone, or where the classes have prompts of their own. cache: a folder, None for none,
    "default" for `cache_folder()`. It is an aid: a damaged file is made anew, and where nothing can be written nothing is
    kept. An encoder without a fingerprint has no classifier kept. ValueError as `class_prompts`.
    """
    prompts = class_prompts(classes if isinstance(classes, Classes) else Classes(list(classes)), templates)
    folder = cache_folder() if cache == "default" else cache
    mark = getattr(encoder, "fingerprint", None)
    if folder is None or not mark:
        return classifier_of(_embedding(encoder), prompts)
    about = {"fingerprint": str(mark), "prompts": _digest(prompts), "made_by": _MADE_BY}
    path = Path(folder) / f"{_digest(about)[:40]}.safetensors"
    rows = read(path, about, len(prompts), encoder.dim)
    if rows is None:
        rows = classifier_of(_embedding(encoder), prompts)
        _keep(path, rows, about)
    return rows


def _embedding(encoder: Any) -> Callable[[list[str]], Rows]:
    """The encoder's `embed_texts`, or what does the same for prompts in less time."""
    if not hasattr(encoder, "text_features"):
        return encoder.embed_texts
    from dualenc.model.shared_prefix import embed_prompts  # lazily: it takes torch

    return functools.partial(embed_prompts, encoder)


def read(path: Path, about: dict[str, str], classes: int, dim: int) -> Rows | None:
    """The classifier of a file, (classes, dim) float32, or None where it is absent, damaged or another's."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            rows: Any = file.get_tensor("classifier")
        with contextlib.suppress(OSError):  # a shared cache may be another user's
            os.utime(path)  # what was used last stays longest
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError, ValueError) as error:
        log.info("%s cannot be used (%s): the classifier is made anew", path, error)
        return None
    sound = rows.shape == (classes, dim) and rows.dtype == np.float32 and said == about | {"sha256": _sum(rows)}
    if not sound:
        log.info("%s is damaged or another classifier's: it is made anew", path)
    return rows if sound else None


def _keep(path: Path, rows: Rows, about: dict[str, str]) -> None:
    from safetensors.numpy import save

    if rows.nbytes > LIMIT:
        return
    try:
        with whole_file(path) as partial:
            partial.write_bytes(save({"classifier": rows}, about | {"sha256": _sum(rows)}))
        _make_room(path)
    except OSError as error:
        log.info("the classifier is not kept: %s", error)


def _make_room(newest: Path) -> None:
    """Remove the files that were not used for the longest time, until all are LIMIT at most; and what killed runs left."""
    kept = []
    for path in newest.parent.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process was here
            stat = path.stat()
            if path.suffix == ".safetensors":
                kept.append((stat.st_mtime, stat.st_size, path))
            elif path.suffix == ".tmp" and time.time() - stat.st_mtime > _ABANDONED:
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= LIMIT:
            return
        if path != newest:
            path.unlink(missing_ok=True)
            total -= size


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sum(rows: Rows) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()
