"""What is frozen does not move by one bit, nor drop or count anything; what is not frozen trains."""

import pytest
import torch
import torch.nn.functional as F

from dualenc.model.blocks import SIDES, divide, tower_names
from dualenc.model.finetune import check_training, prepare, set_grad_checkpointing, set_patch_dropout
from dualenc.model.freeze import freeze, keep_frozen_eval
from dualenc.model.lora import Lora
from dualenc.model.towers import build, image_features, text_features
from dualenc.train.optimizer import make_optimizer, parameter_groups
from tests.model.test_blocks import DEEP, bert, model_of  # noqa: F401  (a fixture)
from tests.small import CONFIGS, TEXT, VISION, loaded

TOKENS = torch.tensor([[49406, 320 + i, 49407] + [0] * 13 for i in range(4)])
PIXELS = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def steps(model, count=3, tokens=TOKENS):
    """Real steps of AdamW with weight decay, in train mode as Lightning has it."""
    optimizer = make_optimizer(parameter_groups(model, lr=0.01, weight_decay=0.5))
    for _ in range(count):
        model.train()
        keep_frozen_eval(model)
        optimizer.zero_grad()
        logits = model.logit_scale.exp() * image_features(model, PIXELS) @ text_features(model, tokens).T
        F.cross_entropy(logits, torch.arange(4)).backward()
        optimizer.step()


def moved(model, blocks, tokens=TOKENS):
    """Names of the tensors, moving statistics included, that training changes."""
    freeze(model, *blocks)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model, tokens=tokens)
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("blocks", [(None, None), (0, None), (None, 0), (1, None), (1, 1), (0, 1), (1, 0)])
def test_only_what_is_trained_moves(kind, blocks):
    model = model_of(kind)
    expected = {"logit_scale"}
    for side, count in zip(SIDES, blocks, strict=True):
        depth = divide(model, side).depth()
        expected |= {name for name in depth if count is None or (count and depth[name] <= count)}
    parameters = {name for name, _ in model.named_parameters()}
    changed = moved(model, blocks)
    assert changed & parameters <= expected
    # a bias under a norm, or one of zero gradient by symmetry, may stay where it is: most of the others move
    still = expected - changed
    assert len(still) < 0.2 * len(expected) and "logit_scale" in changed
    top = [divide(model, side).head for side, count in zip(SIDES, blocks, strict=True) if count != 0]
    assert all(set(head) & changed for head in top)


@pytest.mark.parametrize(("kind", "count"), [("resnet", 2), ("timm", 1), ("resnet", 0), ("timm", 0)])
def test_batch_norm_of_frozen_parts_counts_nothing(kind, count):
    model = model_of(kind)
    tower = divide(model, "image")
    frozen = {name for name, depth in tower.depth().items() if count == 0 or depth > count}
    changed = moved(model, (count, None))
    statistics = {name for name, _ in model.named_buffers() if "running" in name or "num_batches" in name}
    still = {name for name in statistics if f"{name.rpartition('.')[0]}.weight" in frozen}
    assert still and not still & changed
    assert statistics - still <= changed and bool(statistics - still) == bool(count)


def test_without_it_the_statistics_would_move():
    model = model_of("resnet")
    freeze(model, image_blocks=0)
    model.train()
    before = model.visual.bn1.running_mean.clone()
    image_features(model, PIXELS)
    assert not torch.equal(model.visual.bn1.running_mean, before)


def test_dropout_of_frozen_parts_is_off(bert):  # noqa: F811
    freeze(bert, text_blocks=1)
    assert bert.train().text.transformer.embeddings.dropout.training
    keep_frozen_eval(bert)
    layers = bert.text.transformer.encoder.layer
    modes = [{m.training for m in layer.modules() if isinstance(m, torch.nn.Dropout)} for layer in layers]
    assert modes == [{False}, {False}, {True}] and not bert.text.transformer.embeddings.dropout.training
    assert layers[2].attention.self.training and not layers[1].attention.self.training
    bert.eval()
    keep_frozen_eval(bert)
    assert not any(module.training for module in bert.modules())


def test_dropout_after_a_frozen_layer_goes_with_it():
    model = model_of("timm_vit")
    freeze(model, image_blocks=1)
    model.train()
    keep_frozen_eval(model)
    trunk = model.visual.trunk
    assert not trunk.pos_drop.training and trunk.blocks[-1].mlp.drop1.training and model.visual.head.drop.training
    assert not trunk.blocks[0].mlp.drop1.training


