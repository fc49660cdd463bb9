"""Prompts that share their beginnings: as if each had been embedded alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualenc.model import shared_prefix
from dualenc.model.encoder import DualEncoder
from dualenc.model.shared_prefix import embed_prompts, packs
from tests.small import loaded

STARTS, NAMES, ENDS = ("a photo of a", "a photo of the", "art of"), ("cat", "wow!!fox", "owl"), ("", ".", " in water")
PROMPTS = [f"{start} {name}{end}" for start in STARTS for name in NAMES for end in ENDS]


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=30),
    st.integers(1, 40),
)
def test_every_prompt_is_a_path_from_a_root(prompts, nodes):
    prompts = sorted([*prompt, 9] for prompt in prompts)
    ids = np.array([prompt + [0] * (8 - len(prompt)) for prompt in prompts])
    found, first = [], 0
    for pack in packs(ids, nodes):
        own = prompts[first : first + len(pack.ends)]
        first += len(own)
        assert len(pack.tokens) <= nodes or len(own) == 1
        assert len(pack.tokens) == len({tuple(p[:k]) for p in own for k in range(1, len(p) + 1)})  # each once
        for end in pack.ends:
            path = np.flatnonzero(pack.sees[end])
            assert pack.depth[path].tolist() == list(range(len(path)))
            assert not pack.sees[path][:, path][np.triu_indices(len(path), 1)].any()  # nothing sees what comes after it
            found.append(pack.tokens[path].tolist())
    assert found == prompts


@pytest.fixture
def tried(monkeypatch):
    """How many prompts went through packs."""
    counts, plain = [], shared_prefix.features
    monkeypatch.setattr(shared_prefix, "features", lambda model, ids: (counts.append(len(ids)), plain(model, ids))[1])
    return counts


@pytest.mark.parametrize("name", ["vit", "quick_gelu", "timm"])
@pytest.mark.parametrize("nodes", [5, 20, 384])
def test_as_if_each_were_embedded_alone(name, nodes, monkeypatch):
    plain, tried = shared_prefix.features, []
    monkeypatch.setattr(
        shared_prefix, "features", lambda model, ids: (tried.append(len(ids)), plain(model, ids, nodes))[1]
    )
    encoder = DualEncoder(loaded(name), device="cpu")
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    order = np.random.default_rng(0).permutation(len(PROMPTS) + 3)
    texts = [[*PROMPTS, PROMPTS[4], "", "word " * 40][i] for i in order]  # one twice, an empty one, one that is cut
    got = embed_prompts(encoder, texts)
    assert np.abs(got - encoder.embed_texts(texts)).max() < 1e-6
    assert tried == [8, len(texts) - 1]
    assert got.dtype == np.float32
    assert all(torch.equal(value, before[key]) for key, value in encoder.model.state_dict().items())
    assert np.array_equal(
        encoder.embed_texts(texts[:2]), DualEncoder(loaded(name), device="cpu").embed_texts(texts[:2])
    )


def test_a_tower_that_sees_padding_takes_the_ordinary_way(tried):
    encoder = DualEncoder(loaded("siglip"), device="cpu")
    assert np.array_equal(embed_prompts(encoder, PROMPTS), encoder.embed_texts(PROMPTS))
    assert not tried


def test_few_prompts_take_the_ordinary_way(encoder, tried):
    assert np.array_equal(embed_prompts(encoder, PROMPTS[:8]), encoder.embed_texts(PROMPTS[:8]))
    assert not tried


def test_a_tower_that_packs_do_not_fit_takes_the_ordinary_way(encoder, monkeypatch):
    plain = shared_prefix.features
    monkeypatch.setattr(shared_prefix, "features", lambda model, ids: plain(model, ids) + 1e-4)
    assert np.array_equal(embed_prompts(encoder, PROMPTS), encoder.embed_texts(PROMPTS))


def test_embeddings_that_are_cut_at_some_dimensions(tried):
    encoder = DualEncoder(loaded("vit"), device="cpu", dim=8)
    got = embed_prompts(encoder, PROMPTS)
    assert got.shape == (len(PROMPTS), 8)
    assert np.abs(got - encoder.embed_texts(PROMPTS)).max() < 1e-6
    assert len(tried) == 2


def test_prompts_that_all_fill_the_context_take_the_ordinary_way(encoder, tried):
    texts = [f"{i} " + "word " * 100 for i in range(shared_prefix.TRIED + 1)]
    assert np.array_equal(embed_prompts(encoder, texts), encoder.embed_texts(texts))
    assert tried == []
