"""Files that appear whole or not at all, checksums, and the configs and recipes that ship with the package."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
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

    What a killed process left half made goes first. Raises FileExistsError when `path` is there already and not empty:
    nothing of a user's is overwritten, unless `replace`, which keeps the old folder until the new one is complete.
    """
    path = Path(path)
    _clear(path)
    if not replace:
        refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    old = partial.with_suffix(".old")
    held = _hold(partial)
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
        if held is not None:
            os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder for as long as this process lives; None where another one has it, or where nothing can be locked."""
    try:
        import fcntl  # not on Windows

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return handle
    except OSError:
        os.close(handle)
        return None


def _clear(path: Path) -> None:
    """Remove what killed processes left of `path` in the making: folders that nobody holds. An old one whose process was
    killed before the new one stood in its place goes back there."""
    for suffix in (".old", ".tmp"):
        for left in path.parent.glob(f".{glob.escape(path.name)}.????????{suffix}"):
            with contextlib.suppress(OSError):  # its maker is done with it
                young = time.time() - left.stat().st_ctime < 2  # its maker may be about to hold it
                if young or (held := _hold(left)) is None:
                    continue
                try:
                    if suffix == ".old" and not path.exists():
                        os.replace(left, path)
                    shutil.rmtree(left, ignore_errors=True)
                finally:
                    os.close(held)


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
