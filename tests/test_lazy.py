"""Lazy packages: names load on first use."""

import subprocess
import sys
import types

import pytest

import dualenc
from dualenc.lazy import lazy_names

HEAVY = ("torch", "faiss", "numpy", "pyarrow", "open_clip", "pytorch_lightning", "PIL", "duckdb")
PACKAGES = ("", ".data", ".model", ".train", ".embed", ".index", ".evaluate", ".serve", ".cli")


def loaded_by(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter has after `code`."""
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_packages_loads_nothing_heavy():
    import importlib.util

    there = [f"dualenc{p}" for p in PACKAGES if importlib.util.find_spec(f"dualenc{p}") is not None]
    assert len(there) >= 7
    found = loaded_by("\n".join(f"import {name}" for name in there))
    assert "dualenc" in found and not found & set(HEAVY)


def test_public_names_load_on_use(monkeypatch):
    package = types.ModuleType("some_package")
    monkeypatch.setitem(sys.modules, "some_package", package)
    load, names = lazy_names("some_package", {"loads": "json", "b64encode": "base64"})
    import json

    assert names == ["b64encode", "loads"] and load("loads") is json.loads
    assert package.loads is json.loads  # found there from now on
    with pytest.raises(AttributeError, match=r"'some_package' has no attribute 'nothing'.*b64encode, loads"):
        load("nothing")


def test_the_packages_public_names():
    assert dualenc.__all__ == ["DualEncoder", "Index"]
    pytest.importorskip("torch")
    from dualenc import DualEncoder
    from dualenc.model.encoder import DualEncoder as there

    assert DualEncoder is there
    with pytest.raises(AttributeError, match="DualEncoder, Index"):
        _ = dualenc.Nothing
    assert dualenc.__version__.count(".") == 2


@pytest.mark.parametrize("package", ["data", "model", "embed", "index", "evaluate"])
def test_every_public_name_exists(package):
    import importlib
    import importlib.util

    if package not in ("index", "evaluate"):
        pytest.importorskip("torch")
    module = importlib.import_module(f"dualenc.{package}")
    assert module.__all__
    for name in module.__all__:
        # a module of that name would take its place, once it is imported
        assert importlib.util.find_spec(f"dualenc.{package}.{name}") is None, name
        value = getattr(module, name)
        assert value.__name__ == name and value.__module__.startswith(f"dualenc.{package}."), name
