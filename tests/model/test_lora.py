"""LoRA: what it trains, that it leaves the weights alone, and that merging changes nothing but rounding."""

import copy
import dataclasses
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dualenc.model import folder
from dualenc.model.encoder import DualEncoder
from dualenc.model.finetune import prepare
from dualenc.model.freeze import keep_frozen_eval
from dualenc.model.lora import Lora, add_lora, check_lora, merged, merged_state
from dualenc.model.towers import build, image_features, pads_to_longest, text_features
from tests.small import CONFIGS, loaded

KINDS = ["vit", "quick_gelu", "siglip", "timm_vit"]
CAPTIONS = ["a red circle", "a longer caption of some more words", "blue"]
BOTH = [("image",), ("text",), ("image", "text")]
PIXELS = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8))


def adapted(kind="vit", lora=None, seed=1, std=0.1):
    """A model with adapters, and with matrices that change its embeddings."""
    model, tokenizer, *_ = loaded(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_lora(model, lora or Lora(rank=4))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=std)
    return model.eval(), tokenizer


def embeddings(model, tokens):
    return torch.cat([image_features(model, PIXELS), text_features(model, tokens)])


def by_hand(model, lora):
    """The state dict that the definition gives: W + alpha / rank · B A, one matrix at a time."""
    state, plain = model.state_dict(), {}
    for name, value in state.items():
        if "lora_" in name:
            continue
        layer = name.removesuffix(".in_proj_weight").removesuffix(".weight").removesuffix("base_layer").rstrip(".")
        down = state.get(f"{layer}.lora_A.default.weight")
        if down is not None and name.endswith("weight"):
            value = value + lora.alpha / lora.rank * state[f"{layer}.lora_B.default.weight"] @ down
        plain[name.replace(".base_layer", "")] = value
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("towers", BOTH)
def test_merged_equals_unmerged_and_the_definition(kind, towers):
    lora = Lora(rank=3, alpha=7.0, towers=towers)
    model, tokenizer = adapted(kind, lora)
    model.double()
    tokens = tokenizer(CAPTIONS)
    whole = merged(model)
    original = loaded(kind).model
    assert list(whole.state_dict()) == list(original.state_dict())
    assert {name for name, _ in whole.named_modules()} == {name for name, _ in original.named_modules()}
    expected = build(*_config(kind)).double().eval()
    expected.load_state_dict(by_hand(model, lora))
    with torch.no_grad():
        start, got = embeddings(original.double(), tokens), embeddings(model, tokens)
        assert torch.allclose(embeddings(expected, tokens), got, atol=1e-12)
        assert torch.allclose(embeddings(whole, tokens), got, atol=1e-12)
    changed = ((start - got).abs().amax(dim=1) > 1e-4).tolist()
    assert changed == ["image" in towers] * 3 + ["text" in towers] * 3  # the asked towers, and no other


def _config(kind):
    return CONFIGS[kind], {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}