@pytest.mark.parametrize("kind", ["vit", "siglip"])
@pytest.mark.parametrize("blocks", [(None, None), (0, None), (None, 0), (1, 1)])
def test_what_is_trained_stays_in_train_mode(kind, blocks):
    model = model_of(kind)
    freeze(model, *blocks)
    model.train()
    keep_frozen_eval(model)
    layers = {"image": model.visual.transformer, "text": getattr(model, "text", model).transformer}
    for side, count in zip(SIDES, blocks, strict=True):
        assert layers[side].resblocks[-1].training == (count != 0)
        assert layers[side].resblocks[-1].attn.training == (count != 0)
    assert model.training


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((-1, None), r"model\.image_blocks is -1.*fewer than 0 blocks"),
        ((None, -2), r"model\.text_blocks is -2"),
        ((4, None), r"model\.image_blocks is 4, but the image tower has 3 blocks; set at most that many, or null"),
        ((None, 3), r"model\.text_blocks is 3, but the text tower has 2 blocks"),
        ((0, 0), r"both 0, so nothing but the temperature would be trained"),
    ],
)
def test_bad_numbers_are_refused_and_nothing_frozen(blocks, message):
    model = model_of("vit")
    with pytest.raises(ValueError, match=message) as error:
        freeze(model, *blocks)
    assert "\n" not in str(error.value) and all(p.requires_grad for p in model.parameters())


def test_all_blocks_are_not_the_whole_tower():
    model = model_of("vit")
    freeze(model, image_blocks=3)
    still = [name for name in tower_names(model, "image") if not model.get_parameter(name).requires_grad]
    assert sorted(still) == sorted(divide(model, "image").stem)


def test_towers_of_unknown_build_can_be_frozen_whole():
    model = loaded().model
    model.visual = torch.nn.Sequential(torch.nn.Linear(2, 2))
    freeze(model, image_blocks=0)
    assert not model.visual[0].weight.requires_grad and model.token_embedding.weight.requires_grad


# Patch dropout, gradient checkpointing, and all settings at once (dualenc/model/finetune.py)


def test_patch_dropout_shows_a_share_of_the_patches_once_each():
    model = build(CONFIGS["vit"] | {"vision_cfg": VISION["vit"] | {"patch_size": 4}}, {})  # 64 patches
    set_patch_dropout(model, 0.7)
    drop = model.visual.patch_dropout.train()
    rows = torch.arange(65.0).repeat(5, 1).unsqueeze(-1).expand(-1, -1, 3)
    torch.manual_seed(0)
    shown = drop(rows)
    assert shown.shape == (5, 1 + 19, 3)  # the class token and 30 %, rounded down as open_clip does
    assert (shown[:, 0] == 0).all() and torch.equal(shown[..., 0], shown[..., 2])
    sets = [row.tolist() for row in shown[:, 1:, 0]]
    assert all(len(set(row)) == 19 and min(row) >= 1 for row in sets)
    assert len({tuple(sorted(row)) for row in sets}) == 5  # each image its own
    counts = torch.zeros(65)
    for _ in range(400):
        counts += torch.bincount(drop(rows)[..., 0].flatten().long(), minlength=65)
    expected, sigma = 2000 * 19 / 64, (2000 * 19 / 64 * 45 / 64) ** 0.5
    assert counts[0] == 2000 and ((counts[1:] - expected).abs() < 5 * sigma).all()
    assert torch.equal(drop.eval()(rows), rows)
    set_patch_dropout(model, 0.999)
    assert model.visual.patch_dropout.train()(rows).shape[1] == 2  # one patch is always shown


def test_patch_dropout_is_off_when_embedding_and_no_part_of_the_weights():
    model, plain = loaded().model, loaded().model
    set_patch_dropout(model, 0.5)
    assert not model.visual.patch_dropout.training  # as the tower was
    with torch.no_grad():
        assert torch.equal(image_features(model, PIXELS), image_features(plain, PIXELS))
    assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("setting", [{"image_blocks": 1}, {"lora": Lora(rank=2)}, {}])
def test_patch_dropout_acts_where_the_stem_alone_is_frozen(setting):
    model = model_of("vit")
    prepare(model, patch_dropout=0.5, **setting)
    model.train()
    keep_frozen_eval(model)
    with torch.no_grad():
        assert not torch.equal(image_features(model, PIXELS), image_features(model, PIXELS))
    model.eval()
    keep_frozen_eval(model)
    with torch.no_grad():
        assert torch.equal(image_features(model, PIXELS), image_features(model, PIXELS))


