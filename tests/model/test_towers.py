"""Towers: what is built, what goes through it, and short text against the whole context."""

import numpy as np
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from dualenc.model.towers import (
    build,
    check_config,
    image_features,
    pads_to_longest,
    text_features,
    text_features_sorted,
)
from tests.small import CONFIGS, loaded

CAUSAL = ["vit", "quick_gelu", "resnet", "timm"]
CAPTIONS = ["a red circle", "a much longer caption of some more words", ""]


def whole_context(model, tokens):
    with torch.no_grad():
        return torch.nn.functional.normalize(model.encode_text(tokens), dim=-1)


@pytest.mark.parametrize("name", CAUSAL)
def test_short_text_equals_the_whole_context(name):
    model, tokenizer, *_ = loaded(name)
    tokens = tokenizer(CAPTIONS)
    assert pads_to_longest(model)
    longest = int(tokens.argmax(dim=1).max()) + 1
    assert longest < tokens.shape[1]
    for length in (longest, longest + 2, tokens.shape[1]):
        with torch.no_grad():
            short = text_features(model, tokens[:, :length])
        assert torch.allclose(short, whole_context(model, tokens), atol=1e-6)
    assert torch.allclose(short.norm(dim=1), torch.ones(3), atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "timm"])
def test_short_text_has_the_gradients_of_the_whole_context(name):
    model, tokenizer, *_ = loaded(name)
    model.double()
    tokens, gradients = tokenizer(CAPTIONS), []
    target = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for length in (tokens.shape[1], int(tokens.argmax(dim=1).max()) + 1):
        model.zero_grad()
        (text_features(model, tokens[:, :length]) * target).sum().backward()
        gradients.append({k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 8
    for key, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][key], rtol=1e-9, atol=1e-12), key


def many_captions(tokenizer, count):
    """Captions of 1 to 12 words in random order; among them "!", whose id is the padding's."""
    rng = np.random.default_rng(count)
    words = np.array(["a", "red", "circle", "left", "of", "!", "blue"])
    return tokenizer([" ".join(rng.choice(words, rng.integers(0, 13))) for _ in range(count)])


@pytest.mark.parametrize("name", [*CAUSAL, "siglip"])
@pytest.mark.parametrize(("count", "chunk"), [(1, 4), (4, 4), (23, 4), (23, 1), (23, 64)])
def test_sorting_by_length_changes_no_row(name, count, chunk):
    model, tokenizer, *_ = loaded(name)
    tokens = many_captions(tokenizer, count)
    with torch.no_grad():
        rows = text_features_sorted(model, tokens, chunk)
    assert torch.allclose(rows, whole_context(model, tokens), atol=1e-6)
    assert torch.pdist(rows).max() > 1e-2 if count > 1 else len(rows)  # else any order would do


def test_sorting_by_length_leaves_padding_out(monkeypatch):
    model, tokenizer, *_ = loaded("vit")
    tokens, seen = many_captions(tokenizer, 50), []
    encode = model.encode_text
    monkeypatch.setattr(model, "encode_text", lambda part: seen.append(part) or encode(part))
    text_features_sorted(model, tokens, chunk=8)
    assert [len(part) for part in seen] == [8] * 6 + [2]
    longest = [part.shape[1] for part in seen]
    assert longest == sorted(longest) and longest[0] < longest[-1] == int(tokens.argmax(dim=1).max()) + 1
    assert all(part[:, -1].any() for part in seen)  # none is longer than its longest caption


def test_no_captions_no_rows():
    model, tokenizer, *_ = loaded("vit")
    assert text_features_sorted(model, tokenizer(["a"])[:0]).shape == (0, 16)


@pytest.mark.parametrize("pool", ["last", "argmax"])
def test_towers_that_see_padding_keep_their_context(pool):
    siglip = loaded("siglip", pool_type=pool)
    assert not pads_to_longest(siglip.model)
    causal = loaded("siglip", pool_type=pool, no_causal_mask=False)
    assert pads_to_longest(causal.model) == (pool == "argmax")
    with_class = loaded("siglip", pool_type=pool, no_causal_mask=False, embed_cls=True)
    assert not pads_to_longest(with_class.model)


@pytest.mark.parametrize("name", ["vit", "rectangle", "resnet", "siglip"])
def test_uint8_images_give_what_open_clips_own_path_gives(name):
    model, *_ = loaded(name)
    cfg = model.visual.preprocess_cfg
    height, width = cfg["size"] if isinstance(cfg["size"], (tuple, list)) else (cfg["size"],) * 2
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    transform = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    with torch.no_grad():
        theirs = model.encode_image(torch.stack([transform(Image.fromarray(p)) for p in pixels]), normalize=True)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        before = images.clone()
        ours = image_features(model, images)
    assert torch.allclose(ours, theirs, atol=1e-6) and torch.equal(images, before)


@pytest.mark.parametrize(
    ("model", "preprocess", "message"),
    [
        ({"embed_dimm": 3}, {}, r"model: unknown key 'embed_dimm'.*did you mean 'embed_dim'"),
        ({"vision_cfg": {"widht": 3}}, {}, r"vision_cfg: unknown key 'widht'.*did you mean 'width'"),
        ({"text_cfg": {"context": 3}}, {}, r"text_cfg: unknown key 'context'.*did you mean 'context_length'"),
        ({}, {"meen": 3}, r"preprocess: unknown key 'meen'.*did you mean 'mean'"),
        ({"zzzzzz": 3}, {}, r"model: unknown key 'zzzzzz'.*known: embed_dim"),
        ({}, {"resize_mode": "crop"}, r"resize_mode 'crop' must be shortest, longest or squash"),
    ],
)
def test_unknown_settings_name_the_nearest(model, preprocess, message):
    with pytest.raises(ValueError, match=message) as error:
        check_config(model, preprocess)
    assert "\n" not in str(error.value)


def test_building_leaves_its_input_alone():
    import copy

    cfg = copy.deepcopy(CONFIGS["timm"])
    build(cfg, {})
    assert cfg == CONFIGS["timm"]
