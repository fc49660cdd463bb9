"""Encoders on disk: round trips through open_clip itself, fingerprints, and damage."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from dualenc.model import folder
from dualenc.model.encoder import DualEncoder
from tests.small import CONFIGS, loaded

CAPTIONS = ["a red circle", "a blue square left of a red circle", ""]


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (50, 33))]


@pytest.mark.parametrize("name", CONFIGS)
def test_open_clip_itself_loads_the_folder(name, tmp_path):
    saved = DualEncoder(loaded(name), device="cpu")
    mark = saved.save(tmp_path / "e")
    ours = DualEncoder.load(tmp_path / "e", device="cpu")
    assert ours.fingerprint == saved.fingerprint == mark and ours.dim == 16
    assert ours.path == str((tmp_path / "e").resolve())
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'e'}", require_pretrained=True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'e'}")
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(p) for p in pictures()]), normalize=True).numpy()
        texts = model.encode_text(tokenizer(CAPTIONS), normalize=True).numpy()
    assert np.abs(ours.embed_images(pictures()) - images).max() <= 1e-5
    assert np.abs(ours.embed_texts(CAPTIONS) - texts).max() <= 1e-5
    assert np.abs(saved.embed_images(pictures()) - images).max() <= 1e-5
    note = json.loads((tmp_path / "e" / "dualenc.json").read_text())
    assert {"fingerprint", "preprocessing", "tokenizer", "training", "versions"} <= note.keys()


def marks(original):
    return folder.fingerprint(original.model, original.tokenizer)


def checkpoint(original, path):
    """What `dualenc fit` writes, as far as an encoder is concerned."""
    state = {f"model.{k}": v for k, v in original.model.state_dict().items()}
    about = {
        "model_cfg": original.model_cfg,
        "preprocess_cfg": folder.preprocess_of(original.model),
        "training": original.provenance,
    }
    torch.save({"state_dict": state, "dualenc": about}, path)
    return path


@pytest.mark.parametrize("name", ["vit", "rectangle", "timm", "siglip"])
def test_one_fingerprint_for_folder_and_checkpoint(name, tmp_path):
    original = loaded(name)
    folder.save_folder(tmp_path / "e", original)
    from_folder = DualEncoder.load(tmp_path / "e")
    from_checkpoint = DualEncoder.load(checkpoint(original, tmp_path / "c.ckpt"))
    assert from_folder.fingerprint == from_checkpoint.fingerprint == marks(original)
    assert np.array_equal(from_folder.embed_texts(CAPTIONS), from_checkpoint.embed_texts(CAPTIONS))


def test_the_fingerprint_changes_with_every_tensor(monkeypatch):
    monkeypatch.setattr(folder, "tokenizer_of", lambda _: {})  # hashing a vocabulary 60 times takes seconds
    original = loaded("resnet")
    seen, state = {marks(original)}, original.model.state_dict()
    for key, tensor in state.items():
        kept = tensor.clone()
        flat = tensor.view(-1)
        flat[-1] += 1 if not tensor.is_floating_point() else flat[-1].abs() * 1e-3 + 1e-3
        mark = marks(original)
        assert mark not in seen, key
        seen.add(mark)
        tensor.copy_(kept)
    assert marks(original) in seen and len(seen) == len(state) + 1 > 50


def test_the_fingerprint_changes_with_preprocessing_and_tokenizer():
    seen = {marks(loaded("vit"))}
    changes = {"mean": (0.5, 0.4, 0.31), "std": (0.25, 0.2, 0.31), "interpolation": "bilinear", "resize_mode": "squash"}
    for key, value in changes.items():
        other = loaded("vit")
        other.model.visual.preprocess_cfg[key] = value
        seen.add(marks(other))
    original = loaded("vit")
    for settings in ({"clean": "whitespace"}, {"context_length": 20}, {"additional_special_tokens": ["<x>"]}):
        tokenizer = open_clip.SimpleTokenizer(**{"context_length": 16} | settings)
        seen.add(folder.fingerprint(original.model, tokenizer))
    assert len(seen) == 1 + len(changes) + 3


def test_the_fingerprint_covers_names_types_and_shapes(monkeypatch):
    """Of tensors whose bytes are all equal."""
    monkeypatch.setattr(folder, "tokenizer_of", lambda _: {})
    seen = set()
    for name, tensor in (
        ("a", torch.zeros(2, 3)),
        ("b", torch.zeros(2, 3)),
        ("a", torch.zeros(3, 2)),
        ("a", torch.zeros(2, 3, dtype=torch.int32)),
        ("a", torch.zeros(2, 6, dtype=torch.float16)),
    ):
        module = torch.nn.Module()
        module.register_buffer(name, tensor)
        module.visual = torch.nn.Module()
        module.visual.preprocess_cfg = {"size": 3, "mean": (0.5,), "std": (0.5,)}
        seen.add(folder.fingerprint(module, None))
    assert len(seen) == 5


def test_the_fingerprint_does_not_depend_on_memory_or_the_order_of_tensors():
    original = loaded("resnet")
    before = marks(original)
    original.model.to(memory_format=torch.channels_last)
    assert marks(original) == before


def test_an_encoder_folder_is_not_overwritten(tmp_path):
    original = loaded("vit")
    folder.save_folder(tmp_path / "e", original)
    with pytest.raises(FileExistsError, match="not empty"):
        folder.save_folder(tmp_path / "e", original)
    assert folder.save_folder(tmp_path / "e", loaded("vit", seed=1), replace=True) != marks(original)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e"]


def test_quick_gelu_is_always_written(tmp_path):
    original = loaded("vit")
    folder.save_folder(tmp_path / "e", original._replace(model_cfg=dict(CONFIGS["vit"])))
    assert json.loads((tmp_path / "e" / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"] is False


def broken(kind, place):
    config, weights, note = (
        place / n for n in ("open_clip_config.json", "open_clip_model.safetensors", "dualenc.json")
    )
    if kind.startswith("no "):
        {"no config": config, "no weights": weights}[kind].unlink()
    elif kind == "cut config":
        config.write_text(config.read_text()[:-20])
    elif kind == "other config":
        config.write_text(config.read_text().replace('"quick_gelu": false', '"quick_gelu": true'))
    elif kind == "cut note":
        note.write_text(note.read_text()[:40])
    elif kind == "listed note":
        note.write_text("[1]")
    elif kind == "other fingerprint":
        note.write_text(note.read_text().replace(json.loads(note.read_text())["fingerprint"], "0" * 64))
    elif kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "other weights":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
    elif kind == "no weights at all":
        weights.write_bytes(b"")


DAMAGE = {
    "no config": "open_clip_config.json is missing",
    "no weights": "open_clip_model.safetensors is missing",
    "cut config": "open_clip_config.json is not the one",
    "other config": "open_clip_config.json is not the one",
    "cut note": "dualenc.json is not valid JSON",
    "listed note": "dualenc.json",
    "other fingerprint": "does not match the fingerprint",
    "cut weights": "open_clip_model.safetensors cannot be read",
    "other weights": "does not match the fingerprint",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_line(kind, encoder_folder, tmp_path):
    place = tmp_path / "e"
    shutil.copytree(encoder_folder, place)
    broken(kind, place)
    with pytest.raises(ValueError, match=DAMAGE[kind]) as error:
        DualEncoder.load(place)
    assert str(place) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("config", ["[]", "{}", '{"model_cfg": {}}', '{"model_cfg": {"embed_dim": 3, "zzz": 1}}'])
def test_a_foreign_folder_with_an_unfit_config_is_one_line(config, encoder_folder, tmp_path):
    place = tmp_path / "e"
    shutil.copytree(encoder_folder, place)
    (place / "dualenc.json").unlink()
    (place / "open_clip_config.json").write_text(config)
    with pytest.raises(ValueError) as error:
        DualEncoder.load(place)
    assert "\n" not in str(error.value)


def test_a_foreign_open_clip_folder_loads(encoder, encoder_folder, tmp_path):
    place = tmp_path / "e"
    shutil.copytree(encoder_folder, place)
    (place / "dualenc.json").unlink()
    assert DualEncoder.load(place).fingerprint == encoder.fingerprint


def test_weights_of_another_architecture_are_one_line(encoder_folder, tmp_path):
    folder.save_folder(tmp_path / "a", loaded("resnet"))
    shutil.copy(encoder_folder / "open_clip_model.safetensors", tmp_path / "a")
    with pytest.raises(ValueError, match="weights do not fit the configuration") as error:
        DualEncoder.load(tmp_path / "a")
    assert "\n" not in str(error.value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_checkpoint_cannot_run_code(tmp_path):
    torch.save({"state_dict": {}, "dualenc": Bomb(tmp_path / "ran")}, tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match="not a checkpoint that `dualenc fit` wrote") as error:
        DualEncoder.load(tmp_path / "c.ckpt")
    assert not (tmp_path / "ran").exists() and "\n" not in str(error.value)
    torch.load(tmp_path / "c.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_file_that_is_no_checkpoint_is_one_line(tmp_path, content):
    path = tmp_path / "c.ckpt"
    path.write_bytes(content) if content is not None else torch.save({"state_dict": {}}, path)
    with pytest.raises(ValueError, match="not a checkpoint that `dualenc fit` wrote") as error:
        DualEncoder.load(path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_that_lacks_tensors_is_one_line(tmp_path):
    path = checkpoint(loaded("vit"), tmp_path / "c.ckpt")
    content = torch.load(path, weights_only=True)
    content["state_dict"].popitem()
    torch.save(content, path)
    with pytest.raises(ValueError, match="weights do not fit") as error:
        DualEncoder.load(path)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def architecture(tmp_path_factory):
    """A tiny architecture under a name, as open_clip's own are."""
    place = tmp_path_factory.mktemp("configs")
    (place / "tiny-test-tower.json").write_text(json.dumps(CONFIGS["vit"]))
    open_clip.add_model_config(place)
    return "tiny-test-tower"