def test_a_frozen_tower_whose_configuration_has_patch_dropout_shows_all_patches():
    model = build(CONFIGS["vit"] | {"vision_cfg": VISION["vit"] | {"patch_dropout": 0.5}}, {})
    freeze(model, image_blocks=0)
    model.train()
    keep_frozen_eval(model)
    with torch.no_grad():
        assert torch.equal(image_features(model, PIXELS), image_features(model, PIXELS))


def kept(forward):
    """What a forward pass returns, and how many numbers it keeps for the backward pass."""
    sizes = []

    def keep(tensor):
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        return forward(), sum(sizes)


@pytest.mark.parametrize("kind", ["vit", "siglip", "timm_vit"])
@pytest.mark.parametrize("lora", [None, Lora(rank=2)])
def test_checkpointing_changes_no_gradient(kind, lora):
    gradients = []
    for checkpointing in (False, True):
        model = model_of(kind)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            prepare(model, lora=lora, grad_checkpointing=checkpointing)
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(parameter, std=0.1)
        model.double().train()
        features, saved = kept(
            lambda model=model: torch.cat([image_features(model, PIXELS), text_features(model, TOKENS)])
        )
        aim = torch.randn(features.shape, dtype=features.dtype, generator=torch.Generator().manual_seed(0))
        (features * aim).sum().backward()
        gradients.append((saved, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    (all_kept, plain), (few_kept, again) = gradients
    assert few_kept < 0.8 * all_kept and plain.keys() == again.keys() and len(plain) > 10
    assert all(torch.allclose(gradient, again[name], rtol=1e-9, atol=1e-12) for name, gradient in plain.items())


@pytest.mark.parametrize(("kind", "tower"), [("resnet", "ModifiedResNet")])
def test_towers_without_patches_or_checkpointing_are_refused(kind, tower):
    model = loaded(kind).model
    with pytest.raises(ValueError, match=f"this image tower is a {tower}; set it to 0"):
        set_patch_dropout(model, 0.5)
    with pytest.raises(ValueError, match=rf"this image tower, a {tower}.*model\.accumulate"):
        set_grad_checkpointing(model)
    with pytest.raises(ValueError, match="this image tower is a VisionTransformer"):
        set_patch_dropout(loaded("timm_vit").model, 0.5)
    timm = loaded("timm").model
    timm.visual.trunk.set_grad_checkpointing = None  # as in timm's models that have none
    with pytest.raises(ValueError, match="this image tower, a ResNet"):
        set_grad_checkpointing(timm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_dropout": 1.0}, r"model\.patch_dropout is 1\.0.*below 1"),
        ({"patch_dropout": -0.1}, r"model\.patch_dropout is -0\.1"),
        ({"patch_dropout": 0.5, "image_blocks": 0}, r"the image tower is frozen.*set it to 0"),
        ({"patch_dropout": 0.5, "lora": Lora(towers=("text",))}, r"the image tower is frozen"),
        ({"layer_decay": 0.0}, r"model\.layer_decay is 0\.0.*above 0"),
        ({"layer_decay": 1.5}, r"model\.layer_decay is 1\.5"),
        ({"layer_decay": float("nan")}, r"model\.layer_decay is nan"),
        ({"image_blocks": 0, "lora": Lora()}, r"freezes the image tower, but model\.lora\.towers has it"),
        ({"image_blocks": 0, "text_blocks": 0}, r"nothing but the temperature"),
    ],
)
def test_settings_are_refused_before_there_are_towers(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        check_training(**settings)
    assert "\n" not in str(error.value)
    model = loaded().model
    with pytest.raises(ValueError, match=message):
        prepare(model, **settings)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_towers_are_left_in_train_mode_but_for_what_is_frozen():
    model = model_of("resnet").eval()
    prepare(model, image_blocks=1)
    visual = model.visual
    assert model.training and visual.layer4[0].bn1.training and model.transformer.resblocks[0].training
    assert not visual.bn1.training and not visual.layer1[0].bn1.training


def test_layer_decay_of_unknown_builds_is_refused():
    model = loaded().model
    model.visual = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"model\.layer_decay to 1\.0"):
        prepare(model, layer_decay=0.5)
    prepare(model)


def test_a_frozen_image_tower_may_stand_beside_lora():
    model = model_of("vit")
    prepare(model, image_blocks=0, lora=Lora(rank=2, towers=("text",)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steps(model)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if ".lora_" in name} | {"logit_scale"}
    assert TEXT["layers"] and all(not name.startswith("visual.") for name in changed)
