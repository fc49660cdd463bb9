"""An index of pictures that lie in a shard, and a service that stands in for the real one where only they matter."""

from __future__ import annotations

import asyncio
import io
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from dualenc.data.shards import open_source
from dualenc.embed.describe import describe
from dualenc.index.index import Index
from dualenc.serve import compat, problems, thumbnails
from dualenc.serve.problems import Problem
from dualenc.serve.query import Pictures
from dualenc.serve.settings import Settings
from tests.small import write_tar

DIM = 16
RED, GREEN, BLUE = (200, 40, 40), (40, 160, 60), (50, 60, 200)


def encoded(picture: Image.Image, format: str = "JPEG", **more: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, format, **more)
    return data.getvalue()


def halves(size: tuple[int, int] = (640, 480), left=RED, right=BLUE) -> Image.Image:
    """A picture of two colours, side by side."""
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def turned(picture: Image.Image, orientation: int) -> bytes:
    """A JPEG whose EXIF says how to turn it."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Secret Camera"
    return encoded(picture, exif=exif)


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, DIM))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def shard(path: Path, pictures: dict[str, bytes]) -> Path:
    """A shard of pictures by file name, each with a caption."""
    members = []
    for name, data in pictures.items():
        members += [(name, data), (f"{name.partition('.')[0]}.txt", f"caption of {name}".encode())]
    return write_tar(path, members)


def metadata_of(source: Path) -> pa.Table:
    """What `dualenc embed` writes of a shard or a folder."""
    opened = open_source(str(source))
    return describe(opened, np.arange(len(opened)))[0]


def built(out: Path, metadata: Any, n: int | None = None, seed: int = 0, **more: Any) -> Index:
    count = n if n is not None else len(metadata)
    return Index.build(unit_rows(count, seed), out, metadata=metadata, recipe="flat", **more)


class StandIn:
    """As much of the service as the routes for pictures ask of it."""

    def __init__(self, indexes: dict[str, Index]):
        self.lives = {name: SimpleNamespace(name=name, index=index, generation=1) for name, index in indexes.items()}
        self.texts_seen: list[str] = []
        self.pictures_seen: list[Image.Image] = []

    def live(self, name: str | None) -> Any:
        if name is None:
            return next(iter(self.lives.values()))
        if name not in self.lives:
            raise Problem(404, "No such index", f"there is no index {name!r}")
        return self.lives[name]

    async def run(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    async def texts(self, live: Any, texts: list[str], index: Any = None) -> np.ndarray:
        self.texts_seen += texts
        return np.concatenate([unit_rows(1, zlib.crc32(text.encode())) for text in texts])

    async def images(self, live: Any, pictures: list[Image.Image], index: Any = None) -> np.ndarray:
        self.pictures_seen += pictures
        return np.concatenate([unit_rows(1, sum(picture.size)) for picture in pictures])

    async def search(self, live: Any, index: Index, vector: np.ndarray, k: int, **more: Any) -> Any:
        ids, scores = index.page(vector[None], k, **more)
        return ids[0][ids[0] >= 0], scores[0][ids[0] >= 0]


def app_of(service: Any, folder: Path, **settings: Any) -> FastAPI:
    app = FastAPI()
    app.state.service, app.state.settings = service, Settings({"main": folder}, **settings)
    app.state.pictures = Pictures(2, 1 << 20)
    problems.install(app)
    app.include_router(thumbnails.router)
    app.include_router(compat.router)
    return app


def client_of(indexes: dict[str, Index], folder: Path, **settings: Any) -> TestClient:
    return TestClient(app_of(StandIn(indexes), folder, **settings), raise_server_exceptions=False)