def test_a_bare_name_is_refused_with_its_tags(architecture):
    with pytest.raises(ValueError, match=r"ViT-B-32:openai.*ViT-B-32:laion2b_s34b_b79k.*ViT-B-32:random"):
        DualEncoder.load("ViT-B-32")
    with pytest.raises(ValueError, match=f"{architecture}:random"):
        DualEncoder.load(architecture)


def test_an_unknown_name_lists_the_nearest():
    with pytest.raises(ValueError, match=r"'ViT-B-23'.*did you mean.*ViT-B-32"):
        DualEncoder.load("ViT-B-23")
    with pytest.raises(ValueError, match=r"'ViT-B-23'.*did you mean.*ViT-B-32"):
        DualEncoder.load("ViT-B-23:openai")
    with pytest.raises(ValueError, match="'nosuchtag' is neither a file nor one of ViT-B-32's tags"):
        DualEncoder.load("ViT-B-32:nosuchtag")


@pytest.mark.parametrize("name", ["runs/none/encoder", "none.ckpt", "./none"])
def test_a_missing_path_is_one_line(name):
    with pytest.raises(FileNotFoundError, match=name) as error:
        DualEncoder.load(name)
    assert "\n" not in str(error.value)


def test_random_towers_are_the_same_every_time(architecture):
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    one = DualEncoder.load(f"{architecture}:random")
    assert torch.equal(torch.random.get_rng_state(), state)  # and leave the caller's draws alone
    torch.manual_seed(2)
    two = DualEncoder.load(f"{architecture}:random")
    assert one.fingerprint == two.fingerprint and one.path == f"{architecture}:random"
    assert one.provenance == {"started_from": f"{architecture}:random"}


