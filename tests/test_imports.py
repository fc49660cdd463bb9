"""DESIGN's "Who may import whom", over every import statement, those inside functions included."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.test_lazy import loaded_by

ROOT = Path(__file__).resolve().parents[1] / "dualenc"
MODULES = {path: path.relative_to(ROOT.parent).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))}
NEUTRAL = {"beside", "files", "lazy", "images", "pixels", "torchvision_ops"}  # top-level modules that everybody may use
METRICS, STORE = "dualenc.evaluate.metrics", "dualenc.embed.store"
ALLOWED = {
    "data": set(),
    "model": set(),
    "index": set(),
    "train": {"data", "model", "index", METRICS},
    "embed": {"data", "model"},
    "evaluate": {"data", "model", "embed", "index"},
    "serve": {"data", "model", "embed", "index"},
    "cli": {"data", "model", "index", "train", "embed", "evaluate", "serve"},
}
DOORS = {  # each heavy library has one door (torch, numpy and pyarrow are everybody's)
    "webdataset": {"data"},
    "open_clip": {"model"},
    "pytorch_lightning": {"train", "data", "embed"},
    "faiss": {"index"},
    "fastapi": {"serve"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
}
LIGHT = {
    "dualenc.index",
    STORE,
    "dualenc.embed.store_writer",
    "dualenc.embed.tables",
    METRICS,
    "dualenc.evaluate.ranks",
    "dualenc.evaluate.intervals",
    "dualenc.evaluate.pairs",
    "dualenc.evaluate.rank_intervals",
    "dualenc.evaluate.compare.significance",
    "dualenc.evaluate.top_hits",
}
FORBIDDEN = {"torch", "pytorch_lightning", "lightning", "open_clip", "torchvision", "timm", "torchmetrics"}


def imports(path: Path) -> list[tuple[str, int]]:
    """(module, line) of every import in a file, lazy names included; "from a import b" counts as a.b where that is a module."""
    found = []
    package = MODULES[path] if path.name == "__init__.py" else MODULES[path][:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            base = base if node.level else node.module
            for alias in node.names:
                below = ROOT.parent / Path(*base.split("."), alias.name)
                found.append(
                    (
                        f"{base}.{alias.name}" if below.with_suffix(".py").exists() or below.is_dir() else base,
                        node.lineno,
                    )
                )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("dualenc."):
            parts = node.value.split(".")
            if len(parts) > 2 and all(
                part.isidentifier() for part in parts
            ):  # lazy_names' homes, import_module's argument
                found.append((node.value, node.lineno))
    return found


def name(path: Path) -> str:
    parts = MODULES[path]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str | None:
    """The package or top-level module of ours that `module` belongs to; None where it is not ours."""
    parts = module.split(".")
    return None if parts[0] != "dualenc" else (parts[1] if len(parts) > 1 else "")


EDGES = [(path, target, line) for path in MODULES for target, line in imports(path)]
OURS = [(path, target, line) for path, target, line in EDGES if part(target) is not None]


def say(edges):
    return [f"{path.relative_to(ROOT.parent)}:{line} imports {target}" for path, target, line in edges]


def test_there_is_something_to_check():
    kinds = defaultdict(set)
    for path, target, _ in OURS:
        kinds[part(name(path))].add(part(target))
    assert len(MODULES) > 40 and len(OURS) > 100
    assert {"model", "embed", "index"} <= kinds["cli"] and "model" in kinds["train"] and "data" in kinds["embed"]
    assert {"data", "model"} <= kinds[""] | kinds["train"]


def test_packages_import_only_what_they_may():
    assert {part(name(p)) for p in MODULES} - {"", "__main__"} <= ALLOWED.keys() | NEUTRAL

    def wrong(path, target):
        mine, other = part(name(path)), part(target)
        if mine == other or other in NEUTRAL or other == "":
            return False
        if mine in ("", "__main__"):  # the public names, and `python -m dualenc`
            return other not in ({"model", "index", "lazy"} if mine == "" else {"cli"})
        if mine in NEUTRAL:
            return True
        return other not in ALLOWED[mine] and target not in ALLOWED[mine]

    assert say([edge for edge in OURS if wrong(*edge[:2])]) == []


def test_nothing_imports_the_command_line():
    importers = {part(name(path)) for path, target, _ in OURS if part(target) == "cli"}
    assert importers == {"cli", "__main__"}


def test_each_heavy_library_has_one_door():
    found = defaultdict(set)
    for path, target, _ in EDGES:
        library = target.split(".")[0]
        if library in DOORS:
            found[library].add(part(name(path)))
    assert {"open_clip", "pytorch_lightning", "faiss"} <= found.keys()
    assert {
        library: packages - DOORS[library] for library, packages in found.items() if packages - DOORS[library]
    } == {}


def test_lightning_has_one_name():
    assert say([edge for edge in EDGES if edge[1].split(".")[0] in ("lightning", "lightning_fabric")]) == []


def test_light_modules_never_name_torch():
    def light(path):
        return any(name(path) == module or name(path).startswith(f"{module}.") for module in LIGHT)

    assert sum(map(light, MODULES)) > 10
    assert say([edge for edge in EDGES if light(edge[0]) and edge[1].split(".")[0] in FORBIDDEN]) == []


def test_light_modules_never_load_torch():
    index = [name(path) for path in MODULES if part(name(path)) == "index"]
    assert len(index) > 5
    found = loaded_by("\n".join(f"import {module}" for module in [*sorted(LIGHT), *index]))
    assert "numpy" in found and not found & FORBIDDEN


def test_the_metrics_load_numpy_alone():
    found = loaded_by("from dualenc.evaluate import recall_at_k, zero_shot_metrics")
    assert "numpy" in found and not found & (FORBIDDEN | {"faiss", "pyarrow", "PIL", "pandas", "duckdb"})


def test_torchvision_is_cured_before_it_is_imported():
    """In every module of ours that imports a library which imports torchvision, the cure comes first."""
    needs = {"open_clip", "pytorch_lightning", "torchmetrics", "torchvision", "timm"}
    checked = 0
    for path in MODULES:
        lines = sorted((line, target) for target, line in imports(path))
        first = next((line for line, target in lines if target.split(".")[0] in needs), None)
        if first is not None:
            checked += 1
            cured = [line for line, target in lines if target == "dualenc.torchvision_ops" and line < first]
            assert cured, f"{path.relative_to(ROOT.parent)}:{first}"
    assert checked > 5


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_every_package_is_lazy(package):
    init = ROOT / package / "__init__.py"
    if package == "serve" and not init.exists():
        pytest.skip("dualenc.serve is not written yet")
    tree = ast.parse(init.read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    allowed = {"dualenc.lazy", "__future__"}
    if package == "cli":  # the program itself: standard library only
        import sys

        allowed |= set(sys.stdlib_module_names)
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert names <= allowed
