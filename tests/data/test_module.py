"""The data module in real Lightning runs: which samples a step sees, for any number of workers, and after resuming."""

import dataclasses

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from dualenc.data.module import PairData
from dualenc.data.order import epoch_order
from dualenc.data.transforms import Augment
from tests.small import sample, write_tar

SAMPLES, BATCH, EPOCHS = 24, 5, 3  # 4 batches an epoch, 4 samples left out
STEPS = SAMPLES // BATCH * EPOCHS


class Tiny(pl.LightningModule):
    """One parameter; notes which samples it is shown."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen, self.evaluated = [], []

    def training_step(self, batch, _):
        self.seen.append(
            (self.current_epoch, tuple(batch["key"]), int(batch["image"].sum()), tuple(batch["text"].sum(1)))
        )
        return self.weight * 1.0

    def validation_step(self, batch, _, dataloader_idx=0):
        self.evaluated.append((dataloader_idx, tuple(batch["key"])))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Stop(Exception):
    pass


class StopIn(Callback):
    """Fails in the training step with this number, as a crash would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Stop


@pytest.fixture
def data(shards, val_shards, encoder):
    def make(workers=0, **settings):
        settings = {"train": str(shards), "batch_size": BATCH, "spec": encoder.spec, "seed": 7} | settings
        return PairData(workers=workers, augment=Augment(scale=(0.5, 1.0), flip=0.5), **settings)

    return make


def trainer(folder, callbacks=(), epochs=EPOCHS, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    settings = {"max_epochs": epochs, "use_distributed_sampler": False, "num_sanity_val_steps": 0} | settings
    checkpoints = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    return pl.Trainer(
        default_root_dir=folder, callbacks=list(callbacks), enable_checkpointing=checkpoints, **quiet, **settings
    )


def fit(folder, data, checkpoint=None, callbacks=(), **settings):
    module = Tiny()
    trainer(folder, callbacks, **settings).fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return module.seen


@pytest.fixture(scope="module")
def uninterrupted(shards, encoder, tmp_path_factory):
    data = PairData(
        str(shards),
        batch_size=BATCH,
        workers=0,
        spec=encoder.spec,
        seed=7,
        augment=Augment(scale=(0.5, 1.0), flip=0.5),
    )
    return fit(tmp_path_factory.mktemp("run"), data)


def test_epochs_show_each_sample_at_most_once_in_the_order_of_their_seed(uninterrupted):
    assert len(uninterrupted) == STEPS
    for epoch in range(EPOCHS):
        keys = [key for e, batch, *_ in uninterrupted if e == epoch for key in batch]
        assert keys == [f"s{i:03d}" for i in epoch_order(SAMPLES, 7, epoch)[:20]]
    pixels = {key: set() for _, keys, *_ in uninterrupted for key in keys}
    assert len({(epoch, total) for epoch, _, total, _ in uninterrupted}) == STEPS and len(pixels) == SAMPLES


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_change_nothing(uninterrupted, data, tmp_path, workers):
    assert fit(tmp_path, data(workers)) == uninterrupted


def test_another_seed_is_another_run(uninterrupted, data, tmp_path):
    assert fit(tmp_path, data(seed=8), epochs=1) != uninterrupted[: STEPS // EPOCHS]


def every_step(folder):
    return ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("validated", [False, True])
@pytest.mark.parametrize("bound", [{}, {"max_steps": STEPS}, {"max_steps": STEPS, "epochs": -1}])
def test_resuming_at_any_step_shows_what_was_left(uninterrupted, data, val_shards, tmp_path, workers, validated, bound):
    """Within an epoch, at its last batch, with the epoch's validation still to come or not; by epochs or by steps."""
    settings = {"val": str(val_shards)} if validated else {}
    assert fit(tmp_path, data(**settings), callbacks=[every_step(tmp_path / "c")], **bound) == uninterrupted
    steps = range(1, STEPS) if workers == 0 else (2, 4, 7, 8)
    for step in steps:
        rest = fit(tmp_path, data(workers, **settings), tmp_path / "c" / f"{step}.ckpt", **bound)
        assert rest == uninterrupted[step:], step


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bound", [{}, {"max_steps": STEPS}, {"max_steps": STEPS, "epochs": -1}])
@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 1, "save_on_train_epoch_end": False},  # at the end of validation
    ],
)
def test_resuming_at_the_end_of_an_epoch(uninterrupted, data, val_shards, tmp_path, workers, saving, bound):
    saver = ModelCheckpoint(tmp_path / "c", filename="{step}", save_top_k=-1, auto_insert_metric_name=False, **saving)
    assert fit(tmp_path, data(val=str(val_shards)), callbacks=[saver], **bound) == uninterrupted
    assert sorted(p.stem for p in (tmp_path / "c").iterdir()) == ["12", "4", "8"]
    for step in (4, 8):
        rest = fit(tmp_path, data(workers, val=str(val_shards)), tmp_path / "c" / f"{step}.ckpt", **bound)
        assert rest == uninterrupted[step:], step


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_after_validation_within_an_epoch(uninterrupted, data, val_shards, tmp_path, workers):
    saver = ModelCheckpoint(tmp_path / "c", filename="{step}", save_top_k=-1, auto_insert_metric_name=False)
    settings = {"val_check_interval": 2}
    assert fit(tmp_path, data(val=str(val_shards)), callbacks=[saver], **settings) == uninterrupted
    assert sorted(int(p.stem) for p in (tmp_path / "c").iterdir()) == [2, 4, 6, 8, 10, 12]
    for step in (2, 4, 6, 8):
        rest = fit(tmp_path, data(workers, val=str(val_shards)), tmp_path / "c" / f"{step}.ckpt", **settings)
        assert rest == uninterrupted[step:], step


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_a_finished_run_with_more_epochs(uninterrupted, data, tmp_path, workers):
    saver = ModelCheckpoint(tmp_path / "c", save_last=True)
    assert fit(tmp_path, data(), callbacks=[saver], epochs=2) == uninterrupted[:8]
    assert fit(tmp_path, data(workers), tmp_path / "c" / "last.ckpt") == uninterrupted[8:]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, 4, 7])
