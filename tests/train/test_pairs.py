"""Groups and marks of a batch, against what one would write down by hand."""

import dualenc.torchvision_ops  # noqa: F401  (before open_clip)

import pytest
import torch

from dualenc.train.pairs import caption_marks, captions_of, pairs_of

A, B, C = [1, 5, 6, 2], [1, 7, 2, 0], [1, 5, 2, 0]


def batch(captions, valid=None, group=None):
    """captions: for each row, its K captions' ids."""
    texts = torch.tensor(captions)
    valid = torch.ones(len(texts), dtype=torch.bool) if valid is None else torch.tensor(valid)
    group = torch.arange(len(texts)) * 10 + 100 if group is None else torch.tensor(group)
    return {"text": texts[:, 0], "valid": valid, "group": group} | ({"texts": texts} if texts.shape[1] > 1 else {})


def test_captions_of_a_batch_have_three_axes():
    assert captions_of(batch([[A], [B]])).shape == (2, 1, 4)
    assert captions_of(batch([[A, B], [B, C]])).shape == (2, 2, 4)


@pytest.mark.parametrize("rank", [0, 3])
def test_each_takes_captions_apart_and_numbers_rows_over_all_ranks(rank):
    found = pairs_of(batch([[A, B], [B, C]]), rank, "each", mask=False)
    assert found.image.tolist() == [2 * rank, 2 * rank + 1]
    assert found.text.tolist() == [[2 * rank] * 2, [2 * rank + 1] * 2]
    assert found.image_marks is None and found.text_marks is None


def test_rows_that_are_not_valid_are_left_out():
    found = pairs_of(batch([[A], [B], [C]], valid=[True, False, True]), 0, "each", mask=False)
    assert found.image.tolist() == [0, -1, 2] and found.text.tolist() == [[0], [-1], [2]]


def test_group_joins_the_captions_of_an_image_and_of_equal_keys():
    found = pairs_of(
        batch([[A, B], [B, C], [A, C]], group=[7, 9, 7], valid=[True, True, False]), 5, "group", mask=False
    )
    assert found.image.tolist() == [7, 9, -1]
    assert found.text.tolist() == [7, 7, 9, 9, -1, -1]


@pytest.mark.parametrize("positives", ["each", "group"])
def test_marks_tell_which_captions_equal_an_images_own(positives):
    found = pairs_of(batch([[A, B], [B, C]]), 0, positives, mask=True)
    marks = found.text_marks.reshape(2, 2)
    assert torch.equal(found.image_marks, marks)
    assert marks[0, 1] == marks[1, 0] and len(set(marks.flatten().tolist())) == 3
    assert found.image.tolist() == [100, 110]  # by keys: equal ones are no negatives either


def test_marks_do_not_depend_on_the_length_a_batch_is_padded_to():
    short = torch.tensor([A, B, C])
    longer = torch.nn.functional.pad(short, (0, 9))
    assert torch.equal(caption_marks(short), caption_marks(longer))
    assert torch.equal(caption_marks(short), caption_marks(short.clone()))
    every = torch.cartesian_prod(*[torch.arange(12)] * 4)
    assert len(caption_marks(every).unique()) == len(every)
