"""A tower's parts: every parameter in one, in the order that the input takes them."""

import json

import pytest
import torch

from dualenc.model.blocks import SIDES, divide, tower_names, tower_of
from dualenc.model.towers import build, image_features, text_features
from tests.small import CONFIGS, TEXT, VISION, loaded

DEEP = {  # kind -> (configuration, blocks of the image tower, blocks of the text tower)
    "vit": ({"vision_cfg": VISION["vit"] | {"layers": 3}, "text_cfg": TEXT | {"layers": 2}}, 3, 2),
    "pooled": (
        {"vision_cfg": VISION["vit"] | {"attentional_pool": True, "attn_pooler_heads": 2}, "text_cfg": TEXT},
        1,
        1,
    ),
    "resnet": ({"vision_cfg": VISION["resnet"] | {"layers": [1, 2, 1, 1]}, "text_cfg": TEXT}, 5, 1),
    "timm": (CONFIGS["timm"], 4, 1),
    "timm_vit": (CONFIGS["timm_vit"] | {"text_cfg": TEXT | {"layers": 2}}, 6, 2),
    "timm_normed": (CONFIGS["timm_vit"] | {"vision_cfg": VISION["timm_vit"] | {"timm_model_name": "test_vit2"}}, 8, 1),
    "convnext": (
        {
            "vision_cfg": VISION["timm"] | {"timm_model_name": "test_convnext"},
            "text_cfg": TEXT | {"embed_cls": True},
            "custom_text": True,
        },
        9,
        1,
    ),
    "siglip": (CONFIGS["siglip"] | {"text_cfg": CONFIGS["siglip"]["text_cfg"] | {"layers": 2}}, 1, 2),
}


def model_of(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build({"embed_dim": 16} | DEEP[kind][0], {})


@pytest.fixture
def bert(tmp_path):
    """Towers with a tiny Hugging Face text tower, of three layers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    config = {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": 100, "max_position_embeddings": 16}
    (tmp_path / "config.json").write_text(json.dumps(config | sizes))
    text = {"hf_model_name": str(tmp_path), "hf_proj_type": "linear", "hf_pooler_type": "mean_pooler"}
    return build({"embed_dim": 16, "vision_cfg": VISION["vit"], "text_cfg": text}, {})


@pytest.mark.parametrize("kind", DEEP)
def test_every_parameter_is_in_one_part_of_one_tower(kind):
    model = model_of(kind)
    listed = []
    for side, count in zip(SIDES, DEEP[kind][1:], strict=True):
        tower = divide(model, side)
        names = [*tower.stem, *(name for block in tower.blocks for name in block), *tower.head]
        assert sorted(names) == sorted(tower_names(model, side)) and tower.stem and tower.head
        assert all(tower.blocks) and count == len(tower.blocks)
        assert tower_of(model, side) is model or len(names) == len(list(tower_of(model, side).parameters()))
        listed += names
    left = {name for name, _ in model.named_parameters()} - set(listed)
    assert left == {"logit_scale"} | ({"logit_bias"} if kind == "siglip" else set())
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("kind", DEEP)
def test_parts_come_in_the_order_in_which_the_input_meets_them(kind):
    """Backward meets them from the top: the gradient of a part's parameters is there before that of the parts below it."""
    model, met = model_of(kind).double(), []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: met.append(name))
    tokens = torch.tensor([[49406, 320, 49407] + [0] * 13])
    image = image_features(model, torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    (image.sum() + text_features(model, tokens).sum()).backward()
    for side in SIDES:
        depth = divide(model, side).depth()
        weights = [name for name in met if name in depth and _in_line(name)]
        depths = [depth[name] for name in weights]
        assert depths == sorted(depths) and set(depths) >= set(range(1, max(depths)))


def _in_line(name):
    """Whether a parameter's gradient comes when its layer's backward is over; those of several layers come in between."""
    return not name.endswith(("embedding", "_emb", "pos_embed", "cls_token", "bias", "gamma")) and ".bn" not in name


PATCHES = "class_embedding positional_embedding conv1. ln_pre."
TIMM_PATCHES = "trunk.cls_token trunk.reg_token trunk.pos_embed trunk.patch_embed. trunk.norm_pre."
ENDS = [  # kind, side, what its names begin with, those of the stem, those of the head
    ("vit", "image", "visual.", PATCHES, "proj ln_post."),
    ("vit", "text", "", "positional_embedding token_embedding.", "text_projection ln_final."),
    ("pooled", "image", "visual.", PATCHES, "proj ln_post. attn_pool."),
    ("resnet", "image", "visual.", "conv bn", "attnpool."),
    ("timm", "image", "visual.", "trunk.conv1. trunk.bn1.", "head."),
    ("timm_vit", "image", "visual.", TIMM_PATCHES, "head. trunk.norm. trunk.fc_norm."),
    ("timm_normed", "image", "visual.", TIMM_PATCHES, "head. trunk.fc_norm."),
    ("siglip", "text", "text.", "positional_embedding token_embedding.", "text_projection. ln_final."),
    ("convnext", "image", "visual.", "trunk.stem.", "head. trunk.head."),
    ("convnext", "text", "text.", "positional_embedding token_embedding. cls_emb", "text_projection ln_final."),
]


@pytest.mark.parametrize(("kind", "side", "start", "stem", "head"), ENDS)
def test_stem_and_head(kind, side, start, stem, head):
    model = model_of(kind)
    tower = divide(model, side)
    for names, parts in ((tower.stem, stem), (tower.head, head)):
        begin = tuple(start + part for part in parts.split())
        assert names and sorted(names) == sorted(name for name in tower_names(model, side) if name.startswith(begin))


def test_depth_counts_from_the_top():
    depth = divide(model_of("vit"), "image").depth()
    assert depth["visual.proj"] == 0 and depth["visual.conv1.weight"] == 4
    assert [depth[f"visual.transformer.resblocks.{i}.mlp.c_fc.weight"] for i in range(3)] == [3, 2, 1]


def test_a_hugging_face_text_tower(bert):
    tower = divide(bert, "text")
    assert len(tower.blocks) == 3 and all(name.startswith("text.transformer.embeddings.") for name in tower.stem)
    assert tower.head == ["text.proj.weight"]
    assert sum(map(len, (tower.stem, *tower.blocks, tower.head))) == len(tower_names(bert, "text"))


def test_unknown_builds_are_refused(bert):
    model = loaded().model
    model.visual = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the image tower \(Sequential\).*model\.image_blocks to null or 0"):
        divide(model, "image")
    assert tower_names(model, "image") == ["visual.0.weight", "visual.0.bias"]
    bert.text.transformer = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"the text tower \(Sequential\).*model\.text_blocks"):
        divide(bert, "text")
