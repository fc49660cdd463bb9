"""CLIP_benchmark's own functions in their own environment: ENV/bin/python clip_benchmark_peer.py VERB IN OUT [--threads 2]

    same CASES.npz OUT.npz       its metrics, and scikit-learn's balanced accuracy, on every case
    retrieval FOLDER OUT.json    its `evaluate` on FOLDER's images.npy, texts.npy and image_row.npy: metrics, time, memory

Models, tokenizers and loaders are stubs that hand out rows which are there already: what is measured is the evaluation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH, KS = 64, (1, 5, 10)  # of its command line: --batch_size 64; its recall@k chunks are as large as that


class Rows:
    """A model and a tokenizer that know rows by their number, and texts by the number they are."""

    def __init__(self, images: Any, texts: Any):
        self.images, self.texts = images, texts

    def encode_image(self, rows: Any) -> Any:
        return self.images[rows]

    def encode_text(self, rows: Any) -> Any:
        return self.texts[rows]

    def tokenize(self, texts: list[str]) -> Any:
        import torch

        return torch.tensor([int(text) for text in texts])


def batches(image_row: Any) -> Iterator[tuple[Any, list[list[str]]]]:
    """(image numbers, each one's captions), as its loader gives images and lists of captions."""
    import numpy as np
    import torch

    order = np.argsort(image_row, kind="stable")
    own = np.split(order, np.flatnonzero(np.diff(image_row[order])) + 1)
    for start in range(0, len(own), BATCH):
        some = own[start : start + BATCH]
        yield torch.arange(start, start + len(some)), [[str(text) for text in texts] for texts in some]


def retrieval(folder: Path) -> dict[str, Any]:
    """Its `evaluate`, float32 (amp=False). Its copies of the embeddings, one of each side, are not counted as extra."""
    import numpy as np

    images, texts, row = (
        np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("images", "texts", "image_row")
    )
    import torch
    from clip_benchmark.metrics import zeroshot_retrieval
    from peak import watched

    stub = Rows(torch.from_numpy(images), torch.from_numpy(texts))
    loader = list(batches(row))
    found, cost = watched(
        lambda: zeroshot_retrieval.evaluate(stub, loader, stub.tokenize, "cpu", amp=False, recall_k_list=list(KS))
    )
    cost["extra_mib"] -= (images.nbytes + texts.nbytes) / 2**20
    return {"metrics": found, **cost}


def same(cases: Any) -> dict[str, Any]:
    """Every metric on every case: arrays named METRIC/NUMBER/ARRAY in, METRIC/NUMBER out."""
    import numpy as np
    import torch
    from clip_benchmark.metrics.zeroshot_classification import (
        average_precision_per_class,
        balanced_accuracy_score,
        zero_shot_classifier,
    )
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k

    def recall(images: Any, texts: Any, image_row: Any) -> Any:
        scores = torch.from_numpy(texts).double() @ torch.from_numpy(images).double().T
        positive = torch.zeros_like(scores, dtype=torch.bool)
        positive[torch.arange(len(scores)), torch.from_numpy(image_row)] = True
        both = ((scores, positive), (scores.T, positive.T))
        return np.array([[float((recall_at_k(*each, k) > 0).float().mean()) for k in KS] for each in both])

    def classifier(prompts: Any) -> Any:  # (C, T, D)
        classes, templates, dim = prompts.shape
        stub = Rows(None, torch.from_numpy(prompts.reshape(-1, dim)))
        own = {str(c): [str(c * templates + t) for t in range(templates)] for c in range(classes)}
        return zero_shot_classifier(stub, stub.tokenize, list(own), own, "cpu", amp=False).T.numpy()

    def precision(scores: Any, positive: Any) -> Any:
        return average_precision_per_class(torch.from_numpy(scores), torch.from_numpy(positive)).numpy()

    def balanced(scores: Any, target: Any) -> Any:
        return np.array(balanced_accuracy_score(target, scores.argmax(axis=1)))

    ways = {"recall": recall, "classifier": classifier, "precision": precision, "balanced": balanced}
    arrays: dict[tuple[str, str], dict[str, Any]] = {}
    for name in cases.files:
        metric, number, argument = name.split("/")
        arrays.setdefault((metric, number), {})[argument] = cases[name]
    return {f"{metric}/{number}": ways[metric](**given) for (metric, number), given in arrays.items()}


def versions() -> dict[str, str]:
    import importlib.metadata

    return {name: importlib.metadata.version(name) for name in ("clip-benchmark", "torch", "scikit-learn", "numpy")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("same", "retrieval"))
    parser.add_argument("given", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before torch loads
    import numpy as np

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bars
        if options.verb == "same":
            found = same(np.load(options.given, allow_pickle=False))
        else:
            found = retrieval(options.given) | {"versions": versions()}
    if options.verb == "same":
        np.savez(options.out, versions=json.dumps(versions()), **found)
    else:
        options.out.write_text(json.dumps(found), encoding="utf-8")
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main()