@pytest.mark.parametrize("mode", ["train", "eval", "inference"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_of_attention_bypasses_the_adapters(kind, mode):
    """In eval mode without gradients torch has a fused kernel of its own for attention."""
    model, tokenizer = adapted(kind)
    tokens = tokenizer(CAPTIONS)
    model.train(mode == "train")
    whole = merged(model).train(mode == "train")
    with torch.inference_mode(mode == "inference"), torch.no_grad():
        got, expected = embeddings(model, tokens), embeddings(whole, tokens)
        apart = embeddings(loaded(kind).model, tokens)
    assert torch.allclose(got, expected, atol=1e-6)
    assert ((got - apart).abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_adding_it_changes_no_embedding(kind):
    model, tokenizer, *_ = loaded(kind)
    tokens = tokenizer(CAPTIONS)
    with torch.no_grad():
        before = embeddings(model, tokens)
        add_lora(model, Lora())
        assert torch.allclose(embeddings(model, tokens), before, atol=1e-6)
    assert type(model) is type(loaded(kind).model)


@pytest.mark.parametrize("kind", ["vit", "timm_vit"])
def test_short_text_goes_through_it(kind):
    model, tokenizer = adapted(kind)
    tokens = tokenizer(CAPTIONS)
    assert pads_to_longest(model)
    longest = int(tokens.argmax(dim=1).max()) + 1
    assert longest < tokens.shape[1]
    with torch.no_grad():
        assert torch.allclose(text_features(model, tokens[:, :longest]), text_features(model, tokens), atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [("attn",), ("mlp",), ("attn", "mlp")])
def test_every_adapter_has_the_gradient_of_the_merged_weights(kind, target):
    """The chain rule: dL/dB = s · dL/dW A^T, dL/dA = s · B^T dL/dW, with dL/dW of a plain model that has W merged."""
    lora = Lora(rank=2, alpha=3.0, target=target)
    model, tokenizer = adapted(kind, lora)
    model.double()
    plain, tokens = merged(model).requires_grad_(True), tokenizer(CAPTIONS)
    aim = torch.randn(6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for each in (model, plain):
        (embeddings(each, tokens) * aim).sum().backward()
    parameters, adapters = dict(model.named_parameters()), 0
    weights = dict(plain.named_parameters())
    for name, down in parameters.items():
        if not name.endswith("lora_A.default.weight"):
            continue
        layer, up = name.removesuffix(".lora_A.default.weight"), parameters[name.replace("lora_A", "lora_B")]
        place = layer.replace(".base_layer", "")
        weight = weights[f"{place}.in_proj_weight" if f"{place}.in_proj_weight" in weights else f"{place}.weight"]
        assert torch.allclose(up.grad, 1.5 * weight.grad @ down.T, atol=1e-12) and up.grad.abs().max() > 1e-9
        assert torch.allclose(down.grad, 1.5 * up.T @ weight.grad, atol=1e-12) and down.grad.abs().max() > 1e-9
        adapters += 1
    blocks = sum(2 if kind == "timm_vit" and tower == "image" else 1 for tower in ("image", "text"))
    blocks = blocks if kind != "timm_vit" else 1 + len(model.visual.trunk.blocks)
    assert adapters == blocks * 2 * len(target)


def test_only_the_matrices_and_the_temperature_train():
    model, _ = adapted("siglip", Lora(towers=("text",)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if ".lora_" not in name} == {"logit_scale", "logit_bias"}
    assert all(name.startswith(("text.", "logit")) for name in trained)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_frozen_weights_stay_bit_for_bit_and_the_rest_moves(checkpointing):
    """peft's own layer adds its change to the weights and takes it off at each forward; their last bits then drift."""
    model, tokenizer = adapted("vit", std=0.3)
    model.set_grad_checkpointing(checkpointing)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same = {name: id(parameter) for name, parameter in model.named_parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.5)
    tokens = tokenizer(CAPTIONS)
    for _ in range(5):
        optimizer.zero_grad()
        logits = model.logit_scale.exp() * image_features(model, PIXELS) @ text_features(model, tokens[:, :12]).T
        F.cross_entropy(logits, torch.arange(3)).backward()
        optimizer.step()
    with torch.no_grad():
        embeddings(model.eval(), tokens)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != (".lora_" in name or name == "logit_scale"), name
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == same  # DDP and EMA hold on to them
    list(model.modules())
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == same


def test_merging_leaves_the_model_alone():
    model, _ = adapted()
    before = copy.deepcopy(model.state_dict())
    whole = merged(model)
    for parameter in whole.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(".lora_A." in name for name in before) and not hasattr(whole, "peft_config")
    plain = loaded().model
    assert merged(plain) is plain


def test_half_precision_keeps_the_small_change():
    """In bfloat16 a change of 1e-3 of the weights would be lost in the sum."""
    model, _ = adapted("vit", std=0.3)
    attention = model.visual.transformer.resblocks[0].attn
    seen = []
    attention.base_layer.forward = lambda *_, **__: seen.append(attention.base_layer.in_proj_weight.clone())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        attention(torch.zeros(1, 2, 32))
    layer = "visual.transformer.resblocks.0.attn"
    state = model.state_dict()
    down, up = (state[f"{layer}.lora_{one}.default.weight"].double() for one in "AB")
    exact = state[f"{layer}.base_layer.in_proj_weight"].double() + 4 * up @ down
    assert seen[0].dtype == torch.float32 and torch.allclose(seen[0].double(), exact, atol=1e-6)


def test_dropout_acts_in_training_only():
    model, _ = adapted("vit", Lora(dropout=0.5, target=("mlp",)))
    with torch.no_grad():
        assert torch.equal(image_features(model, PIXELS), image_features(model, PIXELS))
        model.train()
        assert not torch.equal(image_features(model, PIXELS), image_features(model, PIXELS))


def test_the_first_values_follow_the_seed_and_merging_is_the_same_every_time():
    one, two, other = adapted(seed=1)[0], adapted(seed=1)[0], adapted(seed=2)[0]
    states = [merged(model).state_dict() for model in (one, two, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


@pytest.fixture
def checkpoint(tmp_path):
    """A .ckpt as training writes it, its model, and what else an encoder folder of it needs."""
    lora = Lora(rank=4, alpha=8.0, towers=("text",), target=("mlp",))
    model, tokenizer = adapted("siglip", lora)
    about = {
        "model_cfg": CONFIGS["siglip"],
        "preprocess_cfg": folder.preprocess_of(model),
        "training": {"steps": 3},
        "lora": dataclasses.asdict(lora),
    }
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "dualenc": about}, tmp_path / "x.ckpt")
    return tmp_path / "x.ckpt", model, tokenizer


def test_a_checkpoint_is_the_merged_encoder(checkpoint, tmp_path, monkeypatch):
    path, model, tokenizer = checkpoint
    saved = folder.Loaded(merged(model), tokenizer, CONFIGS["siglip"], {"steps": 3})
    mark = folder.save_folder(tmp_path / "encoder", saved)
    monkeypatch.setitem(sys.modules, "peft", None)  # reading needs no peft
    encoder = DualEncoder.load(path, device="cpu")
    assert encoder.fingerprint == mark == DualEncoder.load(tmp_path / "encoder", device="cpu").fingerprint
    tokens = tokenizer(CAPTIONS)
    with torch.no_grad():
        expected = text_features(model, tokens).numpy()
    assert np.allclose(encoder.embed_texts(CAPTIONS), expected, atol=1e-6)
    assert all(parameter.requires_grad for parameter in encoder.model.parameters())  # training can start from it
    assert list(encoder.model.state_dict()) == list(loaded("siglip").model.state_dict())


def test_a_checkpoint_of_other_sizes_is_one_line(checkpoint):
    path, *_ = checkpoint
    content = torch.load(path, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("c_fc.base_layer.weight"))
    content["state_dict"].pop(name.replace("base_layer.weight", "base_layer.bias"))
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"x\.ckpt: the weights do not fit.*c_fc\.bias") as error:
        folder.load(str(path))
    assert "\n" not in str(error.value)


def test_many_ranks_are_summed_to_the_last_bit():
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((64, 50), (30, 64)))
    weight = torch.randn(30, 50, generator=generator)
    state = {"x.base_layer.weight": weight, "x.lora_A.default.weight": down, "x.lora_B.default.weight": up}
    got = merged_state(state, 0.25)
    exact = np.zeros((30, 50), dtype=np.longdouble)
    for one in range(64):
        exact += np.outer(up[:, one].numpy().astype(np.longdouble), down[one].numpy().astype(np.longdouble))
    expected = (exact * np.longdouble(0.25) + weight.numpy()).astype(np.float32)
    assert list(got) == ["x.weight"] and np.array_equal(got["x.weight"].numpy(), expected)
    assert torch.equal(state["x.base_layer.weight"], weight)


@pytest.mark.parametrize(
    ("settings", "blocks", "message"),
    [
        ({"rank": 0}, (None, None), r"model\.lora\.rank is 0"),
        ({"alpha": 0.0}, (None, None), r"model\.lora\.alpha is 0\.0"),
        ({"alpha": float("nan")}, (None, None), r"model\.lora\.alpha is nan"),
        ({"dropout": 1.0}, (None, None), r"model\.lora\.dropout is 1\.0.*below 1"),
        ({"dropout": 0.1}, (None, None), r"dropout of inputs has no effect there.*\[mlp\]"),
        ({"towers": ()}, (None, None), r"model\.lora\.towers is \[\]; give one or both of image, text"),
        ({"towers": ("image", "image")}, (None, None), r"model\.lora\.towers is \['image', 'image'\]"),
        ({"towers": ("visual",)}, (None, None), r"model\.lora\.towers is \['visual'\]"),
        (
            {"target": ("out_proj",)},
            (None, None),
            r"\['out_proj'\]; give one or both of attn, mlp; attn adapts .*whole",
        ),
        ({}, (0, None), r"model\.image_blocks is 0, which freezes the image tower, but model\.lora\.towers has it"),
        ({"towers": ("text",)}, (None, 0), r"model\.text_blocks is 0"),
        ({"towers": ("text",)}, (2, None), r"model\.image_blocks is 2, but LoRA freezes all weights"),
    ],
)
def test_bad_settings_are_refused_before_there_is_a_model(settings, blocks, message):
    with pytest.raises(ValueError, match=message) as error:
        check_lora(Lora(**settings), *blocks)
    assert "\n" not in str(error.value)


def test_a_frozen_tower_may_stand_beside_it():
    check_lora(Lora(towers=("text",)), image_blocks=0)


@pytest.mark.parametrize(
    ("kind", "towers", "message"),
    [
        ("resnet", ("image", "text"), r"has image.*ModifiedResNet; set model\.lora\.towers to \['text'\]"),
        ("timm", ("image",), r"has image.*this image tower is a ResNet; leave model\.lora out"),
    ],
)
def test_towers_that_cannot_have_it_are_refused_untouched(kind, towers, message):
    model = loaded(kind).model
    names = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        add_lora(model, Lora(towers=towers))
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    add_lora(model, Lora(towers=("text",)))  # the text tower can


def test_blocks_of_another_build_are_refused():
    cfg = CONFIGS["vit"] | {"vision_cfg": CONFIGS["vit"]["vision_cfg"] | {"qk_norm": True}}
    with pytest.raises(ValueError, match="this image tower is a VisionTransformer"):
        add_lora(build(cfg, {}), Lora(towers=("image",)))
    model = loaded("timm_vit").model
    model.visual.trunk.blocks[0].attn = torch.nn.Identity()
    with pytest.raises(ValueError, match="this image tower is a VisionTransformer"):
        add_lora(model, Lora(towers=("image",)))


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'dualenc\[finetune\]'"):
        add_lora(loaded().model, Lora())


def test_dropout_of_the_adapters_is_on_while_frozen_parts_are_in_eval():
    model = loaded().model
    prepare(model, lora=Lora(rank=2, dropout=0.5, target=("mlp",)))
    model.train()
    keep_frozen_eval(model)
    found = [m for name, m in model.named_modules() if "lora_dropout" in name and isinstance(m, torch.nn.Dropout)]
    assert found and all(module.training for module in found)
    model.eval()
    keep_frozen_eval(model)
    assert not any(module.training for module in found)
