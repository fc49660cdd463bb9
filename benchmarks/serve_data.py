"""What the servers are measured on: a demo-like encoder, 100,000 rows, pictures, texts; made once in a scratch folder.

The encoder has configs/scenes.yaml's towers with random weights, which take the time that trained ones take. The rows lie
around its embeddings of captions, so that texts and vectors find something. Two indexes of the same rows: `plain` (lists,
metadata as img2dataset's: url and caption) for rates, and `pictures` (each row's picture on disk) for the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timing import progress

ROOT = Path(__file__).resolve().parents[1]
ROWS, CENTRES, QUERIES, PICTURES = 100_000, 2_000, 1_000, 300
SPREAD = 0.5  # of a row about its centre, in shares of the centres' own spread
SIDES = (480, 360)  # of a picture, pixels
NAME = "scenes"  # of the encoder's architecture, for a peer that wants one


class Assets(NamedTuple):
    """Where everything lies: folders and files under one scratch folder."""

    encoder: Path
    plain: Path
    pictures: Path
    queries: Path  # (Q, D) float32 unit rows that no index holds
    architecture: Path  # the encoder's, as open_clip's JSON


def assets(scratch: Path, rows: int = ROWS) -> Assets:
    """Everything under `scratch`, made where it is not there yet."""
    folder = scratch / f"rows_{rows}"
    found = Assets(*(folder / name for name in ("encoder", "plain", "pictures", "queries.npy", f"{NAME}.json")))
    if not (folder / "made.txt").exists():
        progress(f"making the encoder and the indexes in {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        _make(found, folder, rows)
        (folder / "made.txt").write_text(f"{rows} rows\n")
    return found


def texts(start: int, count: int) -> list[str]:
    """Captions `start` .. `start + count - 1` of an endless sequence in which none comes twice."""
    from dualenc.data.scene_words import COLOURS, OPPOSITE, SHAPES, SIZES

    words = [SIZES, COLOURS, SHAPES, tuple(OPPOSITE), SIZES, COLOURS, SHAPES]
    most = int(np.prod([len(some) for some in words]))
    found = []
    for number in range(start, start + count):
        again, i = divmod(number, most)
        i = i * 7919 % most  # neighbours in the sequence are unlike; 7919 is prime to `most`, so that each occurs
        said = []
        for some in words:
            i, which = divmod(i, len(some))
            said.append(some[which])
        size, colour, shape, relation, size2, colour2, shape2 = said
        more = f", picture {again}" if again else ""
        found.append(f"a {size} {colour} {shape} {relation} a {size2} {colour2} {shape2}{more}")
    return found


def _make(found: Assets, folder: Path, rows: int) -> None:
    import shutil

    import pyarrow as pa

    from dualenc.index import Index

    for path in (found.encoder, found.plain, found.pictures):
        shutil.rmtree(path, ignore_errors=True)  # of a run that was interrupted
    encoder = random_encoder(found)
    centres = encoder.embed_texts(texts(0, CENTRES))
    about = np.random.default_rng(0)
    spread = SPREAD * float(np.linalg.norm(centres - centres.mean(0), axis=1).mean()) / np.sqrt(encoder.dim)

    def around(count: int) -> np.ndarray:
        which = about.integers(0, CENTRES, count)
        some = centres[which] + spread * about.standard_normal((count, encoder.dim)).astype(np.float32)
        return some / np.linalg.norm(some, axis=1, keepdims=True)

    vectors = around(rows)
    np.save(found.queries, around(QUERIES), allow_pickle=False)
    captions = texts(0, rows)
    plain = {
        "key": [f"{i:09d}" for i in range(rows)],
        "url": [f"https://example.org/{i}.jpg" for i in range(rows)],
        "caption": captions,
    }
    Index.build(vectors, found.plain, metadata=pa.table(plain), recipe="ivf", encoder=encoder)
    files = draw(folder / "photos", PICTURES)
    placed = {
        **{name: plain[name] for name in ("key", "caption")},
        "image_path": [str(files[i % len(files)]) for i in range(rows)],
        "image_offset": [0] * rows,
        "image_size": [files[i % len(files)].stat().st_size for i in range(rows)],
        "colour": [caption.split()[2] for caption in captions],
        "likes": [i % 977 for i in range(rows)],
    }
    Index.build(vectors, found.pictures, metadata=pa.table(placed), recipe="flat", encoder=encoder)


def random_encoder(found: Assets) -> Any:
    """A DualEncoder of random towers as configs/scenes.yaml trains them, saved as a folder."""
    import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

    import torch
    import yaml

    from dualenc import DualEncoder
    from dualenc.model.folder import Loaded, make_tokenizer
    from dualenc.model.towers import build

    model = yaml.safe_load((ROOT / "configs" / "scenes.yaml").read_text(encoding="utf-8"))["model"]
    cfg = {"embed_dim": model["embed_dim"], "vision_cfg": model["vision"], "text_cfg": model["text"]}
    torch.manual_seed(0)
    loaded = Loaded(build(cfg, {}).eval(), make_tokenizer(cfg["text_cfg"]), cfg, {"steps": 0})
    DualEncoder(loaded, device="cpu").save(found.encoder)
    found.architecture.write_text(json.dumps(cfg))
    return DualEncoder.load(found.encoder, device="cpu")


def draw(folder: Path, count: int) -> list[Path]:
    """`count` JPEGs of about a photo's weight: soft shapes with a little grain."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(SIDES, Image.Resampling.BICUBIC)
        grain = rng.integers(-12, 13, (SIDES[1], SIDES[0], 1))
        picture = Image.fromarray(np.clip(np.asarray(soft).astype(np.int16) + grain, 0, 255).astype(np.uint8))
        files.append(folder / f"{number:04d}.jpg")
        picture.save(files[-1], "JPEG", quality=88)
    return files


def for_clip_retrieval(found: Assets, metadata: str) -> Path:
    """The same rows in the layout of clip-retrieval's `back`, as its indices_paths.json, whose path is returned.

    image.index is `plain`'s own FAISS file, which any FAISS opens; row i's metadata is the i-th row of the table.
    metadata: "parquet", its default, or "arrow", which its option use_arrow reads.
    """
    import shutil

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = found.plain.parent / f"clip_retrieval_{metadata}"
    paths = folder / "indices_paths.json"
    if not paths.exists():
        manifest = json.loads((found.plain / "manifest.json").read_text(encoding="utf-8"))
        (segment,) = manifest["segments"]
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        shutil.copy(found.plain / segment["files"]["index"]["name"], folder / "image.index")
        table = pq.read_table(found.plain / segment["files"]["metadata"]["name"]).select(["url", "caption"])
        file = folder / "metadata" / f"metadata_0000.{metadata}"
        if metadata == "parquet":
            pq.write_table(table, file)
        else:
            with pa.OSFile(str(file), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table)
        paths.write_text(json.dumps({"plain": str(folder)}))
    return paths
