"""Weights between two encoders: sums by hand, ends bit for bit, and batch-norm statistics of averaged weights."""

from __future__ import annotations

import math

import pytest
import torch

from dualenc.model.folder import fingerprint, load, preprocess_of
from dualenc.model.interpolate import check_alike, interpolate, interpolate_state, measure_statistics, stale
from dualenc.model.towers import image_features
from tests.small import CONFIGS, loaded


@pytest.fixture(scope="module")
def pair():
    """Two encoders of one architecture with unlike weights, temperatures and batch-norm statistics."""

    def make(name):
        start, tuned = loaded(name, seed=1), loaded(name, seed=2)
        with torch.no_grad():
            start.model.logit_scale.fill_(math.log(10.0))
            tuned.model.logit_scale.fill_(math.log(40.0))
        for seed, one in enumerate((start, tuned)):
            generator = torch.Generator().manual_seed(seed)
            for key, value in one.model.state_dict().items():
                if "running" in key:
                    value.copy_(torch.rand(value.shape, generator=generator))
                if "num_batches" in key:
                    value.fill_(10 * seed + 7)
        return start, tuned

    return {name: make(name) for name in ("vit", "resnet", "siglip")}


def bits(state):
    return {name: value.contiguous().view(-1).view(torch.uint8).tolist() for name, value in state.items()}


def batches(count, size=6, broken=(), seed=0):
    rng = torch.Generator().manual_seed(seed)
    for number in range(count):
        image = torch.randint(0, 256, (size, 3, 32, 32), generator=rng, dtype=torch.uint8)
        valid = torch.tensor([number * size + i not in broken for i in range(size)])
        yield {"image": image, "text": torch.ones(size, 4, dtype=torch.int64), "valid": valid}


def test_a_state_by_hand():
    start = {"w": torch.tensor([1.0, -0.0, 0.1]), "logit_scale": torch.tensor(1.0), "n": torch.tensor([3, 4])}
    tuned = {"w": torch.tensor([5.0, -0.0, 0.1]), "logit_scale": torch.tensor(3.0), "n": torch.tensor([8, 9])}
    between = interpolate_state(start, tuned, 0.25)
    assert between["w"].tolist() == [2.0, -0.0, torch.tensor(0.1).item()]
    assert math.copysign(1, between["w"][1]) == -1  # what both have stays as it is, sign of zero included
    assert between["logit_scale"].item() == 1.5
    assert between["n"].tolist() == [8, 9]
    assert {name: value.dtype for name, value in between.items()} == {k: v.dtype for k, v in start.items()}
    assert start["w"].tolist() == [1.0, -0.0, torch.tensor(0.1).item()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_rounded_once(dtype):
    one, other = torch.rand(200, dtype=dtype), torch.rand(200, dtype=dtype)
    between = interpolate_state({"w": one}, {"w": other}, 0.3)["w"]
    expected = [0.7 * a + 0.3 * b for a, b in zip(one.double().tolist(), other.double().tolist(), strict=True)]
    assert torch.equal(between, torch.tensor(expected, dtype=torch.float64).to(dtype))


def test_the_ends_are_bit_for_bit_even_where_sums_would_not_be():
    start = {"w": torch.tensor([-0.0, float("inf"), 1e-45])}
    tuned = {"w": torch.tensor([2.0, 1.0, float("-inf")])}
    assert bits(interpolate_state(start, tuned, 0)) == bits(start)
    assert bits(interpolate_state(start, tuned, 1.0)) == bits(tuned)
    interpolate_state(start, tuned, 0)["w"].zero_()
    assert start["w"][1] == float("inf")  # a copy


def test_temperature_is_the_geometric_mean(pair):
    between = interpolate(*pair["vit"], 0.5)
    assert between.model.logit_scale.exp().item() == pytest.approx(20.0, rel=1e-6)  # of 10 and 40


def test_logit_bias_is_averaged(pair):
    start, tuned = pair["siglip"]
    with torch.no_grad():
        start.model.logit_bias.fill_(-10.0)
        tuned.model.logit_bias.fill_(-6.0)
    assert interpolate(start, tuned, 0.25).model.logit_bias.item() == -9.0


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_ends_have_the_fingerprints_of_the_two_and_need_no_data(pair, name):
    start, tuned = pair[name]
    marks = [fingerprint(one.model, one.tokenizer) for one in (start, tuned)]
    ends = [interpolate(start, tuned, alpha) for alpha in (0, 1)]
    assert [fingerprint(one.model, one.tokenizer) for one in ends] == marks
    assert [fingerprint(one.model, one.tokenizer) for one in (start, tuned)] == marks
    assert marks[0] != marks[1]
    assert ends[0].provenance["interpolated"] == {"alpha": 0}


def test_every_tensor_of_an_encoder_is_between(pair):
    start, tuned = (one.model.state_dict() for one in pair["vit"])
    between = interpolate(*pair["vit"], 0.4).model.state_dict()
    assert between.keys() == start.keys()
    for name, value in between.items():
        expected = 0.6 * start[name].double() + 0.4 * tuned[name].double()
        assert torch.equal(value, expected.float()), name


def test_statistics_are_exactly_those_of_one_batch(pair):
    """The first batch norm of the stem: mean and variance of what its convolution gives, by hand."""
    (batch,) = batches(1)
    between = interpolate(*pair["resnet"], 0.5, [batch])
    norm = between.model.visual.bn1
    cfg = between.model.visual.preprocess_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        seen = between.model.visual.conv1((batch["image"].float() / 255 - mean) / std).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, seen.mean(1), atol=1e-5)
    assert torch.allclose(norm.running_var, seen.var(1, unbiased=True), atol=1e-5)
    assert norm.num_batches_tracked == pair["resnet"][1].model.visual.bn1.num_batches_tracked == 17


