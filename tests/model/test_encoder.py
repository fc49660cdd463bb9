"""DualEncoder's own methods."""

import numpy as np
import pytest
import torch
from PIL import Image

from dualenc.model.encoder import DualEncoder
from tests.small import COLOURS, loaded, png


def test_embeddings_are_unit_float32_rows(encoder, tmp_path):
    (tmp_path / "a.png").write_bytes(png((50, 40)))
    picture = Image.open(tmp_path / "a.png")
    images = encoder.embed_images([tmp_path / "a.png", str(tmp_path / "a.png"), picture, picture.convert("RGBA")])
    assert images.shape == (4, encoder.dim) and images.dtype == np.float32
    assert np.abs(images - images[0]).max() < 1e-6
    texts = encoder.embed_texts(["a", "a b c d e f", "", "cat " * 50])
    assert texts.shape == (4, encoder.dim) and texts.dtype == np.float32
    for rows in (images, texts):
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-5
    assert np.abs(texts - texts[0]).max() > 1e-3


def test_results_do_not_depend_on_batches(encoder):
    pictures = [Image.new("RGB", (40, 40), colour) for colour in COLOURS.values()]
    one, many = (encoder.embed_images(pictures, batch_size=b) for b in (3, 64))
    assert np.abs(one - many).max() < 1e-6
    texts = ["a red circle", "b", "a longer caption of many words here", "c"]
    one, many = (encoder.embed_texts(texts, batch_size=b) for b in (1, 256))
    assert np.abs(one - many).max() < 1e-6


def test_nothing_in_nothing_out(encoder):
    assert encoder.embed_images([]).shape == (0, 16) == encoder.embed_texts([]).shape


def test_a_siglip_tower_sees_its_whole_context():
    other = DualEncoder(loaded("siglip"), device="cpu")
    tokens = other.tokenizer(["a red circle"])
    with torch.no_grad():
        expected = other.model.encode_text(tokens, normalize=True).numpy()
    assert np.abs(other.embed_texts(["a red circle"]) - expected).max() < 1e-6


@pytest.mark.parametrize("item", ["a red circle", Image.new("RGB", (4, 4))])
def test_one_item_is_refused(encoder, item):
    with pytest.raises(TypeError, match="pass a list"):
        encoder.embed_texts(item) if isinstance(item, str) else encoder.embed_images(item)


def test_a_picture_that_does_not_decode_is_named(encoder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"bad\.png") as error:
        encoder.embed_images([tmp_path / "bad.png"])
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match=r"none\.png"):
        encoder.embed_images([tmp_path / "none.png"])


def test_the_encoder_does_not_change_by_embedding(encoder):
    before = encoder.fingerprint
    encoder.embed_images([Image.new("RGB", (40, 40))])
    encoder.embed_texts(["x"])
    from dualenc.model.folder import fingerprint

    assert fingerprint(encoder.model, encoder.tokenizer) == before
