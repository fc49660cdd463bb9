"""An encoder as transformers' CLIPModel: the same rows, the same tokens, and a line that says what CLIPModel has not."""

from __future__ import annotations

import json
import random

import dualenc.torchvision_ops  # noqa: F401

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

pytest.importorskip("transformers")

from open_clip.tokenizer import SimpleTokenizer

from dualenc.model.encoder import DualEncoder
from dualenc.model.export import hf
from dualenc.model.export.hf import export_hf
from dualenc.model.export.tokenizer import padded_tokenizer
from dualenc.model.folder import Loaded
from dualenc.model.towers import build
from tests.small import CONFIGS, loaded

PREPROCESS = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
BIG = 49407


def scrambled(model):
    """Random values where open_clip starts with zeros and ones: biases, norms, the temperature."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def tower(vision=None, text=None, preprocess=None, tokenizer=None, **more):
    """A scrambled encoder: the small ViT's configuration with changes."""
    base = CONFIGS["vit"]
    cfg = base | {"vision_cfg": base["vision_cfg"] | (vision or {}), "text_cfg": base["text_cfg"] | (text or {})} | more
    made = tokenizer or SimpleTokenizer(context_length=cfg["text_cfg"]["context_length"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(cfg, PREPROCESS | (preprocess or {})).eval()
    return DualEncoder(Loaded(scrambled(model), made, cfg, {}), "tiny", "cpu")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """(encoder with quick_gelu, its folder)."""
    encoder = tower(quick_gelu=True)
    folder = tmp_path_factory.mktemp("hf") / "clip"
    export_hf(encoder, folder)
    return encoder, folder


def clip(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, local_files_only=True).eval()


def same(encoder, folder, tolerance=1e-5):
    """Features before they are normalised, and logits, equal open_clip's own."""
    size = encoder.spec["image"]["size"]
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(2))
    tokens = encoder.tokenizer(["a red circle", "b", "many words " * 20])
    model = clip(folder)
    with torch.no_grad():
        theirs = model(input_ids=tokens, pixel_values=pixels)
        image, text = encoder.model.encode_image(pixels), encoder.model.encode_text(tokens)
        assert (model.get_image_features(pixel_values=pixels).pooler_output - image).abs().max() < tolerance
        assert (model.get_text_features(input_ids=tokens).pooler_output - text).abs().max() < tolerance
        logits = encoder.model.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        assert (theirs.logits_per_image - logits).abs().max() < 10 * tolerance
    assert image.std(dim=0).min() > 1e-3  # else any rows would do


def test_transformers_gives_the_same_features(quick):
    same(*quick)


PLAIN = {
    "most at once": {
        "vision": {"norm_kwargs": {"eps": 1e-2}, "mlp_ratio": 2.0, "head_width": 8, "layers": 2, "patch_dropout": 0.5},
        "text": {
            "act_kwargs": {"approximate": "tanh"},
            "mlp_ratio": 3.0,
            "heads": 4,
            "pool_type": "eos",
            "eos_id": BIG,
        },
    },
    "custom": {"custom_text": True, "init_logit_bias": -10.0},
    "gelu": {},
    "epsilon": {"text": {"norm_kwargs": {"eps": 1e-3}}},
    "late norm": {"vision": {"final_ln_after_pool": True}},
    "fixed positions": {"vision": {"pos_embed_type": "sin_cos_2d"}},
}


@pytest.mark.parametrize(
    "name", [n if n in ("most at once", "custom") else pytest.param(n, marks=pytest.mark.full) for n in PLAIN]
)
def test_whatever_clip_model_can_be(name, tmp_path, caplog):
    encoder = tower(**PLAIN[name])
    export_hf(encoder, tmp_path / "out")
    same(encoder, tmp_path / "out")
    assert ("no logit bias" in caplog.text) == (name == "custom")


REFUSED = {
    "VisionTransformer with another size": (
        {"preprocess": {}, "vision": {"image_size": [32, 48]}},
        "rectangular image",
    ),
    "patches": ({"vision": {"patch_size": [16, 8]}}, "rectangular patch"),
    "resnet": ({"vision": CONFIGS["resnet"]["vision_cfg"] | {"patch_size": None}}, "ModifiedResNet image tower"),
    "layer scale": ({"vision": {"ls_init_value": 0.1}}, r"layer scale \(image"),
    "text layer scale": ({"text": {"ls_init_value": 0.1}}, r"layer scale \(text"),
    "attentional pool": ({"vision": {"attentional_pool": True, "attn_pooler_heads": 2}}, "attentional pool"),
    "no ln_pre": ({"vision": {"no_ln_pre": True}}, "without a norm before"),
    "average": ({"vision": {"pool_type": "avg"}}, "image pooling 'avg'"),
    "qk": ({"vision": {"qk_norm": True}}, "CustomResidualAttentionBlock in its image"),
    "text qk": ({"text": {"scale_fc": True}}, "CustomResidualAttentionBlock in its text"),
    "bidirectional": ({"text": {"no_causal_mask": True}}, "bidirectional"),
    "class token": ({"text": {"embed_cls": True}, "custom_text": True}, "class token"),
    "last": ({"text": {"pool_type": "last"}}, "text pooling 'last'"),
    "eos": ({"text": {"pool_type": "eos", "eos_id": 2}}, "pooling at token 2"),
    "bias": ({"text": {"proj_bias": True}}, "bias on the text projection"),
    "none": ({"text": {"proj_type": "none", "width": 16}, "custom_text": True}, "without a projection"),
    "longest": ({"preprocess": {"resize_mode": "longest"}}, "resize_mode 'longest'"),
    "context": ({"tokenizer": SimpleTokenizer(context_length=8)}, "context of 8"),
    "clean": ({"tokenizer": SimpleTokenizer(context_length=16, clean="whitespace")}, "'whitespace'"),
    "tokens": (
        {"tokenizer": SimpleTokenizer(context_length=16, additional_special_tokens=["<more>"])},
        "other tokens than CLIP's",
    ),
    "vocabulary": ({"text": {"vocab_size": 49000}}, "vocabulary of 49000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_clip_model_is_not_is_named(name, tmp_path):
    changes, reason = REFUSED[name]
    with pytest.raises(ValueError, match=reason) as error:
        export_hf(tower(**changes), tmp_path / "out")
    assert "\n" not in str(error.value) and "--to onnx" in str(error.value) and "tiny" in str(error.value)
    assert list(tmp_path.iterdir()) == []


CHANGED = {
    "unlike blocks": (
        lambda m: setattr(m.visual.transformer.resblocks[1].mlp, "gelu", torch.nn.GELU("tanh")),
        "unlike",
    ),
    "one epsilon": (lambda m: setattr(m.visual.ln_post, "eps", 0.1), "several epsilons"),
    "activation": (lambda m: setattr(m.transformer.resblocks[0].mlp, "gelu", torch.nn.ReLU()), "ReLU as activation"),
    "mask": (lambda m: m.attn_mask.fill_(0), "attention mask of its own"),
    "norm": (lambda m: setattr(m, "ln_final", torch.nn.LayerNorm(32, elementwise_affine=False)), "affine"),
    "no projection": (lambda m: setattr(m.visual, "proj", None), "image tower without a projection"),
    "attention": (
        lambda m: setattr(m.visual.transformer.resblocks[0].attn, "add_zero_attn", True),
        "attention of this form",
    ),
    "first scale": (lambda m: setattr(m.transformer.resblocks[0], "ls_1", torch.nn.Tanh()), r"layer scale \(text"),
    "second scale": (lambda m: setattr(m.transformer.resblocks[0], "ls_2", torch.nn.Tanh()), r"layer scale \(text"),
    "no blocks": (lambda m: setattr(m.transformer, "resblocks", torch.nn.ModuleList()), "without blocks"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_the_modules_are_looked_at_and_not_their_configuration(name):
    change, reason = CHANGED[name]
    encoder = tower(vision={"layers": 2})
    change(encoder.model)
    with pytest.raises(ValueError, match=reason):
        hf._config(encoder)


@pytest.mark.parametrize("name", ["timm", "siglip"])
def test_other_towers_are_named(name):
    with pytest.raises(ValueError, match="TimmModel image tower" if name == "timm" else "bidirectional"):
        hf._config(DualEncoder(loaded(name), name, "cpu"))


def test_a_wrong_mapping_writes_nothing(tmp_path, monkeypatch):
    """The check is that of the files, by transformers itself."""
    right = hf.hf_state

    def swapped(model):
        state = right(model)
        for part in ("weight", "bias"):
            q, k = (f"text_model.encoder.layers.0.self_attn.{letter}_proj.{part}" for letter in "qv")
            state[q], state[k] = state[k], state[q]
        return state

    monkeypatch.setattr(hf, "hf_state", swapped)
    with pytest.raises(ValueError, match="text tower differs from the encoder by"):
        export_hf(tower(), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_a_users_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileExistsError):
        export_hf(tower(), tmp_path / "out")
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "mine"]


WORDS = """
a the red circle café naïve Zürich über señor Ærø ÉCOLE don't it's WE'LL they're I'd he'd've '90s rock'n'roll 3.14 2024
1,000 #1 50% (left) [x] {y} a/b a_b -- ... ?! !!! "quoted" hello! e-mail@x.org 日本語 привет 😀 a&b ~ ^
supercalifragilisticexpialidocious
"""


def captions(count=200):
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randint(0, 12))) for _ in range(count)]


def test_tokens_are_equal(quick):
    from transformers import AutoTokenizer, CLIPTokenizer

    encoder, folder = quick
    some = captions()
    ours = encoder.tokenizer(some).tolist()
    ours = [row[: row.index(BIG) + 1] for row in ours]
    assert max(map(len, ours)) == 16 and min(map(len, ours)) == 2  # cut ones and empty ones are among them
    for kind in (CLIPTokenizer, AutoTokenizer):
        theirs = kind.from_pretrained(folder, local_files_only=True)
        assert theirs(some, truncation=True)["input_ids"] == ours
        padded = theirs(some, truncation=True, padding=True, return_tensors="pt")
        assert theirs.pad_token_id == theirs.eos_token_id == BIG
        assert (padded["input_ids"][padded["attention_mask"] == 0] == BIG).all()
        assert padded["attention_mask"].sum(1).tolist() == [*map(len, ours)]


@pytest.mark.parametrize("clean", ["lower", "canonicalize", "whitespace"])
def test_the_tokenizer_file_gives_open_clips_tokens(clean):
    """Padding, cutting and curly quotes included."""
    tokenizer = SimpleTokenizer(context_length=12, clean=clean)
    some = [*captions(), "they\u2019re \u201cquoted\u201d", "A_B, c!"]
    fast = padded_tokenizer(tokenizer)
    assert [fast.encode(text).ids for text in some] == tokenizer(some).tolist()


def test_padding_changes_nothing(quick):
    """open_clip pads with 0 to the context, transformers with the end of text to the longest."""
    from transformers import CLIPProcessor

    encoder, folder = quick
    processor, some = CLIPProcessor.from_pretrained(folder, local_files_only=True), ["a", "a red circle of many words"]
    with torch.no_grad():
        rows = clip(folder).get_text_features(**processor(text=some, padding=True, return_tensors="pt")).pooler_output
    assert np.abs(F.normalize(rows, dim=-1).numpy() - encoder.embed_texts(some)).max() < 1e-5


def picture(width, height):
    """A smooth picture with some noise, as a photo is."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noise = rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray((np.asarray(small).astype(int) + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "preprocess",
    [{"interpolation": "bilinear"}, {"resize_mode": "squash"}, pytest.param({}, marks=pytest.mark.full)],
    ids=str,
)
def test_picture_files_end_to_end(preprocess, tmp_path):
    """Exact with Pillow; torchvision's own resizing, transformers' default, differs by 1 of 255 at most."""
    from transformers import AutoImageProcessor

    encoder = tower(preprocess=preprocess)
    export_hf(encoder, tmp_path / "out")
    model = clip(tmp_path / "out")
    for number, size in enumerate([(100, 80), (60, 90), (31, 29), (20, 24), (32, 32)]):
        picture(*size).save(tmp_path / f"{number}.png")
        ours = encoder.embed_images([tmp_path / f"{number}.png"])
        exact, default = (
            AutoImageProcessor.from_pretrained(tmp_path / "out", local_files_only=True, backend=backend)
            for backend in ("pil", "torchvision")
        )
        with Image.open(tmp_path / f"{number}.png") as opened, torch.no_grad():
            pixels = exact(images=opened, return_tensors="pt")
            rows = model.get_image_features(**pixels).pooler_output
            other = default(images=opened, return_tensors="pt")["pixel_values"]
        assert np.abs(F.normalize(rows, dim=-1).numpy() - ours).max() < 1e-6, size
        levels = (other - pixels["pixel_values"]).abs() * torch.tensor(PREPROCESS["std"]).view(3, 1, 1) * 255
        assert levels.max() < 1.01, size


def test_the_note_says_whose_it_is(quick):
    encoder, folder = quick
    note = json.loads((folder / "dualenc.json").read_text())
    assert note["fingerprint"] == encoder.fingerprint and note["export"] == "hf" and note["dim"] == 16
    assert set(note["checked"]["max_difference"]) == {"image", "text"} and note["differs"]
    assert 0 < max(note["checked"]["max_difference"].values()) < 1e-5
    assert {"config.json", "model.safetensors", "vocab.json", "merges.txt"} <= {p.name for p in folder.iterdir()}


def test_transformers_is_as_it_was():
    """Its progress bars and its log level are the caller's."""
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    with hf._silent():
        assert not logging.is_progress_bar_enabled()
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
