"""What clip-retrieval's own server answers, recorded for test_compat: requests of its clients, and the replies to them.

To record anew, in an environment of its own that has clip-retrieval (and what its `back` needs) installed:
    python -m tests.serve.clip_retrieval.record store FOLDER       (here) writes a clip-retrieval store
    echo '{"main": "FOLDER", "second": "FOLDER"}' > indices.json
    clip-retrieval back --indices_paths indices.json --port 1234 --enable_mclip_option False --provide_aesthetic_embeddings False
    python -m tests.serve.clip_retrieval.record replies http://127.0.0.1:1234      writes recorded.json
recorded.json comes from the real `back` of 2.45.0 (numpy 1.26, pyarrow 15) with stand-ins for torch and the model in its
place. What depends on the model is recorded too, but only its shape counts: see `by_model`.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import urllib.parse
from pathlib import Path
from typing import Any

import numpy as np

from tests.serve.pictured import encoded, halves, turned, unit_rows

RECORDED = Path(__file__).with_name("recorded.json")
N = 12
LOST = 6  # its file is gone
CHAIN = (
    (3, 1, 0.97),
    (7, 3, 0.96),
    (5, 2, 0.95),
    (9, 2, 0.93),
)  # (row, of which row, cosine): the last is no duplicate
PLAIN = {"Content-Type": "text/plain;charset=UTF-8"}  # what a browser's fetch says of a text
PHOTO = encoded(halves((30, 20)))


def rows() -> np.ndarray:
    """(12, 16) unit rows, some near others."""
    found = unit_rows(N, 5)
    for row, other, cosine in CHAIN:
        apart = unit_rows(1, 100 + row)[0]
        apart -= (apart @ found[other]) * found[other]
        apart /= np.linalg.norm(apart)
        found[row] = cosine * found[other] + np.sqrt(1 - cosine**2) * apart
    return found


def metadata(folder: Path) -> list[dict[str, Any]]:
    """Metadata as clip-retrieval writes it, of photos that lie in a folder (one of them turned by its EXIF)."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    found = []
    for i in range(N):
        path = folder / "images" / f"{i:02d}.jpg"
        photo = halves((40 + i, 30))
        if i != LOST:
            path.write_bytes(turned(photo, 6) if i == 4 else encoded(photo))
        about = {"caption": f"photo {i}", "url": f"http://example.test/{i}.jpg", "NSFW": "UNLIKELY"}
        found.append({"image_path": str(path), **about})
    return found


