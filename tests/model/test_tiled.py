"""Losses by tiles: equal to the definition at every size, in numbers of any size, and never a matrix of all pairs."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dualenc.model import tiled
from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss
from dualenc.model.pairs import by_groups
from tests.model.loss_cases import Case, both, cases, definition, features, ids, values_and_gradients
from tests.model.test_losses import assert_equal


@pytest.mark.parametrize("name", cases())
def test_every_option_equals_the_definition(name):
    for scale in (1e-3, 10.0, 5000.0):
        assert_equal(replace(cases()[name], scale=scale), 1, 3, 64)


@pytest.mark.parametrize(
    ("b", "t", "tile"), [(1, 1, 1), (1, 1, 4), (1, 7, 3), (7, 1, 3), (8, 8, 4), (9, 8, 4), (5, 11, 4), (6, 6, 5)]
)
def test_sizes_that_tiles_do_not_divide(b, t, tile):
    pairs = Pairs(torch.arange(b) % 3, torch.arange(t) % 3)
    assert_equal(Case(features(b, 4), features(t, 4, seed=1), pairs, label_smoothing=0.1), tile)


def extreme(name: str) -> Case:
    """Logits that overflow or vanish where nothing is subtracted from them, or a single number is."""
    image, text = features(9, 4), features(9, 4, seed=1)
    if name == "all opposite":
        return Case(image[:1].expand(9, 4) + 0.01 * image, -image[:1].expand(9, 4) + 0.01 * text, scale=100.0)
    if name == "one text opposite":  # to all images, as no other text is
        image = image[:1] + 0.1 * image
        return Case(image, torch.cat([-image[:1], image[1:] + 0.01 * text[1:]]), scale=100.0)
    if name == "one image opposite":
        text = text[:1] + 0.1 * text
        return Case(torch.cat([-text[:1], text[1:] + 0.01 * image[1:]]), text, scale=100.0)
    return Case(image, image + 0.1 * text, scale={"trained": 100.0, "huge": 2e4, "tiny": 1e-4, "zero": 0.0}[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", ["all opposite", "one text opposite", "one image opposite", "trained", "huge", "tiny", "zero"]
)
def test_logits_of_any_size(name, dtype):
    case = extreme(name)
    exact = values_and_gradients(definition, case)
    # float32 rounds logits of 100 to 1e-5, which "trained" does not feel: its gradients are 1 less nearly 1
    limit = 1e-10 if dtype == torch.float64 else 1e-4 if name == "trained" else 1e-5 * max(1.0, case.scale)
    for tile in (0, 4):
        for mine, theirs in zip(values_and_gradients(both, case, dtype=dtype, tile=tile), exact, strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a.isfinite().all() and (a - b).abs().max() <= limit * b.abs().max().clamp(min=0.1)


@pytest.mark.parametrize(
    ("name", "fallen"),
    [("trained", False), ("all opposite", True), ("one text opposite", True), ("one image opposite", True)],
)
def test_one_exponential_is_enough_but_where_sums_would_vanish(name, fallen, monkeypatch):
    used = []
    careful = tiled._two_exponentials
    monkeypatch.setattr(tiled, "_two_exponentials", lambda *given: used.append(1) or careful(*given))
    values_and_gradients(both, extreme(name), dtype=torch.float32, tile=4)
    assert bool(used) is fallen


@pytest.mark.parametrize("name", cases())
def test_devices_that_cannot_be_asked_take_two_exponentials(name, monkeypatch):
    """As on a GPU, where looking at a number would wait for the device."""
    monkeypatch.setattr(tiled, "_shift", lambda *_: None)
    for scale in (10.0, 5000.0):
        assert_equal(replace(cases()[name], scale=scale), 3)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives back."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements = max([self.elements, *(x.numel() for x in tree_leaves(out) if isinstance(x, torch.Tensor))])
        return out


B, WIDTH, TILE = 64, 8, 16


def large() -> dict[str, Case]:
    image, text, captions = features(B, WIDTH), features(B, WIDTH, seed=1), features(B, 3, WIDTH, seed=2)
    group = torch.arange(B) // 2
    group[5] = -1
    marks = {"image_marks": torch.stack([group % 7, group % 5], 1), "text_marks": group % 7}
    three = {"text": group.unsqueeze(1).expand(B, 3), "text_marks": (group % 7).unsqueeze(1).expand(B, 3)}
    return {
        "rows": Case(image, text),
        "groups, marks": Case(image, text, Pairs(group, group, **marks), label_smoothing=0.1),
        "all options": Case(image, captions, Pairs(group, **(marks | three)), label_smoothing=0.1, dims=(4, 8)),
        "vanishing": Case(image[:1] + 0.01 * image, 0.01 * text - image[:1], scale=100.0),
    }


@pytest.mark.parametrize("name", large())
def test_no_matrix_of_all_pairs_is_ever_made(name):
    case = large()[name]
    sizes = {}
    for tile in (0, TILE):
        with Largest() as largest:
            values_and_gradients(both, case, dtype=torch.float32, tile=tile)
        sizes[tile] = largest.elements
    assert sizes[0] >= B * B  # the meter sees one where there is one
    assert sizes[TILE] <= max(B * WIDTH * (3 if case.text.ndim == 3 else 1), TILE * TILE)


def test_marks_are_looked_for_only_where_a_tile_holds_them():
    """Captions that are equal stand in the first tile: no other has a mask."""
    pairs = Pairs(ids(range(8)), ids(range(8)), ids([[1], [1], *([k] for k in range(2, 8))]), ids([1, 1, *range(2, 8)]))
    image = features(8, 3)
    relations = by_groups(pairs.image, pairs.image, pairs.text, (pairs.image_marks, pairs.text_marks), image)
    masks = {(r, c): relations.marked(slice(4 * r, 4 * r + 4), slice(4 * c, 4 * c + 4)) for r in (0, 1) for c in (0, 1)}
    assert masks[0, 0] is not None and masks[0, 0].nonzero().tolist() == [[0, 1], [1, 0]]
    assert [masks[k] for k in ((0, 1), (1, 0), (1, 1))] == [None] * 3


@pytest.mark.parametrize("wanted", ["image", "text", "scale", "bias"])
def test_one_gradient_alone(wanted):
    """What is not trained gets none, and the others' stay the same."""
    case = cases()["all options"]
    whole = dict(zip(("image", "text", "scale", "bias"), values_and_gradients(both, case)[1][1:], strict=True))
    given = {"image": normalize(case.image, dim=-1), "text": normalize(case.text, dim=-1)}
    given |= {
        "scale": torch.tensor(case.scale, dtype=torch.float64),
        "bias": torch.tensor(case.bias, dtype=torch.float64),
    }
    given[wanted].requires_grad_()
    (3 * both(case, *given.values(), tile=3)[1]).backward()
    assert torch.allclose(given[wanted].grad, whole[wanted], rtol=1e-10, atol=1e-12)
    assert [name for name, x in given.items() if x.grad is not None] == [wanted]


