"""What validation collects, in any order and over any number of ranks."""

import multiprocessing

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dualenc.data.dataset import Batches
from dualenc.data.order import BatchOrder
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.evaluate.metrics import retrieval_metrics
from dualenc.train import validation
from dualenc.train.ranks import from_first, rows_to_first, total
from dualenc.train.validation import Embeddings, zero_shot_scores
from tests.small import sample, write_tar
from tests.train.test_gather import free_port


def collected(encoder, source, batch_size, ranks=1):
    """The parts that each rank collects."""
    parts = []
    for rank in range(ranks):
        seen = Embeddings()
        order = BatchOrder(len(source), batch_size, rank=rank, ranks=ranks)
        with torch.no_grad():
            for places in order:
                seen.add(encoder.model, Batches(source, Prepare(encoder.spec), all_captions=True)[places])
        parts.append(seen)
    return parts


@pytest.mark.parametrize(("batch_size", "ranks"), [(12, 1), (5, 1), (4, 2), (6, 3), (8, 4)])
def test_rows_are_those_of_the_data_set_whatever_the_ranks(encoder, val_shards, monkeypatch, batch_size, ranks):
    source = open_source(val_shards)
    expected = collected(encoder, source, 12)[0].whole()
    parts = collected(encoder, source, batch_size, ranks)
    together = {name: np.concatenate([part._own(name) for part in reversed(parts)]) for name in validation.PARTS}
    monkeypatch.setattr(validation, "rows_to_first", lambda _: together)
    found = parts[0].whole()
    assert found.keys() == expected.keys() == {"image", "text", "label", "image_row"}
    assert found["image"].shape == (11, 16) and found["text"].shape == (22, 16)  # one of twelve does not decode
    for name in ("label", "image_row"):
        assert np.array_equal(found[name], expected[name])
    for name in ("image", "text"):
        assert np.abs(found[name] - expected[name]).max() < 1e-6
    assert found["image_row"].tolist() == [i for i in range(11) for _ in range(2)]
    assert found["label"].tolist() == [i % 8 for i in range(12) if i != 5]


def test_recall_equals_the_metrics_over_images_with_captions(encoder, tmp_path, monkeypatch):
    members = [m for i in range(6) for m in sample(f"k{i}", "red", [f"caption {i}"] * (i % 3), seed=i)]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    seen = collected(encoder, source, 4)[0]
    images = encoder.embed_images([_picture(source, i) for i in (1, 2, 4, 5)])
    texts = encoder.embed_texts([f"caption {i}" for i in (1, 2, 2, 4, 5, 5)])
    expected = retrieval_metrics(images, texts, np.array([0, 1, 1, 2, 3, 3]), ks=(1,))
    found = seen.recall()
    for way in ("text_to_image", "image_to_text"):
        assert found[f"{way}/recall@1"] == pytest.approx(expected[f"{way}/recall@1"])
        assert f"{way}/recall@10" not in found  # ten of four images would always hit
    recalls = [v for k, v in found.items() if "recall@" in k]
    assert found["mean_recall"] == pytest.approx(np.mean(recalls))


def _picture(source, i):
    from dualenc.images import decode

    return decode(source.read(i))


def test_a_set_without_pairs_says_so(encoder, tmp_path):
    source = open_source(write_tar(tmp_path / "t.tar", sample("a", captions=[])))
    with pytest.raises(ValueError, match="has both an image and a caption"):
        collected(encoder, source, 1)[0].recall()


def test_zero_shot_needs_labels(encoder, shards):
    seen = collected(encoder, open_source(shards), 24)[0]
    with pytest.raises(ValueError, match=r"no KEY\.cls"):
        zero_shot_scores(encoder.model, encoder.tokenizer, seen, ["red", "blue"], ["{}"])


def test_zero_shot_is_the_argmax_over_classes(encoder, val_shards):
    seen = collected(encoder, open_source(val_shards), 12)[0]
    names = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]
    found = zero_shot_scores(encoder.model, encoder.tokenizer, seen, names, ["{}", "a {} picture"])
    rows = np.stack([encoder.embed_texts([name, f"a {name} picture"]).mean(axis=0) for name in names])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    whole = seen.whole()
    right = (whole["image"] @ rows.T).argmax(axis=1) == whole["label"]
    assert found["acc1"] == pytest.approx(right.mean())
    two = zero_shot_scores(encoder.model, encoder.tokenizer, _only_two(seen), names[:2], ["{}"])
    assert "acc5" not in two and "acc5" in found  # undefined below five classes


def test_of_a_class_that_is_named_twice_the_first_counts(encoder, val_shards):
    seen = collected(encoder, open_source(val_shards), 12)[0]
    names = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]
    whole = seen.whole()
    right = (whole["image"] @ encoder.embed_texts(names).T).argmax(axis=1) == whole["label"]
    often = names[np.bincount(whole["label"][right]).argmax()]
    twice = zero_shot_scores(encoder.model, encoder.tokenizer, seen, [*names, often], ["{}"])
    assert twice["acc1"] == pytest.approx(right.mean()) and right.any()


