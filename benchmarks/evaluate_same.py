"""The same numbers as CLIP_benchmark, scikit-learn and open_clip, on random cases without ties."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import evaluate_side
import numpy as np
from index_measure import goal
from timing import progress

from dualenc.evaluate.metrics import retrieval_metrics, zero_shot_metrics
from dualenc.evaluate.zeroshot.multilabel import average_precision_per_class
from dualenc.model.names import classifier_of

CASES, KS, MOST = 200, (1, 5, 10), 1e-6
Case = dict[str, np.ndarray]


def measure(options: Any) -> dict[str, Any]:
    """The largest difference over all cases of each metric."""
    rng = np.random.default_rng(options.seed)
    cases = {name: [make(rng) for _ in range(options.cases)] for name, make in MAKERS.items()}
    theirs, versions = asked(cases, options.peers, options.threads)
    worst = {
        name: max(difference(OURS[name](**case), theirs[f"{name}/{i}"]) for i, case in enumerate(some))
        for name, some in cases.items()
    }
    progress("same: open_clip's ranks")
    worst["paired"] = max(paired_difference(rng) for _ in range(options.cases))
    return {
        "cases": options.cases,
        "largest_difference": worst,
        "versions_of_peers": versions,
        "goals": [goal(f"{TITLES[name]}, largest difference", value, most=MOST) for name, value in worst.items()],
    }


def retrieval_case(rng: np.random.Generator) -> Case:
    """2 to 60 images, 1 to 6 captions each, in no order."""
    images = int(rng.integers(10, 61))
    row = np.repeat(np.arange(images), rng.integers(1, 7, images))
    rng.shuffle(row)
    dim = int(rng.integers(4, 65))
    sides = {"images": rng.standard_normal((images, dim)), "texts": rng.standard_normal((len(row), dim))}
    return {name: unit(rows).astype(np.float32) for name, rows in sides.items()} | {"image_row": row}


def classifier_case(rng: np.random.Generator) -> Case:
    """Prompt embeddings (C, T, D) as a text tower gives them, of any length."""
    shape = int(rng.integers(2, 30)), int(rng.integers(1, 12)), int(rng.integers(4, 65))
    return {"prompts": (rng.standard_normal(shape) * rng.uniform(0.1, 10, (*shape[:2], 1))).astype(np.float32)}


def precision_case(rng: np.random.Generator) -> Case:
    """Scores (N, C) and which classes each image holds; each class at least once."""
    rows, classes = int(rng.integers(5, 200)), int(rng.integers(2, 20))
    held = rng.random((rows, classes)) < rng.uniform(0.02, 0.5)
    held[rng.integers(rows, size=classes), np.arange(classes)] = True
    return {"scores": rng.standard_normal((rows, classes)).astype(np.float32), "positive": held}


def balanced_case(rng: np.random.Generator) -> Case:
    """Scores (N, C) and right classes, of which some do not occur."""
    rows, classes = int(rng.integers(5, 200)), int(rng.integers(2, 20))
    target = rng.choice(rng.permutation(classes)[: int(rng.integers(1, classes + 1))], rows)
    scores = rng.standard_normal((rows, classes)).astype(np.float32)
    scores[np.arange(rows), target] += 1
    return {"scores": scores, "target": target}


def our_recall(images: np.ndarray, texts: np.ndarray, image_row: np.ndarray) -> np.ndarray:
    """(2, K): from text to image, from image to text."""
    found = retrieval_metrics(images, texts, image_row, KS)
    return np.array([[found[f"{way}/recall@{k}"] for k in KS] for way in ("text_to_image", "image_to_text")])


def our_classifier(prompts: np.ndarray) -> np.ndarray:
    """(C, D)"""
    classes, templates, dim = prompts.shape
    flat = prompts.reshape(-1, dim)
    texts = [[str(c * templates + t) for t in range(templates)] for c in range(classes)]
    return classifier_of(lambda some: flat[[int(text) for text in some]], texts)


def our_balanced(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.array(zero_shot_metrics(scores, target)["mean_per_class_recall"])


MAKERS: dict[str, Callable[[np.random.Generator], Case]] = {
    "recall": retrieval_case,
    "classifier": classifier_case,
    "precision": precision_case,
    "balanced": balanced_case,
}
OURS: dict[str, Callable[..., np.ndarray]] = {
    "recall": our_recall,
    "classifier": our_classifier,
    "precision": average_precision_per_class,
    "balanced": our_balanced,
}
TITLES = {
    "recall": "CLIP_benchmark's recall_at_k, both ways",
    "classifier": "its zero_shot_classifier",
    "precision": "its average_precision_per_class",
    "balanced": "scikit-learn's balanced_accuracy_score",
    "paired": "open_clip's paired ranks: mean, median, R@1, 5, 10",
}


def asked(cases: dict[str, list[Case]], peers: Path, threads: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """What CLIP_benchmark says of each case, "METRIC/NUMBER", and the versions in its environment."""
    with tempfile.TemporaryDirectory() as name:
        given, out = Path(name) / "cases.npz", Path(name) / "found.npz"
        np.savez(given, **dict(named(cases)))
        evaluate_side.run(peers, "same", given, out, threads)
        with np.load(out, allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
    return arrays, json.loads(str(arrays.pop("versions")))


def named(cases: dict[str, list[Case]]) -> Iterator[tuple[str, np.ndarray]]:
    for metric, some in cases.items():
        for i, case in enumerate(some):
            for argument, array in case.items():
                yield f"{metric}/{i}/{argument}", array


def paired_difference(rng: np.random.Generator) -> float:
    """Between open_clip's metrics of pairs and ours. It rounds the median down, so ours is rounded for the comparison."""
    import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

    import torch
    from open_clip_train.train import get_clip_metrics

    count, dim = int(rng.integers(10, 200)), int(rng.integers(4, 65))
    images = unit(rng.standard_normal((count, dim)))
    texts = unit(images + rng.uniform(0, 3) * unit(rng.standard_normal((count, dim))))
    theirs = get_clip_metrics(torch.from_numpy(images), torch.from_numpy(texts), 1.0)
    ours = retrieval_metrics(images, texts, np.arange(count), KS)
    off = []
    for way in ("text_to_image", "image_to_text"):
        off += [abs(ours[f"{way}/recall@{k}"] - theirs[f"{way}_R@{k}"]) for k in KS]
        off.append(abs(ours[f"{way}/mean_rank"] - theirs[f"{way}_mean_rank"]))
        off.append(abs(np.floor(ours[f"{way}/median_rank"]) - theirs[f"{way}_median_rank"]))
    return float(max(off))


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest; infinite where shapes differ or one of them is NaN."""
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - theirs).max())


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