def test_resuming_after_a_crash_within_a_step(uninterrupted, data, tmp_path, workers, step):
    """The checkpoint that is written when an exception ends the run has begun a batch that it did not finish."""
    run, module = trainer(tmp_path, [StopIn(step)]), Tiny()

    class Save(Callback):
        def on_exception(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / "crash.ckpt")

    run.callbacks.append(Save())
    with pytest.raises(Stop):
        run.fit(module, datamodule=data())
    assert module.seen == uninterrupted[:step]
    assert fit(tmp_path, data(workers), tmp_path / "crash.ckpt") == uninterrupted[step:]


def test_resuming_twice(uninterrupted, data, tmp_path):
    assert fit(tmp_path, data(), callbacks=[every_step(tmp_path / "a")]) == uninterrupted
    again = [every_step(tmp_path / "b")]
    assert fit(tmp_path, data(), tmp_path / "a" / "5.ckpt", callbacks=again) == uninterrupted[5:]
    assert fit(tmp_path, data(2), tmp_path / "b" / "6.ckpt") == uninterrupted[6:]
    assert fit(tmp_path, data(2), tmp_path / "b" / "9.ckpt") == uninterrupted[9:]


@pytest.mark.parametrize("workers", [0, 2])
def test_reloading_loaders_each_epoch_changes_nothing(uninterrupted, data, tmp_path, workers):
    assert fit(tmp_path, data(workers), reload_dataloaders_every_n_epochs=1) == uninterrupted


def test_validation_shows_every_sample_once_in_order(data, val_shards, tmp_path):
    for workers in (0, 2):
        module = Tiny()
        wanted = data(workers, val=str(val_shards), zeroshot=str(val_shards))
        trainer(tmp_path, epochs=1).fit(module, datamodule=wanted)
        for place in (0, 1):
            assert [k for p, keys in module.evaluated if p == place for k in keys] == [f"v{i:03d}" for i in range(12)]


@pytest.mark.parametrize(
    ("settings", "stage", "message"),
    [
        ({"train": None}, "fit", "data.train is not set"),
        ({"val": None}, "validate", "data.val is not set"),
        ({}, "test", "data.test is not set"),
        ({"train": "no/such/shards"}, "fit", "no/such/shards"),
    ],
)
def test_missing_data_is_said_before_any_work(data, settings, stage, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        data(**settings).setup(stage)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"workers": -1}, "data.workers is -1"),
        ({"cache": 16}, "data.cache 16 is smaller than the model's images"),
        ({"captions": 0}, "data.captions is 0"),
        ({"captions": "some"}, "data.captions is some.*use 1 or more, or all"),
        ({"seed": -1}, "data.seed is -1"),
        ({"prefetch": 0}, "data.prefetch is 0"),
        ({"shuffle_block": 0}, "data.shuffle_block is 0"),
        ({"decode": "quick"}, "data.decode 'quick' is unknown; use fast or exact"),
        ({"weights": [0.0]}, "only positive numbers are proportions"),
        ({"weights": [float("nan")]}, "only positive numbers are proportions"),
        ({"batch_size": "all"}, "data.batch_size is all"),
        ({"weights": [1.0, 2.0]}, "data.weights has 2 numbers and data.train 1 items"),
        ({"caption_fields": {"txt": 0.0}}, "is never drawn"),
        ({"caption_fields": {"txt": 1.0}, "captions": "all"}, "data.captions all counts the lines"),
    ],
)
def test_settings_that_cannot_work_are_refused(data, settings, message):
    with pytest.raises(ValueError, match=message):
        data(**settings)


def test_a_batch_larger_than_the_data_set_is_refused(data, tmp_path):
    with pytest.raises(ValueError, match=r"batch_size 25 is larger than the data set \(24 samples\)"):
        fit(tmp_path, data(batch_size=25))


def test_a_cache_changes_nothing_where_images_are_no_larger(uninterrupted, data, tmp_path):
    assert fit(tmp_path, data(2, cache=32)) == uninterrupted


