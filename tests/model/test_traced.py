"""The text tower as one graph: the rows of the module it was made of, whatever comes in."""

import numpy as np
import pytest
import torch

from dualenc.model import traced
from dualenc.model.encoder import DualEncoder
from dualenc.model.towers import text_features
from dualenc.model.traced import traced_text
from tests.model.test_towers import CAUSAL, many_captions
from tests.small import loaded


@pytest.mark.parametrize("name", CAUSAL)
def test_equals_the_module_for_any_number_of_texts_and_tokens(name):
    model, tokenizer, *_ = loaded(name)
    tower = traced_text(model.eval())
    assert tower is not None
    with torch.inference_mode():
        for count in (1, 2, 7, 40):
            tokens = many_captions(tokenizer, count)
            longest = int(tokens.argmax(dim=1).max()) + 1
            for length in (longest, tokens.shape[1]):
                rows = tower(tokens[:, :length])
                assert torch.allclose(rows, text_features(model, tokens[:, :length]), atol=1e-6)
                assert torch.allclose(rows.norm(dim=1), torch.ones(count), atol=1e-6)


def test_an_encoder_embeds_the_same_texts_alike(monkeypatch):
    encoder = DualEncoder(loaded("vit"), device="cpu")
    texts = [*("a red circle left of " * (i % 2) + str(i) for i in range(300)), "word " * 40]
    before, calls = encoder.embed_texts(texts), []
    assert encoder.trace_text()
    tower = encoder._text_tower
    monkeypatch.setattr(encoder, "_text_tower", lambda tokens: calls.append(tokens.shape) or tower(tokens))
    np.testing.assert_allclose(encoder.embed_texts(texts), before, atol=1e-6)
    assert len(calls) == 2 and calls[0][1] < calls[1][1] == 16  # in chunks of 256, cut at their lengths


def test_bfloat16_too():
    model, tokenizer, *_ = loaded("vit")
    scale = model.logit_scale.data
    model.eval().bfloat16()
    model.logit_scale.data = scale
    tower = traced_text(model)
    with torch.inference_mode():
        tokens = tokenizer(["a red circle", "two"])
        assert (tower(tokens) - text_features(model, tokens)).abs().max() <= 0.01


def test_none_where_there_is_no_graph(monkeypatch):
    assert traced_text(loaded("siglip").model) is None  # not causal

    def unable(*_, **__):
        raise RuntimeError("cannot be traced")

    monkeypatch.setattr(torch.jit, "trace", unable)
    assert traced_text(loaded("vit").model) is None


def test_none_where_the_graph_gives_other_rows(monkeypatch):
    model = loaded("vit").model.eval()
    assert traced_text(model) is not None
    monkeypatch.setattr(traced, "text_features", lambda model, tokens: text_features(model, tokens) + 1e-4)
    assert traced_text(model) is None


def test_none_where_the_length_were_a_constant(monkeypatch):
    def constant(text):
        cut = traced._cut_to_length(text)
        return lambda tokens: cut(torch.nn.functional.pad(tokens, (0, 3 - tokens.shape[1].item())))

    monkeypatch.setattr(traced, "_cut_to_length", constant)
    assert traced_text(loaded("vit").model.eval()) is None
