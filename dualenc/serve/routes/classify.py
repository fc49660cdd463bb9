"""POST /classify and /embed"""

from __future__ import annotations

import numpy as np
from fastapi import APIRouter, Request, Response

from dualenc.model.names import probabilities
from dualenc.serve.problems import Problem, responses
from dualenc.serve.query import Part, embedded_pictures
from dualenc.serve.routes.bodies import Direct, body_of, long_reply, read, reply
from dualenc.serve.routes.replies import ClassifyReply, EmbedReply
from dualenc.serve.schemas import MOST_IMAGES, ClassifyRequest, EmbedRequest

router = APIRouter(tags=["encoder"], route_class=Direct)
REFUSALS = responses(400, 403, 404, 409, 413, 415, 422, 500, 503)


@router.post(
    "/classify",
    summary="Which of some classes a picture shows",
    response_description="classes, best first",
    openapi_extra=body_of(ClassifyRequest, 1),
    responses={200: {"model": ClassifyReply}, **REFUSALS},
)
async def classify(request: Request) -> Response:
    """Zero-shot: the classes are texts, and the picture is compared with each of them by the index's encoder."""
    state = request.app.state
    query, uploads = await read(request, ClassifyRequest)
    parts = [Part(1.0, kind, value) for kind in ("image", "image_url") if (value := getattr(query, kind)) is not None]
    parts += [Part(1.0, "upload", number) for number in range(len(uploads))]
    if len(parts) != 1:
        raise Problem(422, "Not one picture", f"{len(parts)} pictures came; send one, in `image` or as a form's file")
    live = state.service.live(query.index)
    index = live.index
    rows = await embedded_pictures(parts, uploads, state, live, index)
    templates = tuple(query.templates or ["{}"])
    classifier = await state.service.classifier(live, tuple(query.classes), templates, index)
    cosines = rows @ classifier.T  # (1, classes)
    shares = probabilities(cosines, state.service.logit_scale(live, index))[0]
    cosines = cosines[0]
    best = np.argsort(-cosines, kind="stable")[: query.k].tolist()
    classes = [
        {"name": query.classes[place], "score": float(cosines[place]), "probability": float(shares[place])}
        for place in best
    ]
    return reply({"classes": classes})


@router.post(
    "/embed",
    summary="Embed texts and pictures",
    response_description="rows, in the order given",
    openapi_extra=body_of(EmbedRequest, MOST_IMAGES),
    responses={200: {"model": EmbedReply}, **REFUSALS},
)
async def embed(request: Request) -> Response:
    """Rows of length 1 by the index's encoder, for `embedding` of /search or for a program of yours."""
    state = request.app.state
    query, uploads = await read(request, EmbedRequest)
    parts = [Part(1.0, "image", value) for value in query.images or []]
    parts += [Part(1.0, "upload", number) for number in range(len(uploads))]
    if not parts and not query.texts:
        raise Problem(422, "Nothing to embed", "give `texts`, `images` in base64, or a form's `image` files")
    if len(parts) > MOST_IMAGES:
        raise Problem(422, "Too many pictures", f"{len(parts)} came; send up to {MOST_IMAGES} at once")
    live = state.service.live(query.index)
    index = live.index
    texts = await state.service.texts(live, query.texts, index) if query.texts else np.empty((0, index.dim))
    images = await embedded_pictures(parts, uploads, state, live, index) if parts else np.empty((0, index.dim))
    made = {"fingerprint": index.fingerprint, "dim": index.dim, "texts": list(texts), "images": list(images)}
    return await long_reply(state.service, made, texts.size + images.size)
