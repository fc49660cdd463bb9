"""clip-retrieval's own `back` server in its own environment: ENV/bin/python clip_retrieval_peer.py [OPTIONS]

Runs `clip_back` as it is, on the folders that --indices names, with what would be downloaded left out (aesthetic
embeddings, multilingual text tower, safety model). It always loads a model: --architecture adds ours to open_clip's and
--weights are read into it. Listens on loopback alone instead of on every address.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

OPERATORS = "nms", "qnms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--indices", required=True, help="clip-retrieval's indices_paths.json")
    parser.add_argument(
        "--architecture", type=Path, required=True, help="an encoder's, NAME.json as open_clip has them"
    )
    parser.add_argument("--weights", required=True, help="its .safetensors")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--metadata", choices=("parquet", "arrow"), default="parquet", help="how it reads it")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(options.threads)  # before anything loads OpenMP
    import torch

    for name in OPERATORS:  # PyPI's torchvision is a CUDA build, whose operators do not load beside a CPU torch
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import open_clip
    from clip_retrieval import clip_back
    from flask import Flask

    open_clip.add_model_config(options.architecture)
    run = Flask.run
    Flask.run = lambda app, **named: run(app, **(named | {"host": "127.0.0.1"}))
    clip_back(
        indices_paths=options.indices,
        port=options.port,
        clip_model=f"open_clip:{options.architecture.stem}/{options.weights}",
        use_jit=False,
        enable_mclip_option=False,
        provide_aesthetic_embeddings=False,
        use_arrow=options.metadata == "arrow",
    )


if __name__ == "__main__":
    main()