def test_without_gradients_the_value_is_the_same():
    case = cases()["all options"]
    given = [normalize(case.image, dim=-1), normalize(case.text, dim=-1), torch.tensor(10.0), torch.tensor(-5.0)]
    with torch.no_grad():
        values = both(case, *given, tile=3)
    trained = both(case, given[0].requires_grad_(), *given[1:], tile=3)
    assert all(torch.equal(a, b) for a, b in zip(values, trained, strict=True))


def test_backward_twice_gives_the_same_twice():
    case = cases()["marks, smoothed"]
    image, text = (normalize(x, dim=-1).requires_grad_() for x in (case.image, case.text))
    scale, bias = torch.tensor(10.0), torch.tensor(-5.0)
    for loss in both(case, image, text, scale, bias, tile=3):
        first = torch.autograd.grad(loss, (image, text), retain_graph=True)
        second = torch.autograd.grad(loss, (image, text))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_tiles_are_chosen_by_size():
    cpu = torch.device("cpu")
    assert tiled.edge(None, tiled.PAYS - 1, tiled.PAYS, cpu) == 0 < tiled.edge(None, tiled.PAYS, tiled.PAYS, cpu)
    assert tiled.edge(0, 10**6, 10**6, cpu) == 0 and tiled.edge(7, 2, 2, cpu) == 7


def test_a_batch_that_is_not_finite_has_no_finite_loss():
    """A run that went wrong is seen, not hidden."""
    image, text = (normalize(features(5, 3, seed=seed), dim=1) for seed in (0, 1))
    image[2, 1] = math.nan
    for tile in (0, 2):
        assert contrastive_loss(image, text, torch.tensor(10.0), tile=tile).isnan()
        assert sigmoid_loss(image, text, torch.tensor(10.0), torch.tensor(-5.0), tile=tile).isnan()