def test_statistics_of_several_batches_are_their_mean(pair):
    some = list(batches(3))
    each = [interpolate(*pair["resnet"], 0.5, [batch]).model.state_dict() for batch in some]
    together = interpolate(*pair["resnet"], 0.5, iter(some)).model.state_dict()
    checked = 0
    for name, value in together.items():
        if "running" in name:
            assert torch.allclose(value, torch.stack([one[name] for one in each]).mean(0), atol=1e-5), name
            checked += 1
    assert checked > 10


def test_every_norm_is_measured_and_batches_then_normalise_as_in_training(pair):
    """With its own statistics (biased variance apart) a batch gives in eval mode what it gives in train mode."""
    (batch,) = batches(1, size=64)
    between = interpolate(*pair["resnet"], 0.5, [batch])
    assert not any(module.training for module in between.model.modules())
    with torch.no_grad():
        measured = image_features(between.model, batch["image"])
        for name, module in between.model.named_modules():
            if name in stale(*pair["resnet"]):
                assert module.momentum == 0.1
                module.train()
        trained = image_features(between.model, batch["image"])
    assert (measured * trained).sum(1).min() > 0.999


def test_statistics_are_deterministic_and_leave_out_what_does_not_decode(pair):
    broken = list(batches(3, broken=(4, *range(6, 11))))  # one of the first batch, all but one of the second
    again = interpolate(*pair["resnet"], 0.5, batches(3, broken=(4, *range(6, 11))))
    for batch in broken:
        batch["image"][~batch["valid"]] = 0
    once = interpolate(*pair["resnet"], 0.5, broken)
    assert bits(once.model.state_dict()) == bits(again.model.state_dict())
    kept = [{k: v[batch["valid"]] for k, v in batch.items()} for batch in (broken[0], broken[2])]
    assert bits(once.model.state_dict()) == bits(interpolate(*pair["resnet"], 0.5, kept).model.state_dict())


def test_norms_of_the_text_tower_are_measured_on_texts(pair):
    start, tuned = loaded("vit", seed=1), loaded("vit", seed=2)
    for one in (start, tuned):
        one.model.ln_final = torch.nn.Sequential(one.model.ln_final, torch.nn.BatchNorm1d(4))
    assert stale(start, tuned) == ["ln_final.1"]
    between = interpolate(start, tuned, 0.5, batches(2)).model.ln_final[1]
    assert not torch.equal(between.running_mean, torch.zeros(4))
    with pytest.raises(ValueError, match="no batch with two images that decode"):
        measure_statistics(tuned.model, ["ln_final.1"], [])


def test_data_is_needed_where_the_tower_with_norms_was_tuned(pair):
    start, tuned = pair["resnet"]
    with pytest.raises(ValueError, match=r"batch norms \(such as visual\.bn1\).*--data SHARDS"):
        interpolate(start, tuned, 0.5)
    assert stale(*pair["vit"]) == []