@pytest.mark.parametrize("quick", [True, False])
def test_a_tag_trained_with_quick_gelu_is_loaded_with_it(architecture, encoder_folder, tmp_path, monkeypatch, quick):
    weights = str(encoder_folder / "open_clip_model.safetensors")
    tags = {"sometag": {"url": "", "quick_gelu": True} if quick else {"url": ""}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, architecture, tags)
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: weights)
    tagged = DualEncoder.load(f"{architecture}:sometag", device="cpu")
    expected = DualEncoder(loaded("quick_gelu" if quick else "vit"), device="cpu")
    expected.model.load_state_dict(tagged.model.state_dict())
    assert tagged.model_cfg.get("quick_gelu", False) is quick
    assert np.array_equal(tagged.embed_texts(CAPTIONS), expected.embed_texts(CAPTIONS))
    tagged.save(tmp_path / "e")
    again = DualEncoder.load(tmp_path / "e", device="cpu")
    assert np.array_equal(again.embed_texts(CAPTIONS), expected.embed_texts(CAPTIONS))


def test_a_name_with_a_weights_file(architecture, encoder_folder, tmp_path):
    weights = encoder_folder / "open_clip_model.safetensors"
    one = DualEncoder.load(f"{architecture}:{weights}")
    original = loaded("vit")
    for key, tensor in one.model.state_dict().items():
        assert torch.equal(tensor, original.model.state_dict()[key]), key
    torch.save({"state_dict": Bomb(tmp_path / "ran")}, tmp_path / "w.pt")
    with pytest.raises(Exception):  # noqa: B017  (open_clip's loader words it)
        DualEncoder.load(f"{architecture}:{tmp_path / 'w.pt'}")
    assert not (tmp_path / "ran").exists()
