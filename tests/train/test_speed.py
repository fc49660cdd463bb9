"""Compiled towers give what plain ones give, under the same names, and are compiled a few times, not for every length."""

import pytest
import torch

from dualenc.model.towers import image_features, text_features
from dualenc.train.speed import compile_towers
from tests.small import loaded


@pytest.mark.parametrize("name", ["vit", "siglip"])
def test_towers_are_compiled_in_place(name):
    plain, model = loaded(name).model.train(), loaded(name).model.train()
    names, compiled = list(model.state_dict()), []

    def count(graph, _):
        compiled.append(graph)
        return graph.forward

    compile_towers(model, backend=count)
    assert list(model.state_dict()) == names
    for length in (9, 12, 7, 5, 11):
        tokens = torch.randint(1, 400, (3, length), generator=torch.Generator().manual_seed(length))
        tokens[:, -1] = 49407
        if name == "siglip":  # keeps its context length
            tokens = torch.nn.functional.pad(tokens, (0, 16 - length))
        images = torch.full((3, 3, 32, 32), length, dtype=torch.uint8)
        found = [(image_features(each, images), text_features(each, tokens)) for each in (model, plain)]
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        (found[0][0] @ found[0][1].T).square().sum().backward()
    assert len(compiled) == (3 if name == "vit" else 2)
    assert all(p.grad is not None for key, p in model.named_parameters() if "logit" not in key)