def test_a_frozen_towers_statistics_stay(pair):
    """Only texts were tuned: image embeddings are the same at every alpha, bit for bit."""
    start, tuned = loaded("resnet", seed=1), loaded("resnet", seed=2)
    for name, value in tuned.model.state_dict().items():
        if name.startswith("visual."):
            value.copy_(start.model.state_dict()[name])
    assert stale(start, tuned) == []
    between = interpolate(start, tuned, 0.3).model.state_dict()
    visual = {name: value for name, value in start.model.state_dict().items() if name.startswith("visual.")}
    assert bits({name: between[name] for name in visual}) == bits(visual)
    assert not torch.equal(between["token_embedding.weight"], start.model.state_dict()["token_embedding.weight"])


@pytest.mark.parametrize("alpha", [-0.1, 1.01, float("nan"), float("inf")])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(ValueError, match=r"alpha .* lies outside 0\.\.1"):
        interpolate_state({}, {}, alpha)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: loaded("resnet"), "architecture: vision_cfg/layers is 1 and"),
        (lambda: loaded("quick_gelu"), "architecture: quick_gelu is False and True"),
        (lambda: loaded("vit", width=64), "architecture: text_cfg/width is 32 and 64"),
        (lambda: loaded("siglip"), "architecture: "),
        (lambda: _preprocessed(), r"preprocessing: mean is \[0\.5, 0\.4, 0\.3\] and \[0\.1, 0\.2, 0\.3\]"),
        (lambda: _bias(), r"architecture: tensor logit_bias is None and \[\] torch\.float32"),
        (lambda: _tokens(), "tokenizer: clean is lower and whitespace"),
    ],
)
def test_encoders_that_differ_are_refused(other, says):
    with pytest.raises(ValueError, match=f"A and B differ in their {says}") as error:
        check_alike(loaded("vit"), other(), ("A", "B"))
    assert "\n" not in str(error.value)


def _preprocessed():
    one = loaded("vit")
    one.model.visual.preprocess_cfg["mean"] = (0.1, 0.2, 0.3)
    return one


def _bias():
    one = loaded("vit")
    one.model.logit_bias = torch.nn.Parameter(torch.zeros([]))
    return one


def _tokens():
    one = loaded("vit", tokenizer_kwargs={"clean": "whitespace"})
    return one._replace(model_cfg=CONFIGS["vit"])


def test_what_leaves_no_trace_in_the_function_may_differ():
    start, tuned = loaded("vit"), loaded("vit", seed=3)
    vision = tuned.model_cfg["vision_cfg"] | {"patch_dropout": 0.5, "ls_init_value": None}
    check_alike(start, tuned._replace(model_cfg=tuned.model_cfg | {"vision_cfg": vision, "init_logit_scale": 1.0}))


def test_a_lora_checkpoint_is_merged_before_it_is_averaged(tmp_path):
    """W + alpha · (lora.alpha / rank) B A, on the line between the base and the checkpoint that has the matrices apart."""
    base, layer = loaded("vit"), "transformer.resblocks.0.mlp.c_fc"
    generator = torch.Generator().manual_seed(0)
    down, up = torch.rand(2, 32, generator=generator), torch.rand(128, 2, generator=generator)
    state = {f"model.{k}": v for k, v in base.model.state_dict().items()}
    for name in ("weight", "bias"):
        state[f"model.{layer}.base_layer.{name}"] = state.pop(f"model.{layer}.{name}")
    state |= {f"model.{layer}.lora_A.default.weight": down, f"model.{layer}.lora_B.default.weight": up}
    about = {"model_cfg": base.model_cfg, "preprocess_cfg": preprocess_of(base.model)}
    about |= {"lora": {"rank": 2, "alpha": 6.0}, "training": {}}
    torch.save({"state_dict": state, "dualenc": about}, tmp_path / "tuned.ckpt")
    tuned = load(str(tmp_path / "tuned.ckpt"))
    check_alike(base, tuned)
    between = interpolate(base, tuned, 0.25).model.state_dict()
    weight = base.model.state_dict()[f"{layer}.weight"]
    assert torch.allclose(between[f"{layer}.weight"], weight + 0.25 * 3.0 * up @ down, atol=1e-6)
    rest = {k: v for k, v in base.model.state_dict().items() if k != f"{layer}.weight"}
    assert bits({k: between[k] for k in rest}) == bits(rest)
