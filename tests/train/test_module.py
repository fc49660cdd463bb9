"""ContrastiveModule by itself: what the loss sees, what the optimizer does."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import ModelCheckpoint

from dualenc.data.dataset import Batches
from dualenc.data.module import PairData
from dualenc.data.prepare import Prepare
from dualenc.data.shards import open_source
from dualenc.data.transforms import Augment
from dualenc.model.losses import Pairs, contrastive_loss, sigmoid_loss
from dualenc.model.towers import image_features, text_features
from dualenc.train.module import ContrastiveModule
from dualenc.train.schedule import total_steps, warmup_cosine
from tests.small import TEXT, VISION, write_shards


def module(kind="vit", **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ContrastiveModule(**{"embed_dim": 16, "vision": VISION[kind], "text": TEXT} | settings)


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    source = open_source(write_shards(tmp_path_factory.mktemp("b"), 8, shards=1, broken=(2, 5)))
    return Batches(source, Prepare(module().spec, Augment()), all_captions=False)[[(i, 0) for i in range(8)]]


def only(batch, rows):
    return {
        k: v[rows] if isinstance(v, torch.Tensor) else [v[i] for i in rows]
        for k, v in batch.items()
        if k != "truncated"
    }


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_samples_that_are_not_valid_are_left_out_and_counted(batch, loss):
    trained = module(loss=loss).double()
    assert batch["valid"].tolist() == [True, True, False, True, True, False, True, True]
    whole = trained.training_step(batch, 0)
    good = only(batch, [0, 1, 3, 4, 6, 7]) | {"truncated": 0}
    assert whole.item() == pytest.approx(module(loss=loss).double().training_step(good, 0).item(), rel=1e-12)
    image, text = image_features(trained.model, good["image"]), text_features(trained.model, good["text"])
    scale = trained.model.logit_scale.exp()
    expected = (
        contrastive_loss(image, text, scale)
        if loss == "softmax"
        else sigmoid_loss(image, text, scale, trained.model.logit_bias)
    )
    assert whole.item() == pytest.approx(expected.item(), rel=1e-12)
    reason = batch["reason"][2]
    assert trained.counts.total() == {(0, "seen"): 6, (0, reason): 2}


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_several_captions_are_averaged(batch, loss):
    trained, rows = module(loss=loss).double(), [0, 1, 3, 4]
    good = only(batch, rows) | {"truncated": 0}
    second = torch.roll(good["text"], 1, dims=0)  # other captions in the second place
    both = good | {"texts": torch.stack([good["text"], second], dim=1)}
    each = [trained.training_step(good | {"text": text}, 0).item() for text in (good["text"], second)]
    assert trained.training_step(both, 0).item() == pytest.approx(np.mean(each), rel=1e-12)
    assert abs(each[0] - each[1]) > 1e-6


def test_what_is_not_valid_has_no_gradient(batch):
    trained, images = module().double(), batch["image"].clone()
    trained.training_step(batch, 0).backward()
    first = {k: p.grad.clone() for k, p in trained.named_parameters() if p.grad is not None}
    images[~batch["valid"]] = 200  # whatever stands in such a row
    trained.zero_grad()
    trained.training_step(batch | {"image": images}, 0).backward()
    assert all(torch.equal(p.grad, first[k]) for k, p in trained.named_parameters() if p.grad is not None)


def test_a_batch_of_which_nothing_can_be_used_teaches_nothing(batch):
    trained, empty = module(loss="sigmoid"), only(batch, [2, 5]) | {"truncated": 0}
    loss = trained.training_step(empty, 0)
    loss.backward()
    trainable = [p for p in trained.parameters() if p.requires_grad]
    assert loss == 0 and all(p.grad is not None and not p.grad.any() for p in trainable)  # DDP waits for all of them
    assert sum(trained.counts.total().values()) == 2
    for _ in range(8):
        trained.training_step(empty, 0)
    trained.training_step(batch, 0)  # a good one: they are counted anew
    for _ in range(9):
        trained.training_step(empty, 0)
    with pytest.raises(ValueError, match="no sample of 10 batches in a row could be used"):
        trained.training_step(empty, 0)


@pytest.mark.parametrize("kind", ["vit", "resnet", "timm"])
def test_decay_is_off_for_gains_biases_and_temperature(kind):
    trained = module(kind, weight_decay=0.3, lr=0.1)
    trained._trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batches=10), limit_train_batches=1.0, max_epochs=2, max_steps=-1
    )
    groups = trained.configure_optimizers()["optimizer"].param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    named = dict(trained.named_parameters())
    assert len(decay) == len(named) == sum(len(group["params"]) for group in groups)
    off = {name for name, p in named.items() if decay[id(p)] == 0.0}
    on = {name for name, p in named.items() if decay[id(p)] == 0.3}
    assert off | on == named.keys() and "model.logit_scale" in off
    assert off == {name for name, p in named.items() if p.ndim < 2}
    assert all(name.endswith(("weight", "proj", "projection", "embedding")) for name in on)
    assert any(name.endswith("bias") for name in off) and any("ln" in n or "bn" in n or "norm" in n for n in off)


def test_the_schedule_rises_and_falls():
    rates = [warmup_cosine(step, 4, 24) for step in range(25)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == pytest.approx(0.5) and rates[24] == pytest.approx(0, abs=1e-12)
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert warmup_cosine(30, 4, 24) == pytest.approx(0, abs=1e-12)  # never rises again
    assert warmup_cosine(0, 0, 10) == 1.0 and 0 < warmup_cosine(3, 10, 5) <= 1  # no warm-up; all of it


@pytest.mark.parametrize(
    "settings",
    [
        {"max_epochs": 3},
        {"max_steps": 5},
        {"max_epochs": 2, "max_steps": 5},
        {"max_epochs": 3, "limit_train_batches": 2},
        {"max_epochs": 3, "limit_train_batches": 0.5},
        {"max_epochs": 3, "limit_train_batches": 99},
    ],
)
def test_the_schedules_length_is_lightnings_estimate(settings, shards, encoder):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = pl.Trainer(**quiet, **settings)
    data = PairData(str(shards), batch_size=5, workers=0, spec=encoder.spec)
    data.setup("fit")
    ours = []

    class Asks(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch, _):
            return self.weight * 1.0

        def configure_optimizers(self):
            ours.append(total_steps(self.trainer))
            ours.append(self.trainer.estimated_stepping_batches)
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer.fit(Asks(), datamodule=data)
    assert ours[0] == ours[1] == trainer.global_step > 0


class Pull(ContrastiveModule):
    """A loss that pulls the temperature one way."""

    way = 1.0

    def _loss(self, image, text, pairs):
        return self.way * self.model.logit_scale


@pytest.mark.parametrize(("way", "bound"), [(-1.0, math.log(15.0)), (1.0, 0.0)])
def test_the_temperature_stays_within_its_clamp_in_checkpoints_too(way, bound, shards, tmp_path):
    trained = Pull(embed_dim=16, vision=VISION["vit"], text=TEXT, max_logit_scale=15.0, lr=5.0, warmup_steps=0)
    trained.way = way
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    data = PairData(str(shards), batch_size=8, workers=0, spec=trained.spec)
    pl.Trainer(max_steps=3, callbacks=[saver], use_distributed_sampler=False, **quiet).fit(trained, datamodule=data)
    saved = [torch.load(p, weights_only=True)["state_dict"]["model.logit_scale"] for p in tmp_path.glob("*.ckpt")]
    assert len(saved) == 3
    assert [float(s) for s in [*saved, trained.model.logit_scale.detach()]] == pytest.approx([bound] * 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "triplet"}, "model.loss 'triplet' is unknown; use softmax or sigmoid"),
        ({"name": "ViT-B-32"}, "exactly one of"),
        ({"vision": None}, "exactly one of"),
        ({"vision": None, "text": None, "embed_dim": None, "name": "ViT-B-23"}, "did you mean"),
        ({"vision": None, "name": "ViT-B-32"}, r"model\.text has no effect beside model\.name"),
        ({"vision": None, "text": None, "start_from": "x"}, r"model\.embed_dim has no effect beside model\.start_from"),
        ({"vision": {"image_size": 32, "widht": 3}}, "did you mean 'width'"),
        ({"preprocess": {"meen": [0.5] * 3}}, "did you mean 'mean'"),
    ],
)
def test_settings_that_make_no_towers_are_refused(settings, message):
    with pytest.raises(ValueError, match=message) as error:
        module(**settings)
    assert "\n" not in str(error.value)


def test_the_sigmoid_loss_needs_a_bias(encoder_folder):
    with pytest.raises(ValueError, match="has no logit bias"):
        ContrastiveModule(start_from=str(encoder_folder), loss="sigmoid")


def test_where_training_starts(encoder_folder, encoder):
    softmax, sigmoid = module(temperature=0.05), module(loss="sigmoid")
    assert softmax.model.logit_scale.exp().item() == pytest.approx(20.0)
    assert sigmoid.model.logit_scale.exp().item() == pytest.approx(10.0)
    assert sigmoid.model.logit_bias.item() == -10.0
    tuned = ContrastiveModule(start_from=str(encoder_folder), preprocess={"interpolation": "bilinear"})
    assert all(torch.equal(t, encoder.model.state_dict()[k]) for k, t in tuned.model.state_dict().items())
    assert tuned.spec["image"] == encoder.spec["image"] | {"interpolation": "bilinear"}


def test_autocast_leaves_the_loss_in_float32(batch):
    trained = module()
    good = only(batch, [0, 1, 3, 4]) | {"truncated": 0}
    with torch.autocast("cpu", torch.bfloat16):
        half = trained.training_step(good, 0)
        image = image_features(trained.model, good["image"])
    assert half.dtype == torch.float32 and image.dtype in (torch.bfloat16, torch.float32)
    assert half.item() == pytest.approx(trained.training_step(good, 0).item(), rel=0.1)


def test_checkpoints_hold_plain_types(tmp_path):
    trained, content = module(), {}
    trained.on_save_checkpoint(content)
    torch.save(content, tmp_path / "c")
    about = torch.load(tmp_path / "c", weights_only=True)["dualenc"]
    assert about["model_cfg"]["vision_cfg"] == VISION["vit"] and about["preprocess_cfg"]["size"] == [32, 32]
    assert about["training"]["steps"] == 0 and about["training"]["settings"]["embed_dim"] == 16


def test_numbers_of_a_run_do_not_depend_on_where_it_stands(batch):
    """Losses are deterministic: what the tests above compare does not change from call to call."""
    trained = module()
    losses = [trained.training_step(only(batch, [0, 1, 3]) | {"truncated": 0}, 0).item() for _ in range(2)]
    assert losses[0] == losses[1] and np.isfinite(losses[0])


@pytest.mark.parametrize(("asked", "trained"), [(None, None), ([2, 5], [2, 5, 8]), ([3, 8], [3, 8])])
def test_prefixes_are_trained_beside_the_whole_embedding(asked, trained):
    torch.manual_seed(0)
    module = ContrastiveModule(embed_dim=8, vision=VISION["vit"], text=TEXT, matryoshka=asked)
    assert module.prefixes == trained
    if trained is None:
        return
    image, text = (F.normalize(torch.randn(4, 8, dtype=torch.float64), dim=1) for _ in "it")
    number = torch.arange(4)
    scale = module.model.logit_scale.exp().double()
    each = [contrastive_loss(F.normalize(image[:, :d], dim=1), F.normalize(text[:, :d], dim=1), scale) for d in trained]
    found = module._loss(image, text.unsqueeze(1), Pairs(number, number.unsqueeze(1)))
    assert found.item() == pytest.approx(torch.stack(each).mean().item(), rel=1e-6)
