"""Render README's results table and the configs' result lines from benchmarks/results: python benchmarks/table.py [--check]"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import goals

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
WAYS = {"text_to_image": "text→image", "image_to_text": "image→text"}
BENCHMARKS = Path(__file__).parent / "README.md"
DATA_BLOCK = re.compile(r"(<!-- data: .*? -->\n).*?(<!-- /data -->)", re.DOTALL)
INDEX_BLOCK = re.compile(r"(<!-- index: .*? -->\n).*?(<!-- /index -->)", re.DOTALL)
TRAIN_BLOCK = re.compile(r"(<!-- train: .*? -->\n).*?(<!-- /train -->)", re.DOTALL)
SERVE_BLOCK = re.compile(r"(<!-- serve: .*? -->\n).*?(<!-- /serve -->)", re.DOTALL)
EVALUATE_BLOCK = re.compile(r"(<!-- evaluate: .*? -->\n).*?(<!-- /evaluate -->)", re.DOTALL)
QUALITY_BLOCK = re.compile(r"(<!-- quality: .*? -->\n).*?(<!-- /quality -->)", re.DOTALL)
BLOCK = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)", re.DOTALL)
TRAINING = {
    "loss": "The loss alone",
    "train_step": "A training step",
    "train_accumulate": "Accumulation",
    "train_ranks": "Two ranks",
    "train_flickr8k": "What a sample buys",
    "train_profile": "One step, taken apart",
}
LINES = {
    "scenes": ("Scenes, built in", "1,000 held-out scenes"),
    "flickr8k": ("Flickr8k, from scratch", "1,000 photos × 5 captions"),
    "emoji": ("Emoji, other drawing style", "1,354 pictures"),
}


def table() -> str:
    """The table in Markdown; data sets without a record are left out."""
    head = [
        "| data | searched | text→image R@1 / 5 / 10 | image→text R@1 / 5 / 10 | also | trained on | whole line |",
        "|---|---|---|---|---|---|---|",
    ]
    rows, notes = [], []
    for name, (title, gallery) in LINES.items():
        path = RESULTS / f"line_{name}.json"
        if not path.exists():
            continue
        entry = json.loads(path.read_text())
        results = entry["results"]
        scores = results["scores"]
        minutes = results["total_seconds"] / 60
        cells = [title, gallery, recalls(scores, "text_to_image"), recalls(scores, "image_to_text"), extra(scores)]
        rows.append("| " + " | ".join([*cells, f"{results['samples_seen']:,} samples", f"{minutes:.1f} min"]) + " |")
        notes.append(f"`{entry['command']}` on {entry['date']}, {entry['machine']['cores']} cores")
    return (
        "\n".join([*head, *rows, "", f"Percent. Measured by {'; '.join(notes)}: benchmarks/results has the records."])
        + "\n"
    )


def recalls(scores: dict[str, Any], way: str) -> str:
    return " / ".join(f"{100 * scores[f'{way}/recall@{k}']:.1f}" for k in (1, 5, 10))


def extra(scores: dict[str, Any]) -> str:
    named = {
        "zeroshot/colour/acc1": "zero-shot colour",
        "zeroshot/shape/acc1": "shape",
        "composition/attribute/accuracy": "swapped attributes told apart",
        "composition/relation/accuracy": "swapped relations",
    }
    return ", ".join(f"{text} {100 * scores[key]:.1f}" for key, text in named.items() if key in scores)


def result_line(entry: dict[str, Any]) -> str:
    """The comment in a config that says what it costs and what it reached."""
    results = entry["results"]
    minutes, scores = results["seconds"]["fit"] / 60, results["scores"]
    ways = ", ".join(f"{title} R@1 / 5 / 10 {recalls(scores, way)}" for way, title in WAYS.items())
    return f"# Cost: {minutes:.1f} min on {entry['machine']['cores']} cores. Result: {ways} (percent, test)"


def data_table() -> str:
    """What benchmarks/data.py and benchmarks/decode.py measured, in Markdown."""
    from data import TARGETS

    rows = ["| | wanted | measured |", "|---|---|---|"]
    entry = json.loads((RESULTS / "data.json").read_text())
    for section, figure, target, text in TARGETS:
        value = entry["results"][section]
        for part in figure.split("/"):
            value = value[part]
        met = value >= target if target > 0 else value < -target
        shown, wanted = (f"{value:.2f}×", f"≥ {target:g}×") if target > 0 else (f"{value:+.1%}", f"< {-target:.0%}")
        rows.append(f"| {section}: {text} | {wanted} | {shown}{'' if met else ' **missed**'} |")
    notes = [f"`{entry['command']}` on {entry['date']}, {entry['machine']['processor']}"]
    if (RESULTS / "decode.json").exists():
        entry = json.loads((RESULTS / "decode.json").read_text())
        for way in ("text_to_image/recall@10", "image_to_text/recall@10"):
            both = [entry["results"][f"flickr8k_{decode}"] for decode in ("fast", "exact")]
            means = [f"{100 * b['mean'][way]:.2f} ± {100 * b['standard_deviation'][way]:.2f}" for b in both]
            title = WAYS[way.split("/")[0]]
            samples = f"{entry['results']['samples']:,} samples, {len(both[0]['runs'])} seeds"
            rows.append(
                f"| decode: Flickr8k {title} R@10 after {samples}, fast against exact | within noise | {' / '.join(means)} |"
            )
        equal = "the same weights" if entry["results"]["scenes"]["equal"] else "other weights"
        rows.append(f"| decode: the scenes, fast against exact | within noise | {equal} |")
        notes.append(f"`{entry['command']}` on {entry['date']}")
    return "\n".join([*rows, "", f"Measured by {'; '.join(notes)}."]) + "\n"


def index_tables(text: str) -> dict[Path, str]:
    """benchmarks/README.md, given what it says so far, and index/README.md, with what benchmarks/index.py measured."""
    import index_kinds

    import index

    record = json.loads((RESULTS / "index.json").read_text())
    recipes = index_kinds.README.read_text(encoding="utf-8")
    return {
        BENCHMARKS: INDEX_BLOCK.sub(lambda found: found[1] + goals.markdown(record, index.PARTS) + found[2], text),
        index_kinds.README: index_kinds.BLOCK.sub(lambda found: found[1] + index_kinds.table() + found[2], recipes),
    }


def train_tables() -> str:
    """What the benchmarks of training measured, each by its own table."""
    parts = []
    for name, title in TRAINING.items():
        if (RESULTS / f"{name}.json").exists():
            entry = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
            text = importlib.import_module(name).table(entry["results"])
            command = entry["command"].split(" --only")[0]  # which keeps what is recorded of the other sections
            parts.append(f"### {title}\n\n```\n{text}\n```\n\n`{command}`, {entry['date']}.\n")
    return "\n".join(parts)


def serve_table(text: str) -> str:
    """benchmarks/README.md, given what it says so far, with what benchmarks/serve.py measured."""
    import serve

    record = json.loads((RESULTS / "serve.json").read_text(encoding="utf-8"))
    return SERVE_BLOCK.sub(lambda found: found[1] + goals.markdown(record, serve.PARTS) + found[2], text)


def evaluate_table(text: str) -> str:
    """benchmarks/README.md, given what it says so far, with what benchmarks/evaluate.py measured."""
    import evaluate

    record = json.loads((RESULTS / "evaluate.json").read_text(encoding="utf-8"))
    return EVALUATE_BLOCK.sub(lambda found: found[1] + goals.markdown(record, evaluate.PARTS) + found[2], text)


def quality_table(text: str) -> str:
    """benchmarks/README.md, given what it says so far, with what benchmarks/data_quality.py measured."""
    record = json.loads((RESULTS / "data_quality.json").read_text(encoding="utf-8"))
    results = record["results"]
    lines = ["| captions dropped | of them wrong | of the wrong ones found |", "|---|---|---|"]
    lines += [
        f"| {rule}: {at['dropped']:,} | {100 * at['precision']:.1f} % | {100 * at['recall']:.1f} % |"
        for rule, at in results["detection"]["rules"].items()
    ]
    lines += ["", "| trained on | R@10, test | seeds |", "|---|---|---|"]
    for kind in ("noisy", "filtered", "clean"):
        one = results["training"][kind]
        spread = "" if one["standard_deviation"] is None else f" ± {100 * one['standard_deviation']:.2f}"
        lines.append(f"| {kind} | {100 * one['recall@10']:.2f}{spread} | {len(one['runs'])} |")
    lines += ["", f"Measured by `{record['command']}` on {record['date']}, {record['machine']['processor']}."]
    return QUALITY_BLOCK.sub(lambda found: found[1] + "\n".join(lines) + "\n" + found[2], text)


def rendered() -> dict[Path, str]:
    """What each file that shows results should say."""
    texts = {README: BLOCK.sub(lambda found: found[1] + table() + found[2], README.read_text(encoding="utf-8"))}
    if (RESULTS / "data.json").exists():
        text = BENCHMARKS.read_text(encoding="utf-8")
        texts[BENCHMARKS] = DATA_BLOCK.sub(lambda found: found[1] + data_table() + found[2], text)
    text = texts.get(BENCHMARKS) or BENCHMARKS.read_text(encoding="utf-8")
    texts[BENCHMARKS] = TRAIN_BLOCK.sub(lambda found: found[1] + train_tables() + found[2], text)
    if (RESULTS / "index.json").exists():
        texts |= index_tables(texts.get(BENCHMARKS) or BENCHMARKS.read_text(encoding="utf-8"))
    if (RESULTS / "serve.json").exists():
        texts[BENCHMARKS] = serve_table(texts[BENCHMARKS])
    for theme, table_of in (("evaluate", evaluate_table), ("data_quality", quality_table)):
        if (RESULTS / f"{theme}.json").exists():
            texts[BENCHMARKS] = table_of(texts[BENCHMARKS])
    for name in LINES:
        record, config = RESULTS / f"line_{name}.json", ROOT / "configs" / f"{name}.yaml"
        if record.exists():
            line = result_line(json.loads(record.read_text()))
            texts[config] = re.sub(r"^# Cost: .*$", line, config.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return texts


def main() -> int:
    """Write the files; with --check only say whether they are as they should be."""
    stale = [path for path, text in rendered().items() if path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        sys.stderr.writelines(f"{path.name} does not say what benchmarks/results says\n" for path in stale)
        return int(bool(stale))
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
