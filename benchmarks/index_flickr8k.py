"""Real embeddings: `--recipe ivf` tuned on texts and on images, and what the index costs the task's own Recall@K."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from index_data import K, recall
from index_measure import built, by_turns, chosen, goal, ours

from dualenc.embed.store import open_store
from dualenc.evaluate.metrics import recall_at_k
from dualenc.index import exact_search

TARGET = 0.95
KS = (1, 5, 10)


def measure(options: Any) -> dict[str, Any]:
    """The store of --store: its images are searched, half of them lend their texts to tuning, the other half's ask."""
    store = open_store(options.store)
    images, texts = store.side("image"), store.side("text")
    if not len(images) or not len(texts):
        raise ValueError(f"{options.store} has {len(images)} images and {len(texts)} texts; this needs both")
    gallery, asked = images.take(np.arange(len(images))), texts.take(np.arange(len(texts)))
    tunes = np.random.default_rng(options.seed).random(len(images)) < 0.5
    tuned, unseen = (np.flatnonzero(tunes[store.image_row] == part) for part in (True, False))
    queries, relevant = asked[unseen], store.image_row[unseen]
    best = exact_search(queries, gallery, K)[0]
    exact = recall_at_k(queries, gallery, [[row] for row in relevant], KS)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        makes = {"tuned on texts": asked[tuned], "tuned on images": None}  # None: rows of the gallery, held out
        made = {
            label: built(gallery, Path(folder) / label, recipe="ivf", recall=TARGET, queries=given)
            for label, given in makes.items()
        }
        made["exact"] = built(gallery, Path(folder) / "exact", recipe="flat")
        ways = {label: ours(index, queries[:1000]) for label, (index, _) in made.items()}
        times = by_turns(ways, "flickr8k", options.repeats)
        for label, (index, seconds) in made.items():
            found = index.search(queries, K)[0]
            results[label] = {
                "seconds": seconds,
                **chosen(index),
                "recall": recall(found, best),
                "task": {f"recall@{k}": float((found[:, :k] == relevant[:, None]).any(axis=1).mean()) for k in KS},
                **times[label],
            }
    return {
        "data": {"images": len(images), "texts": len(texts), "dim": store.dim, "encoder": encoder(store)},
        "k": K,
        "tuned_on": len(tuned),
        "measured_on": len(unseen),
        "exact_task": exact,
        "sides": results,
        "goals": goals(results, exact),
    }


def encoder(store: Any) -> str | None:
    """The name of the encoder, without where it lies."""
    return None if store.encoder is None else Path(store.encoder).name


def goals(results: dict[str, Any], exact: dict[str, float]) -> list[dict[str, Any]]:
    """What the issue asks for."""
    side = results["tuned on texts"]
    wanted = [goal(f"ANN recall@{K} on unseen texts, tuned on texts", side["recall"], least=TARGET)]
    for name, value in exact.items():
        wanted.append(goal(f"{name} of the task, points lost", 100 * abs(value - side["task"][name]), most=0.5))
    return wanted