def exchanges() -> dict[str, dict[str, Any]]:
    """What is asked, by name: method, path, headers and body, as clip-retrieval's clients write them."""
    embedding = [round(float(x), 6) for x in rows()[1]]
    photo = base64.b64encode(PHOTO).decode()
    # clip_client.py: no content type, all fields, null where unused
    client = {
        "text": None,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "deduplicate": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "indice_name": "main",
        "use_mclip": False,
        "aesthetic_score": 9,
        "aesthetic_weight": 0.5,
        "modality": "image",
        "num_images": N,
        "num_result_ids": N,
    }
    # the web page: text and not JSON by its content type, "" for no text and for no aesthetic score
    front = {**client, "aesthetic_score": "", "aesthetic_weight": "0.5", "num_images": 4, "num_result_ids": 3000}
    least = {"modality": "image", "num_images": N, "indice_name": "main", "embedding_input": embedding}

    def knn(fields: dict[str, Any], headers: dict[str, str] | None = None, **changed: Any) -> dict[str, Any]:
        return _asked("/knn-service", {**fields, **changed}, headers)

    return {
        "indices": {"method": "GET", "path": "/indices-list", "headers": {}, "body": None},
        "client_embedding": knn(client, embedding_input=embedding),
        "client_text": knn(client, text="red"),
        "client_image": knn(client, image=photo),
        "front_text": knn(front, PLAIN, text="red"),
        "front_image": knn(front, PLAIN, text="", image=photo),
        "front_metadata": _asked("/metadata", {"ids": [3, 0, 3, LOST], "indice_name": "main"}, PLAIN),
        "front_no_metadata": _asked("/metadata", {"ids": [], "indice_name": "main"}, PLAIN),
        "least": knn(least),
        "deduplicated": knn(least, deduplicate=True),
        "deduplicated_of_few": knn(least, deduplicate=True, num_images=3, num_result_ids=5),
        "ids_beyond_metadata": knn(least, num_images=3, num_result_ids=8),
        "ids_alone": knn(least, num_images=0, num_result_ids=5),
        "more_than_there_are": knn(least, num_images=40, num_result_ids=3000),
        "of_length_two": knn(least, embedding_input=[2 * x for x in embedding]),
        "empty_text_is_none": knn(least, text=""),
        "first_index": knn(least, indice_name=None),
        "other_index": knn(least, indice_name="second"),
        "text_before_image": knn(least, text="red", image=photo),
        "multilingual_without_text": knn(least, use_mclip=True),
    } | {
        f"bad_{name}": asked
        for name, asked in {
            "json": {"method": "POST", "path": "/knn-service", "headers": {}, "body": "{nope"},
            "list": _asked("/knn-service", []),
            "modality_missing": knn({k: v for k, v in least.items() if k != "modality"}),
            "num_images_missing": knn({k: v for k, v in least.items() if k != "num_images"}),
            "indice_name_missing": knn({k: v for k, v in least.items() if k != "indice_name"}),
            "nothing_asked": knn(least, embedding_input=None),
            "index": knn(least, indice_name="none"),
            "multilingual": knn(least, text="rouge", use_mclip=True),
            "embedding": knn(least, embedding_input=[1.0]),
            "image": knn(least, image="AAAA"),
            "num_images": knn(least, num_images="4"),
            "no_results": knn(least, num_images=0),
            "ids_missing": _asked("/metadata", {"indice_name": "main"}),
            "ids": _asked("/metadata", {"ids": [999], "indice_name": "main"}),
            "metadata_index": _asked("/metadata", {"ids": [1], "indice_name": "none"}),
        }.items()
    }


def by_model(name: str) -> bool:
    """Whether the model that the server was started with decides what is found."""
    return any(word in name for word in ("_text", "_image", "text_before")) and not name.startswith("bad")


def shape_of(value: Any) -> Any:
    """A reply as it is compared: pictures are only there or not, scores to 4 digits, paths by their last part."""
    if isinstance(value, list):
        return [shape_of(one) for one in value]
    if isinstance(value, dict):
        shown = {name: True if name == "image" else shape_of(one) for name, one in value.items()}
        return shown | ({"image_path": Path(value["image_path"]).name} if "image_path" in value else {})
    return round(value, 4) if isinstance(value, float) else value


def _asked(path: str, body: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    return {"method": "POST", "path": path, "headers": headers or {}, "body": json.dumps(body)}


def write_store(folder: Path) -> None:
    """The store, with FAISS indexes of both sides beside it, as `clip-retrieval back` serves it."""
    import faiss
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "metadata").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(metadata(folder)), folder / "metadata/metadata_0000.parquet")
    for name, some in (("image", rows()), ("text", unit_rows(N, 6))):
        index = faiss.IndexFlatIP(some.shape[1])
        index.add(some)
        faiss.write_index(index, str(folder / f"{name}.index"))


def record(url: str) -> dict[str, Any]:
    """Every exchange with a running server, with its status and the shape of its reply."""
    found = exchanges()
    for asked in found.values():
        there = http.client.HTTPConnection(urllib.parse.urlsplit(url).netloc, timeout=60)
        there.request(asked["method"], asked["path"], asked["body"], asked["headers"])
        reply = there.getresponse()
        asked |= {"status": reply.status, "reply": shape_of(json.loads(reply.read()))}
        there.close()
    return found


if __name__ == "__main__":
    what, where = sys.argv[1:]
    if what == "store":
        write_store(Path(where))
    else:
        about = "clip-retrieval 2.45.0, `back`: what it answered; written by record.py"
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(asked)}" for name, asked in record(where).items())
        RECORDED.write_text(f'{{"about": {json.dumps(about)},\n"exchanges": {{\n{lines}\n}}}}\n')
