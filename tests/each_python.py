"""Run the import, command-line and contract tests under every Python from 3.10 to 3.13 that is found: `make test-python`.

The interpreter of .venv has everything. The others get an environment of their own without torch, which has no small
build for all of them; what needs no torch (the index, the store, the metrics, shards, packing, the command line) is tested.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
LIGHT = "numpy faiss-cpu pyarrow duckdb pillow webdataset tokenizers ftfy regex jinja2 matplotlib tqdm pyyaml pytest hypothesis"
WITHOUT_TORCH = [
    "tests/test_imports.py",
    "tests/test_files.py",
    "tests/test_lazy.py",
    "tests/cli/test_help.py",
    "tests/index",
    "tests/embed/test_store.py",
    "tests/evaluate/test_metrics.py",
    "tests/evaluate/test_ranks.py",
    "tests/data/test_tar.py",
    "tests/data/test_order.py",
]


def interpreter(version: str) -> str | None:
    """A working interpreter of that version, on the PATH or among pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for path in filter(None, found):
        ran = subprocess.run(
            [path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True, text=True
        )
        if ran.stdout.strip() == version:
            return path
    return None


def main() -> int:
    failed, tried = [], []
    for version in VERSIONS:
        own = version == f"{sys.version_info[0]}.{sys.version_info[1]}"
        python = sys.executable if own else interpreter(version)
        if python is None:
            print(f"Python {version}: not found", flush=True)
            continue
        print(f"Python {version}: {'everything' if own else 'without torch'}", flush=True)
        tests = [*WITHOUT_TORCH, "tests/contracts"] if own else WITHOUT_TORCH
        if not own:
            home = ROOT / "runs" / f"python{version}"
            subprocess.run([python, "-m", "venv", home], check=True)
            python = str(home / "bin" / "python")
            subprocess.run([python, "-m", "pip", "install", "-q", *LIGHT.split()], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-e", "."], check=True, cwd=ROOT)
        tried.append(version)
        if subprocess.run([python, "-m", "pytest", "-q", *tests], cwd=ROOT).returncode:
            failed.append(version)
    print(f"tried {', '.join(tried)}; failed: {', '.join(failed) or 'none'}")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
