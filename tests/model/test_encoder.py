"""DualEncoder's own methods."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dualenc.images import decode
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


def test_captions_come_back_in_their_order(encoder, monkeypatch):
    """Also where there are more than are tokenised at once."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["a", "red", "cat", "!", "of"], rng.integers(1, 12))) for _ in range(50)]
    with torch.no_grad():
        expected = encoder.model.encode_text(encoder.tokenizer(texts), normalize=True).numpy()
    assert np.abs(encoder.embed_texts(texts, batch_size=8) - expected).max() < 1e-6
    monkeypatch.setattr("dualenc.model.encoder.PIECE", 17)
    assert np.abs(encoder.embed_texts(texts, batch_size=8) - expected).max() < 1e-6
    sizes, tokenizer = [], encoder.tokenizer
    monkeypatch.setattr(encoder, "tokenizer", lambda part: sizes.append(len(part)) or tokenizer(part))
    encoder.embed_texts(texts, batch_size=8)
    assert sizes == [24, 24, 2]


def test_captions_that_are_cut_are_counted_once(encoder, caplog, monkeypatch):
    monkeypatch.setattr("dualenc.model.encoder.PIECE", 4)
    encoder.embed_texts(
        ["cat " * 50, "a", "cat " * 14, "cat " * 15, "b", "dog " * 60], batch_size=2
    )  # 14 words just fit
    assert [record.getMessage() for record in caplog.records] == ["3 captions were cut at the context of 16 tokens"]


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


def odd_pictures():
    """(name, picture, options of save) that plain `convert("RGB")` would read otherwise than `decode` does."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (30, 44, 3), dtype=np.uint8))
    alpha = colour.convert("RGBA")
    alpha.putalpha(Image.fromarray(rng.integers(0, 256, (30, 44), dtype=np.uint8)))
    exif = colour.getexif()
    exif[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (30, 44), dtype=np.uint16))
    return [
        ("alpha.png", alpha, {}),
        ("palette.png", colour.quantize(16), {"transparency": 7}),
        ("deep.png", deep, {}),
        ("turned.jpg", colour, {"exif": exif}),
        ("turned.png", colour, {"exif": exif}),
    ]


@pytest.mark.parametrize(("name", "picture", "options"), odd_pictures(), ids=lambda x: x if isinstance(x, str) else "")
def test_an_open_picture_is_embedded_as_its_file_is(encoder, tmp_path, name, picture, options):
    picture.save(tmp_path / name, **options)
    by_file = encoder.embed_images([tmp_path / name])
    with Image.open(tmp_path / name) as opened:
        assert np.array_equal(encoder.embed_images([opened]), by_file)
        plain = Image.frombytes("RGB", opened.size, opened.convert("RGB").tobytes())
    assert not np.array_equal(encoder.embed_images([plain]), by_file)  # else this test could not fail
    assert np.array_equal(encoder.embed_images([decode((tmp_path / name).read_bytes())]), by_file)


def test_the_encoder_does_not_change_by_embedding(encoder):
    before = encoder.fingerprint
    encoder.embed_images([Image.new("RGB", (40, 40))])
    encoder.embed_texts(["x"])
    from dualenc.model.folder import fingerprint

    assert fingerprint(encoder.model, encoder.tokenizer) == before


def jpeg(side, seed=0):
    """A large smooth picture with some noise, as a photo is."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    pixels = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC)).astype(int) + rng.integers(
        -9, 10, (side, side, 3)
    )
    data = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(data, "JPEG", quality=90)
    return data.getvalue()


def test_the_fast_decode_is_close_and_another_fingerprint(encoder_folder, tmp_path):
    exact, fast = (DualEncoder.load(encoder_folder, "cpu", decode) for decode in ("exact", "fast"))
    assert exact.fingerprint != fast.fingerprint
    for found, expected in (
        (exact.fingerprint, "exact"),
        (fast.fingerprint, "fast"),
        ("of another", "exact"),
        (None, "exact"),
    ):
        assert DualEncoder.load(encoder_folder, "cpu", fingerprint=found).decode == expected
    (tmp_path / "a.jpg").write_bytes(jpeg(600))
    one, other = (each.embed_images([tmp_path / "a.jpg"]) for each in (exact, fast))
    assert 0 < np.abs(one - other).max() < 0.05
    with pytest.raises(ValueError, match="decode 'quick' is unknown"):
        DualEncoder.load(encoder_folder, "cpu", "quick")


def test_embeddings_cut_at_fewer_dimensions_are_unit_prefixes_and_another_encoder(encoder_folder, encoder):
    cut = DualEncoder.load(encoder_folder, "cpu", dim=5)
    picture = Image.new("RGB", (40, 30), "red")
    for embed, item in (("embed_images", picture), ("embed_texts", "a red circle")):
        whole, found = getattr(encoder, embed)([item]), getattr(cut, embed)([item])
        assert found.shape == (1, 5) and cut.dim == 5
        np.testing.assert_allclose(found, whole[:, :5] / np.linalg.norm(whole[:, :5]), atol=1e-6)
    assert cut.fingerprint != encoder.fingerprint
    assert DualEncoder.load(encoder_folder, "cpu", dim=encoder.dim).fingerprint == encoder.fingerprint
    for mark, dim, expected in (
        (cut.fingerprint, 5, 5),
        (encoder.fingerprint, 5, encoder.dim),
        ("of another", 5, encoder.dim),
    ):
        assert DualEncoder.load(encoder_folder, "cpu", fingerprint=mark, dim=dim).dim == expected
    for dim in (0, -1, encoder.dim + 1):
        with pytest.raises(ValueError, match=f"dim {dim}: embeddings of this encoder have {encoder.dim}"):
            DualEncoder.load(encoder_folder, "cpu", dim=dim)


@pytest.mark.parametrize("device", ["nope", "cuda" if not torch.cuda.is_available() else "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(encoder_folder, device):
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used here .*; use cpu") as error:
        DualEncoder.load(encoder_folder, device=device)
    assert "\n" not in str(error.value)


def test_an_empty_name_is_not_this_folder():
    with pytest.raises(ValueError, match="name is empty"):
        DualEncoder.load("")
