"""The plain spec that loader workers get."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, get_clean_fn
from PIL import Image
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from dualenc.data.text import Tokenizer, make_tokenizer
from dualenc.model.encoder import DualEncoder
from dualenc.model.spec import input_spec, tokenizer_spec
from dualenc.model.towers import image_features
from dualenc.pixels import evaluation
from tests.small import loaded


def test_the_spec_is_plain(encoder):
    spec = input_spec(encoder.model, encoder.tokenizer)
    assert json.loads(json.dumps(spec)) == spec
    assert spec["image"]["size"] == [32, 32] and spec["image"]["mean"] == [0.5, 0.4, 0.3]
    assert spec["text"]["context_length"] == 16 and spec["text"]["pad_to_longest"] is True
    assert input_spec(*loaded("rectangle")[:2])["image"]["size"] == [32, 48]
    assert input_spec(*loaded("siglip")[:2])["text"]["pad_to_longest"] is False


@pytest.mark.parametrize("name", ["vit", "rectangle", "siglip"])
def test_the_workers_path_equals_the_encoders(name):
    encoder = DualEncoder(loaded(name), device="cpu")
    rng = np.random.default_rng(0)
    shapes = ((40, 60), (33, 20), (32, 48), (9, 9))
    pictures = [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in shapes]
    pixels = torch.from_numpy(np.stack([evaluation(p, encoder.spec["image"]) for p in pictures]).transpose(0, 3, 1, 2))
    with torch.no_grad():
        images = image_features(encoder.model, pixels).numpy()
    assert np.abs(images - encoder.embed_images(pictures)).max() < 1e-6
    tokens = Tokenizer(encoder.spec["text"])(["a red circle", "a &amp; b"])
    assert (tokens.shape[1] == 16) == (name == "siglip")


def test_cleaning_is_carried_over():
    spec = tokenizer_spec(SimpleTokenizer(clean="canonicalize", context_length=8), False)
    assert spec["clean"] == "canonicalize" and spec["context_length"] == 8


@pytest.mark.parametrize("tokenizer", [SimpleTokenizer(reduction_mask="simple"), HFTokenizer.__new__(HFTokenizer)])
def test_tokenizers_that_cannot_be_carried_are_refused(tokenizer):
    with pytest.raises(ValueError, match="cannot be carried to loader workers"):
        tokenizer_spec(tokenizer, False)


def fast(kind="bert"):
    """A small tokenizer of the `tokenizers` library with special tokens, as BERT's or as T5's."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", ",", ".", "##s", "&", "é"]
    made = tokenizers.Tokenizer(WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(lowercase=True, strip_accents=False), BertPreTokenizer()
    made.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]" if kind == "bert" else "$A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=3)  # what an earlier call may have left behind
    return made


def hf_tokenizer(inner, **settings):
    """open_clip's HFTokenizer without its download."""
    made = HFTokenizer.__new__(HFTokenizer)
    made.tokenizer, made.context_length, made.clean_fn = inner, 8, get_clean_fn(settings.pop("clean", "whitespace"))
    made.tokenizer_mode, made.strip_sep_token = settings.pop("mode", ""), settings.pop("strip", False)
    return made


CAPTIONS = ["a red circle", "", "a &amp; é, Reds.", "a red circle, a blue circle. a red circle", "owl [SEP] a  _ A"]


@pytest.mark.parametrize("kind", ["bert", "t5"])
@pytest.mark.parametrize("clean", ["whitespace", "canonicalize", "lower"])
@pytest.mark.parametrize(("pad_side", "cut_side", "strip"), [("right",) * 2 + (False,), ("left", "left", True)])
def test_fast_tokenizers_give_the_ids_of_open_clips(kind, clean, pad_side, cut_side, strip):
    transformers = pytest.importorskip("transformers")
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    sides = {"padding_side": pad_side, "truncation_side": cut_side}
    inner = transformers.PreTrainedTokenizerFast(tokenizer_object=fast(kind), **names, **sides)
    theirs = hf_tokenizer(inner, clean=clean, strip=strip)
    ours = make_tokenizer(json.loads(json.dumps(tokenizer_spec(theirs, False))))
    assert np.array_equal(ours(CAPTIONS), theirs(CAPTIONS).numpy())
    assert ours.truncated == sum(len(inner(theirs.clean_fn(caption)).input_ids) > 8 for caption in CAPTIONS) > 0
    assert tokenizer_spec(theirs, False) == tokenizer_spec(theirs, True)  # these always pad to the context


class Inner:
    """What a spec asks of a transformers tokenizer."""

    def __init__(self, **changes):
        self.backend_tokenizer, self.pad_token_id, self.sep_token_id = fast(), 0, 3
        self.padding_side = self.truncation_side = "right"
        self.__dict__.update(changes)


def test_a_fast_tokenizer_is_carried_as_its_library_writes_it():
    spec = tokenizer_spec(hf_tokenizer(Inner()), False)
    assert json.loads(json.dumps(spec)) == spec
    ours, plain = make_tokenizer(spec), fast()
    plain.enable_truncation(8)
    plain.enable_padding(length=8)
    captions = ["a red circle", "", "a red circle, a blue circle. a red circle"]
    assert ours(captions).tolist() == [encoding.ids for encoding in plain.encode_batch(captions)]
    assert ours.truncated == 1 and ours([]).shape == (0, 8)
    assert ours(["a &amp; a"])[0, :5].tolist() == [2, 4, 11, 4, 3]  # cleaned first


@pytest.mark.parametrize("changes", [{"backend_tokenizer": None}, {"pad_token_id": None}, {"mode": "clips"}])
def test_hugging_face_tokenizers_that_cannot_be_carried_are_refused(changes):
    mode = changes.get("mode", "")
    with pytest.raises(ValueError, match="HFTokenizer cannot be carried") as error:
        tokenizer_spec(hf_tokenizer(Inner(**changes), mode=mode), False)
    assert "\n" not in str(error.value)


def test_modules_that_workers_import_need_no_open_clip():
    source = Path(__file__).resolve().parents[2] / "dualenc" / "data"
    for path in [*source.rglob("*.py"), source.parent / "pixels.py", source.parent / "images.py"]:
        assert "open_clip" not in {
            word for line in path.read_text().splitlines() if "import" in line for word in line.split()
        }