def test_the_spec_is_needed(shards, tmp_path):
    with pytest.raises(ValueError, match="spec is not set"):
        fit(tmp_path, PairData(str(shards), batch_size=BATCH, workers=0))


def test_damage_in_the_data_is_told_once(data, shards, tmp_path, caplog):
    for path in shards.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = sorted(tmp_path.glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:-30_000])
    data(train=str(tmp_path)).setup("fit")
    told = [r.getMessage() for r in caplog.records if r.name == "dualenc"]
    assert any(m.startswith("train: 1 dropped: truncated shard") for m in told)


def test_augmentation_is_documented_by_plain_values():
    assert all(isinstance(v, (int, float, tuple)) for v in dataclasses.asdict(Augment()).values())


@pytest.mark.parametrize("name", ["batch_size", "seed", "shuffle_block", "shards"])
def test_another_order_in_the_middle_of_an_epoch_is_refused(data, shards, tmp_path, name):
    fit(tmp_path, data(), callbacks=[every_step(tmp_path / "c")])
    both = sorted(str(path) for path in shards.glob("*.tar"))
    changed = {"batch_size": 6, "seed": 8, "shuffle_block": 4, "shards": both[::-1]}
    changed = {"train" if name == "shards" else name: changed[name]}
    with pytest.raises(ValueError, match=f"in the middle of an epoch with {name}") as error:
        fit(tmp_path, data(**changed), tmp_path / "c" / "2.ckpt")
    assert "\n" not in str(error.value)
    fit(tmp_path, data(**changed), tmp_path / "c" / "4.ckpt", epochs=2)  # at an epoch's end nothing is lost by it


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 4, 6, 8])
def test_a_run_that_was_ended_by_its_steps_goes_on_with_more(uninterrupted, data, val_shards, tmp_path, workers, stop):
    """Lightning takes such an end within an epoch for the epoch's end."""
    first = [
        ModelCheckpoint(tmp_path / "a", filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    ]
    again = [
        ModelCheckpoint(tmp_path / "b", filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    ]
    settings = {"val": str(val_shards)}
    assert fit(tmp_path, data(**settings), callbacks=first, max_steps=stop) == uninterrupted[:stop]
    more = fit(tmp_path, data(workers, **settings), tmp_path / "a" / "last.ckpt", callbacks=again, max_steps=stop + 3)
    assert more == uninterrupted[stop : stop + 3]
    rest = fit(tmp_path, data(workers, **settings), tmp_path / "b" / "last.ckpt", max_steps=STEPS)
    assert rest == uninterrupted[stop + 3 :]


def test_a_block_shuffle_is_resumed_too(data, tmp_path):
    whole = fit(tmp_path, data(shuffle_block=4), callbacks=[every_step(tmp_path / "c")])
    assert [keys for _, keys, *_ in whole] != [keys for _, keys, *_ in fit(tmp_path, data())]
    assert fit(tmp_path, data(2, shuffle_block=4), tmp_path / "c" / "6.ckpt") == whole[6:]


def test_a_weighted_mixture_in_a_run(data, shards, val_shards, tmp_path):
    """24 samples and 12, one of which does not decode, in equal parts."""
    mixed = {"train": [str(shards), str(val_shards)], "weights": [1.0, 1.0], "batch_size": 6}
    seen = fit(tmp_path, data(**mixed), callbacks=[every_step(tmp_path / "c")], epochs=2)
    for epoch in range(2):
        keys = [key for e, batch, *_ in seen if e == epoch for key in batch]
        assert len(keys) == len(set(keys)) == 24 and sum(key.startswith("v") for key in keys) == 12
    assert len({key for _, batch, *_ in seen for key in batch}) == 36  # the second epoch shows the other half
    assert fit(tmp_path, data(2, **mixed), tmp_path / "c" / "5.ckpt", epochs=2) == seen[5:]


def test_all_captions_of_the_sample_with_most(data, shards, tmp_path):
    made = data(captions="all")
    made.setup("fit")
    assert made.captions == 2


def test_all_captions_are_refused_where_one_sample_has_too_many(data, tmp_path):
    write_tar(tmp_path / "t.tar", [m for key in "abc" for m in sample(key)] + sample("odd", captions=["x"] * 101))
    with pytest.raises(ValueError, match="odd has 101 captions"):
        data(train=str(tmp_path), captions="all").setup("fit")


def test_a_caption_field_that_nothing_has_is_told(data, tmp_path, caplog):
    write_tar(tmp_path / "t.tar", [m for key in "abcdef" for m in sample(key, json={"made": f"a {key}"})])
    data(train=str(tmp_path), caption_fields={"txt": 0.5, "made": 0.5}).setup("fit")
    assert not caplog.records
    data(train=str(tmp_path), caption_fields={"txt": 0.5, "mde": 0.5}).setup("fit")
    assert [r.getMessage() for r in caplog.records] == [
        "no caption in 'mde' among the first 1000 samples, so others take its share; check its name"
    ]
