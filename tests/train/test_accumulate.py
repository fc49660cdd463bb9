"""Accumulation is checked against one graph over all pieces, run from the same state of the generators."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies
from torch import nn

from dualenc.model.blocks import SIDES
from dualenc.model.towers import build, image_features, text_features
from dualenc.train.accumulate import CachedFeatures, average, check_pieces, cut, random_state, statistics_kept
from tests.small import CONFIGS

ROWS, CAPTIONS = 8, 2


def towers(kind="vit", dropout=0.0):
    """Towers in float64, in training; with dropout, patches of images and units of texts are dropped."""
    cfg = CONFIGS[kind] | {"text_cfg": CONFIGS[kind]["text_cfg"] | {"vocab_size": 64}}
    if dropout:
        cfg |= {"vision_cfg": cfg["vision_cfg"] | {"patch_dropout": 0.5}}
    torch.manual_seed(1)
    model = build(cfg, {}).double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(
                module.weight, 0.5, 1.5
            )  # open_clip begins with zeros, behind which nothing has a gradient
    if dropout:
        model.ln_final = nn.Sequential(model.ln_final, nn.Dropout(dropout))
    return model


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    texts = torch.randint(1, 62, (ROWS, CAPTIONS, 16), generator=generator)
    texts[..., -1] = 63  # the end of text
    return {
        "image": torch.randint(0, 256, (ROWS, 3, 32, 32), dtype=torch.uint8, generator=generator),
        "texts": texts,
        "key": [f"k{i}" for i in range(ROWS)],
        "valid": torch.ones(ROWS, dtype=torch.bool),
        "dropped": [(0, "image", 1)] * ROWS,
        "truncated": 3,
    }


def embed(model):
    def texts(part):
        return text_features(model, part["texts"].flatten(0, 1)).unflatten(0, (-1, CAPTIONS))

    return {"image": lambda part: image_features(model, part["image"]), "text": texts}


def loss_of(model, image, text):
    wide = torch.promote_types(image.dtype, torch.float32)
    image, text, target = image.to(wide), text.to(wide), torch.arange(len(image))
    logits = [model.logit_scale.exp() * image @ text[:, k].T for k in range(CAPTIONS)]
    return sum(F.cross_entropy(part, target) + F.cross_entropy(part.T, target) for part in logits)


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def in_one_graph(model, batch, pieces):
    """The same rows, random draws and statistics, with nothing cached."""
    rows = {side: [] for side in SIDES}
    for part in cut(batch, pieces):
        for side in SIDES:
            rows[side].append(embed(model)[side](part))
    loss = loss_of(model, *(torch.cat(rows[side]) for side in SIDES))
    loss.backward()
    return loss.detach(), gradients(model)


def cached(model, batch, pieces, scale=1.0, **more):
    features = CachedFeatures(embed(model), batch, pieces, model, **more)
    loss = loss_of(model, features.image, features.text)
    (loss * scale).backward()
    features.backward(check=True)
    return loss.detach(), gradients(model)


def assert_equal(found, expected, rtol=1e-11):
    assert found[0] == pytest.approx(float(expected[0]), rel=rtol)
    assert found[1].keys() == expected[1].keys() and len(found[1]) > 20 and "logit_scale" in found[1]
    for name, value in expected[1].items():
        assert value.any(), name
        assert float((found[1][name] - value).norm()) <= rtol * float(value.norm()), name


@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_gradients_are_those_of_the_whole_batch(batch, pieces):
    model = towers()
    assert_equal(cached(model, batch, pieces), in_one_graph(model, batch, 1))


def test_what_a_scaler_multiplies_the_loss_with_reaches_the_weights_once(batch):
    model = towers()
    loss, plain = cached(model, batch, 4)
    _, scaled = cached(model, batch, 4, scale=1024.0)
    assert_equal((loss, scaled), (loss, {name: value * 1024 for name, value in plain.items()}))


@pytest.mark.parametrize("pieces", [1, 4])
def test_dropout_is_replayed(batch, pieces):
    model = towers(dropout=0.3)
    torch.manual_seed(7)
    expected = in_one_graph(model, batch, pieces)
    after = torch.get_rng_state()
    torch.manual_seed(8)
    other = in_one_graph(model, batch, pieces)
    assert abs(other[0] - expected[0]) > 1e-3  # the draws matter
    torch.manual_seed(7)
    assert_equal(cached(model, batch, pieces), expected)
    assert torch.equal(torch.get_rng_state(), after)


def test_what_is_drawn_between_the_passes_is_not_drawn_again(batch):
    model = towers(dropout=0.3)
    features = CachedFeatures(embed(model), batch, 4, model)
    loss_of(model, features.image, features.text).backward()
    torch.rand(3)
    state = torch.get_rng_state()
    features.backward(check=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("kind", ["resnet", "timm"])
def test_batch_norm_takes_a_pieces_rows_and_moves_once(batch, kind):
    one, two = towers(kind), towers(kind)
    start = {name: value.clone() for name, value in one.named_buffers()}
    expected, found = in_one_graph(one, batch, 2), cached(two, batch, 2)
    assert_equal(found, expected, 1e-9)
    buffers, moved = dict(one.named_buffers()), 0
    for name, value in two.named_buffers():
        assert torch.equal(value, buffers[name]), name
        if name.endswith("num_batches_tracked"):
            assert int(value - start[name]) == 2
            moved += 1
    assert moved > 5
    assert all(m.track_running_stats for m in two.modules() if isinstance(m, nn.BatchNorm2d))


def test_batch_norm_that_does_not_move_stays_so():
    model = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(2).eval())
    before = [module.track_running_stats for module in model]
    with pytest.raises(KeyError), statistics_kept(model):
        assert [module.track_running_stats for module in model] == [False, False, True]
        raise KeyError
    assert [module.track_running_stats for module in model] == before == [True, False, True]


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_the_same_in_both_passes(batch, inside):
    """Within one region of autocast, whose cache of cast weights must not outlive the first pass, and as Lightning does it."""
    model = towers().float()

    def half():
        return torch.autocast("cpu", torch.bfloat16)

    with half():
        expected = in_one_graph(model, batch, 4)
        plain = cached(model, batch, 4) if inside else None
    if not inside:
        with half():
            features = CachedFeatures(embed(model), batch, 4, model, context=half)
            loss = loss_of(model, features.image, features.text)
        loss.backward()
        features.backward(check=True)
        plain = loss.detach(), gradients(model)
    assert_equal(plain, expected, 0.01)  # how a sum of four is rounded in bfloat16
    full = cached(model, batch, 4)[1]
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    apart = [float((other[1][name] - full[name]).norm()) for other in (expected, plain)]
    assert min(apart) > 1e-3 * float(full[name].norm())  # half precision it was


def test_weights_cast_in_the_first_pass_are_forgotten(batch, monkeypatch):
    """Which torch of today does by itself (pytorch issue 158232), and that of other versions does not."""
    model, seen = towers(), []
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: seen.append("cleared"))
    plain = embed(model)
    noted = {side: lambda part, side=side: (seen.append(side), plain[side](part))[1] for side in SIDES}
    CachedFeatures(noted, batch, 2, model)
    assert seen == [*SIDES, *SIDES, "cleared"]


def test_towers_see_pieces_first_without_graph_then_with(batch):
    model, calls = towers(), []

    def noted(side):
        def run(part):
            calls.append((side, part["key"][0], len(part["image"]), torch.is_grad_enabled()))
            return embed(model)[side](part)

        return run

    features = CachedFeatures({side: noted(side) for side in SIDES}, batch, 4, model)
    assert features.image.is_leaf and features.text.is_leaf and features.text.shape == (ROWS, CAPTIONS, 16)
    first = [(side, f"k{i}", 2, False) for i in (0, 2, 4, 6) for side in SIDES]
    assert calls == first
    loss_of(model, features.image, features.text).backward()
    features.backward()
    assert sorted(calls[8:]) == sorted((side, key, rows, True) for side, key, rows, _ in first)


@pytest.mark.parametrize("frozen", SIDES)
def test_a_frozen_tower_is_not_run_again(batch, frozen):
    model, calls = towers(), []
    for name, parameter in model.named_parameters():
        mine = "image" if name.startswith("visual.") else "text"
        parameter.requires_grad_(name == "logit_scale" or mine != frozen)
    expected = in_one_graph(model, batch, 4)
    plain = embed(model)
    counted = {side: lambda part, side=side: (calls.append(side), plain[side](part))[1] for side in SIDES}
    features = CachedFeatures(counted, batch, 4, model)
    assert not getattr(features, frozen).requires_grad
    loss = loss_of(model, features.image, features.text)
    loss.backward()
    features.backward(check=True)
    assert calls.count(frozen) == 4 and len(calls) == 12
    found = gradients(model)
    assert any(name.startswith("visual.") for name in found) == (frozen == "text")
    for name, value in expected[1].items():
        assert float((found.pop(name) - value).norm()) <= 1e-11 * float(value.norm()), name
    assert not found


def test_a_second_pass_that_differs_is_told(batch):
    model = towers(dropout=0.3)
    plain, generator = embed(model), torch.Generator().manual_seed(0)  # one that nobody puts back

    def noisy(part):
        rows = plain["image"](part)
        return F.normalize(rows + 0.05 * torch.randn(rows.shape, generator=generator, dtype=rows.dtype), dim=-1)

    features = CachedFeatures(plain | {"image": noisy}, batch, 2, model)
    loss_of(model, features.image, features.text).backward()
    with pytest.raises(RuntimeError, match=r"second pass of model\.accumulate 2 gave embeddings 0\.\d+ away") as error:
        features.backward(check=True)
    assert "\n" not in str(error.value)


@given(strategies.integers(1, 5), strategies.integers(1, 4))
def test_pieces_are_the_batch_in_order(pieces, share):
    rows = pieces * share
    batch = {
        "valid": torch.ones(rows, dtype=torch.bool),
        "group": torch.arange(rows),
        "key": [str(i) for i in range(rows)],
        "all_text": torch.zeros(rows, 4),
        "text_row": torch.zeros(rows),
        "dropped": [(0, "image", 1)] * rows,
        "truncated": 2,
        "scalar": torch.tensor(3),
        "other": torch.zeros(rows + 1, 2),
    }
    parts = cut(batch, pieces)
    assert len(parts) == pieces and all(part.keys() == batch.keys() for part in parts)
    assert torch.equal(torch.cat([part["group"] for part in parts]), batch["group"])
    assert [key for part in parts for key in part["key"]] == batch["key"]
    for part in parts:
        assert len(part["valid"]) == len(part["key"]) == len(part["group"]) == share
        assert all(
            part[name] is batch[name] for name in ("all_text", "text_row", "dropped", "scalar", "other", "truncated")
        )


def test_a_batch_that_does_not_divide_is_refused(batch):
    with pytest.raises(
        ValueError, match=r"batch_size 8 does not divide by 3 \(1 ranks × model\.accumulate 3\)"
    ) as error:
        cut(batch, 3)
    assert "set it to 6 or another multiple of 3" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match="set it to 8 or another multiple of 8"):
        check_pieces(4, 4, 2)
    check_pieces(4, 16, 2)


def test_one_process_averages_with_nobody():
    model = nn.Linear(2, 2)
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.grad.clone()
    average(model)
    assert torch.equal(model.weight.grad, before)


def test_the_state_of_generators_is_a_copy():
    state = random_state(torch.device("cpu"))
    drawn = torch.rand(3)
    torch.set_rng_state(state[0])
    assert torch.equal(torch.rand(3), drawn) and len(state) == 1