NAMES = ["red", "green", "blue", "yellow", "black", "white", "purple", "orange"]
TEMPLATES = ["{}", "a {} picture", "it is {}"]


def scores(encoder, parts):
    """What one rank finds."""
    zero_shot = zero_shot_scores(encoder.model, encoder.tokenizer, parts, NAMES, TEMPLATES)
    return parts.recall() | zero_shot


def _rank(rank, ranks, port, encoder, source, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    found = {"scores": scores(encoder, collected(encoder, source, 12, ranks)[rank])}
    rows = rows_to_first({"a": np.full((rank, 2), rank, np.float32), "b": np.arange(3 - rank) + 10 * rank})
    found["rows"] = rows and {name: array.tolist() for name, array in rows.items()}
    found["total"] = total(np.array([1.5, rank], np.float32)).tolist()
    try:
        from_first(lambda: {}["nothing"] if rank else _refuse())
    except ValueError as error:
        found["error"] = str(error)
    results.put((rank, found))
    dist.destroy_process_group()


def _refuse():
    raise ValueError("no sample, “nothing” to score")


@pytest.fixture(params=[2, 3])
def by_rank(request, encoder, val_shards, monkeypatch):
    """What each of some ranks found, in processes of their own."""
    monkeypatch.setattr(
        "dualenc.model.names._PROMPTS_AT_ONCE", 6
    )  # two classes at a time: four calls for the ranks to share
    forked, port, source = multiprocessing.get_context("fork"), free_port(), open_source(val_shards)
    results = forked.SimpleQueue()
    arguments = (request.param, port, encoder, source, results)
    processes = [forked.Process(target=_rank, args=(rank, *arguments)) for rank in range(request.param)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(100)
        assert process.exitcode == 0
    return dict(results.get() for _ in processes)


def test_ranks_find_what_one_finds(by_rank, encoder, val_shards):
    alone = scores(encoder, collected(encoder, open_source(val_shards), 12)[0])
    assert len(alone) == 10 and 0 < alone["acc1"] < 1
    for rank, found in by_rank.items():
        assert found["scores"] == alone, rank  # the same numbers on every rank
        assert found["error"] == "no sample, “nothing” to score"
        assert found["total"] == [1.5 * len(by_rank), sum(by_rank)]
    rows = by_rank[0]["rows"]
    assert rows["a"] == [[1.0, 1.0], *[[2.0, 2.0]] * 2][: len(rows["a"])] and len(rows["a"]) == sum(by_rank)
    assert rows["b"] == [0, 1, 2, 10, 11, *([20] if len(by_rank) > 2 else [])]
    assert all(found["rows"] is None for rank, found in by_rank.items() if rank)


def test_each_prompt_is_embedded_by_one_rank(encoder, val_shards, monkeypatch):
    monkeypatch.setattr("dualenc.model.names._PROMPTS_AT_ONCE", 6)
    own = []
    for rank in range(3):
        monkeypatch.setattr(validation, "rank_and_ranks", lambda rank=rank: (rank, 3))
        own.append(validation._own_classes(encoder.model, encoder.tokenizer, 16, NAMES, TEMPLATES))
    assert [np.flatnonzero(rows.any(axis=1)).tolist() for rows in own] == [[0, 1, 6, 7], [2, 3], [4, 5]]
    monkeypatch.undo()
    monkeypatch.setattr("dualenc.model.names._PROMPTS_AT_ONCE", 6)
    alone = validation._own_classes(encoder.model, encoder.tokenizer, 16, NAMES, TEMPLATES)
    assert np.array_equal(sum(own), alone)


def test_class_scores_by_blocks_are_those_of_the_whole(encoder, val_shards, monkeypatch):
    seen = collected(encoder, open_source(val_shards), 12)[0]
    whole = zero_shot_scores(encoder.model, encoder.tokenizer, seen, NAMES, TEMPLATES)
    monkeypatch.setattr(validation, "ROWS_AT_ONCE", 2)
    assert zero_shot_scores(encoder.model, encoder.tokenizer, seen, NAMES, TEMPLATES) == whole


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_in_float32(dtype):
    rows = torch.nn.functional.normalize(torch.randn(50, 64)).to(dtype)
    assert (rows.float().norm(dim=1) - 1).abs().max() > 1e-5
    found = validation._float32(rows)
    assert found.dtype == torch.float32 and (found.norm(dim=1) - 1).abs().max() < 1e-6
    exact = torch.randn(5, 3)
    assert torch.equal(validation._float32(exact), exact) and validation._float32(exact.double()).dtype == torch.float32


def _only_two(seen):
    batch = {k: v.copy() for k, v in seen._batches[0].items()}
    batch["valid"] = batch["valid"] * (batch["label"] < 2)
    two = Embeddings()
    two._batches = [batch]
    return two
