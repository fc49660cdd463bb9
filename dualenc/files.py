"""Files that appear whole or not at all, checksums, and the configs and recipes that ship with the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` at the end, remove it on any error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        error.filename = str(path)  # the name that the user knows
        raise
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        partial.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide the result from everybody else
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` at the end, remove it on any error.

    Raises FileExistsError when `path` is there already and not empty: nothing of a user's is overwritten, unless
    `replace`, which keeps the old folder until the new one is complete.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = partial.with_suffix(".old")
    try:
        yield partial
        partial.chmod(0o777 & ~_umask())
        if replace and path.exists():
            os.replace(path, old)
        try:
            os.replace(partial, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            refuse_existing(path)  # another process was faster
            raise
    finally:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)


def refuse_existing(path: Path) -> None:
    """Raise FileExistsError when `path` is a file or a folder that holds anything."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not empty; name another folder, or remove it first")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as standard JSON (no NaN), whole or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; ValueError names the file when it is damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); restore it or make it again") from error


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


def shipped(kind: str, name: str, local: bool = True) -> Path:
    """The path of a config or recipe: `name` itself where such a file exists, else the one that ships with dualenc.

    kind: "configs" or "index". local=False: only what ships. FileNotFoundError lists the names that ship.
    """
    if local and Path(name).is_file():
        return Path(name)
    package = Path(__file__).parent
    homes = [package / "_shipped" / kind, package.parent / kind]  # in a wheel, in a checkout
    for home in homes:
        path = home / f"{Path(name).stem}.yaml"
        if path.exists() and name in (path.stem, path.name, f"{kind}/{path.name}"):
            return path
    names = sorted(path.stem for home in homes for path in home.glob("*.yaml"))
    raise FileNotFoundError(f"{name}: no such file, and no {kind} of that name ships with dualenc ({', '.join(names)})")
