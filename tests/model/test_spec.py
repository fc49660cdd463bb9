"""The plain spec that loader workers get."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from PIL import Image

from dualenc.data.text import Tokenizer
from dualenc.data.transforms import evaluation, to_uint8
from dualenc.model.encoder import DualEncoder
from dualenc.model.spec import input_spec, tokenizer_spec
from dualenc.model.towers import image_features
from tests.small import loaded


def test_the_spec_is_plain(encoder):
    spec = input_spec(encoder.model, encoder.tokenizer)
    assert json.loads(json.dumps(spec)) == spec
    assert spec["image"]["size"] == [32, 32] and spec["image"]["mean"] == [0.5, 0.4, 0.3]
    assert spec["text"]["context_length"] == 16 and spec["text"]["pad_to_longest"] is True
    assert input_spec(*loaded("rectangle")[:2])["image"]["size"] == [32, 48]
    assert input_spec(*loaded("siglip")[:2])["text"]["pad_to_longest"] is False


@pytest.mark.parametrize("name", ["vit", "rectangle", "siglip"])
def test_the_workers_path_equals_the_encoders(name):
    encoder = DualEncoder(loaded(name), device="cpu")
    rng = np.random.default_rng(0)
    shapes = ((40, 60), (33, 20), (32, 48), (9, 9))
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in shapes]
    pixels = torch.from_numpy(np.stack([to_uint8(evaluation(p, encoder.spec["image"])) for p in pictures]))
    with torch.no_grad():
        images = image_features(encoder.model, pixels).numpy()
    assert np.abs(images - encoder.embed_images(pictures)).max() < 1e-6
    tokens = Tokenizer(encoder.spec["text"])(["a red circle", "a &amp; b"])
    assert (tokens.shape[1] == 16) == (name == "siglip")


def test_cleaning_is_carried_over():
    spec = tokenizer_spec(SimpleTokenizer(clean="canonicalize", context_length=8), False)
    assert spec["clean"] == "canonicalize" and spec["context_length"] == 8


@pytest.mark.parametrize("tokenizer", [SimpleTokenizer(reduction_mask="simple"), HFTokenizer.__new__(HFTokenizer)])
def test_tokenizers_that_cannot_be_carried_are_refused(tokenizer):
    with pytest.raises(ValueError, match="cannot be carried to loader workers"):
        tokenizer_spec(tokenizer, False)


def test_modules_that_workers_import_need_no_open_clip():
    source = Path(__file__).resolve().parents[2] / "dualenc" / "data"
    for name in ("dataset", "text", "transforms", "order", "shards", "tar"):
        assert "open_clip" not in {
            word
            for line in (source / f"{name}.py").read_text().splitlines()
            if "import" in line
            for word in line.split()
        }
