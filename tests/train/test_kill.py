"""kill -9 and SIGTERM at random moments, and resume: over the whole run, every step is shown what an uninterrupted run is
shown."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.small import write_shards
from tests.train.conftest import read_log
from tests.train.fitting import fit, steps
from tests.train.test_gather import free_port

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["tests.train.fitting"])  # torch and open_clip are imported once for all of them
EPOCHS, BATCH, SAMPLES = 3, 8, 50
PATIENCE = 120  # seconds


class Run:
    """A `dualenc fit` that can be started again and again."""

    def __init__(self, folder: Path, name: str, config: dict):
        self.root, self.notes = folder / name, str(folder / f"{name}.notes")
        self.config = folder / f"{name}.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def start(self, *words, ranks=1):
        """Its processes, one a rank, as torchrun would start them."""
        resume = ["--ckpt_path", "last"] if (self.root / "checkpoints" / "last.ckpt").exists() else []
        words = ["--config", str(self.config), *resume, "--trainer.devices", str(ranks), *map(str, words)]
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "TORCHELASTIC_RUN_ID": "test"}
        common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "GROUP_RANK": "0"}
        processes = []
        for rank in range(ranks):
            own = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            processes.append(forked.Process(target=fit, args=(words, self.notes, own)))
            processes[-1].start()
        return processes

    def finish(self, *words, ranks=1):
        for process in self.start(*words, ranks=ranks):
            process.join(PATIENCE)
            assert process.exitcode == 0, self.errors()[-3000:]
        return self

    def kill(self, rng, *words, ranks=1):
        """Start it and kill it within a few steps."""
        for process in self._begun(rng, words, ranks):
            process.kill()
            process.join()

    def stop(self, rng, *words, ranks=1, send=lambda processes: processes[-1].terminate()):
        """Start it, `send` a signal within a few steps, and wait; the step after which it says that it stopped."""
        told = len(self.stops())
        processes = self._begun(rng, words, ranks)
        send(processes)
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode == 0, self.errors()[-3000:]
        assert len(self.stops()) == told + 1, self.errors()[-3000:]
        state = torch.load(self.root / "checkpoints" / "last.ckpt", weights_only=True)
        assert state["global_step"] == self.stops()[-1]
        return self.stops()[-1]

    def stops(self):
        path = re.escape(str(self.root / "checkpoints" / "last.ckpt"))
        said = rf"^stopped by .+ after step (\d+); {path} is written; go on with --ckpt_path last$"
        return [int(step) for step in re.findall(said, self.errors(), re.MULTILINE)] if self.told() else []

    def told(self):
        return Path(f"{self.notes}-errors").exists()

    def _begun(self, rng, words, ranks):
        """Its processes, a few steps after they were started."""
        processes, until = self.start(*words, ranks=ranks), self.lines() + ranks * rng.randint(1, 7)
        end = time.monotonic() + PATIENCE
        while processes[0].is_alive() and self.lines() < until and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)  # within a step, a checkpoint, the fetching of a batch
        return processes

    def lines(self):
        return sum(path.read_bytes().count(b"\n") for path in self.root.parent.glob(f"{Path(self.notes).name}.*"))

    def errors(self):
        return Path(f"{self.notes}-errors").read_text()

    def weights(self):
        return torch.load(self.root / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]

    def counts(self):
        """The last value of each count of samples at each step."""
        log = read_log(self.root / "log" / "metrics.csv")
        return {name: dict(values) for name, values in log.items() if name.startswith("data/")}


@pytest.fixture(scope="module")
def make(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    shards = write_shards(folder / "shards", SAMPLES, shards=6, broken=(3, 31))

    def make(name, **data):
        data = {"train": str(shards), "val": None, "zeroshot": None, "batch_size": BATCH} | data
        data["augment"] = {"scale": [0.5, 1.0], "flip": 0.5, "color_jitter": 0.3}
        changes = {
            "trainer": {"max_epochs": EPOCHS, "max_steps": EPOCHS * (SAMPLES // BATCH)},
            "checkpoint": {"every_n_train_steps": 2},
        }
        return Run(folder, name, settings(folder / name, data=data, **changes))

    make.shards = shards
    return make


@pytest.fixture(scope="module")
def whole(make):
    """An uninterrupted run."""
    run = make("whole").finish()
    shown = steps(run.notes)
    assert sorted(shown) == list(range(EPOCHS * (SAMPLES // BATCH)))
    rows = [tuple(row) for rows in shown.values() for row in rows]
    assert len({key for key, _ in rows}) == SAMPLES and len(set(rows)) > 2 * SAMPLES  # other crops in other epochs
    return run


def same(run, whole, ranks=(1,)):
    """Both runs were shown the same at every step and counted the same; the weights too are the same to the bit, unless
    several ranks added up their gradients in another order."""
    assert steps(run.notes) == steps(whole.notes)
    assert run.counts() == whole.counts()
    expected = whole.weights()
    assert ranks != (1,) or all(torch.equal(tensor, expected[name]) for name, tensor in run.weights().items())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_goes_on_where_it_was(make, whole, seed):
    rng, run = random.Random(seed), make(f"killed{seed}")
    for _ in range(2):
        run.kill(rng, "--data.workers", 2 * seed)
    same(run.finish(), whole)


def test_another_number_of_ranks_and_workers_goes_on_with_the_same(make, whole):
    """Two ranks over gloo, killed, then one, and one, killed, then two."""
    for name, ranks in {"two_then_one": (2, 1), "one_then_two": (1, 2)}.items():
        run = make(name)
        run.kill(random.Random(2), "--data.workers", 1, ranks=ranks[0])
        same(run.finish(ranks=ranks[1]), whole, ranks)


def everyone(processes):
    """SIGTERM to the run and to its loader's workers, as SLURM and systemd send it, and soon again."""
    ids = [process.pid for process in processes]
    children: list[int] = []
    for pid in ids:
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            children += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    for pid in [*children, *ids]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    time.sleep(0.005)
    processes[0].terminate()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_run_goes_on_where_it_was(make, whole, workers):
    """SIGTERM, and SIGUSR1, twice the same: saved within an epoch or at its end; by both, no step is made twice."""
    rng, run = random.Random(workers), make(f"stopped{workers}")
    first = run.stop(rng, "--data.workers", workers)
    second = run.stop(rng, "--data.workers", workers, send=lambda processes: os.kill(processes[0].pid, signal.SIGUSR1))
    assert 1 <= first < second < EPOCHS * (SAMPLES // BATCH)
    made = [
        line for path in run.root.parent.glob(f"{Path(run.notes).name}.*") for line in path.read_text().splitlines()
    ]
    assert len(made) == second  # nothing was lost
    same(run.finish(), whole)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers there")
@pytest.mark.parametrize("ranks", [1, 2])
def test_workers_that_are_stopped_too_cost_nothing(make, whole, ranks):
    run = make(f"everyone{ranks}")
    run.stop(random.Random(3), "--data.workers", 2, ranks=ranks, send=everyone)
    same(run.finish(ranks=ranks), whole, ranks=(1,) if ranks == 1 else (2, 2))


def test_one_of_two_ranks_is_told_to_stop(make, whole):
    run = make("one_rank")
    run.stop(random.Random(4), ranks=2)
    same(run.finish(ranks=2), whole, ranks=(2, 2))


def test_a_run_that_has_not_begun_leaves_nothing(make):
    run = make("early")
    (process,) = run.start()
    while not (run.told() and "preparing" in run.errors()) and process.is_alive():
        time.sleep(0.002)
    process.terminate()
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert "stopped by SIGTERM before the first step, so there is nothing to save" in run.errors()
    assert not run.root.exists()


@pytest.fixture(scope="module")
def streamed(make):
    """An uninterrupted run over streams, with two workers."""
    run = make("streamed", **streams(make)).finish()
    rows = [key for rows in steps(run.notes).values() for key, _ in rows]
    assert len(rows) == len(steps(run.notes)) * BATCH and len(set(rows)) == SAMPLES
    return run


def streams(make):
    return {"train": [f"pipe:cat {make.shards}/shard-{{000..005}}.tar"], "workers": 2, "stream": {"buffer": 10}}


@pytest.mark.parametrize("seed", [0, 1])
def test_a_killed_run_over_streams_goes_on_where_it_was(make, streamed, seed):
    rng, run = random.Random(seed), make(f"stream{seed}", **streams(make))
    for _ in range(2):
        run.kill(rng)
    same(run.finish(), streamed)


def test_a_stream_is_not_resumed_by_others_in_the_middle_of_an_epoch(make, streamed):
    run = make("ended", **streams(make)).finish("--trainer.max_steps", 4)
    (refused,) = run.start("--data.workers", 1)
    refused.join(PATIENCE)
    assert refused.exitcode == 1
    assert "in the middle of an epoch with workers 2, now 1" in run.errors()
    assert steps(run.finish().notes) == steps(streamed.notes)


@pytest.mark.full
def test_a_killed_run_over_streams_on_two_ranks(make):
    whole, run = (make(name, **streams(make) | {"workers": 1}) for name in ("two_ranks", "two_ranks_killed"))
    whole.finish(ranks=2)
    for _ in range(2):
        run.kill(random.Random(), ranks=2)
    same(run.finish(ranks=2), whole, ranks=(2, 2))


@pytest.mark.full
def test_a_run_killed_twenty_times_with_other_numbers_of_workers(make, whole):
    rng, run = random.Random(), make("twenty")
    for kill in range(25):
        if (run.root / "encoder").exists():  # it came to its end: begin another
            same(run, whole)
            run = make(f"twenty{kill}")
        run.kill(rng, "--data.workers", rng.choice([0, 1, 3]))
    same(run.finish(), whole)


@pytest.mark.full
def test_a_run_over_streams_killed_twenty_times(make, streamed):
    rng, run = random.Random(), make("stream_twenty", **streams(make))
    for kill in range(20):
        if (run.root / "encoder").exists():
            same(run, streamed)
            run = make(f"stream_twenty{kill}", **streams(make))
        run.kill(rng)
    same(run.finish(), streamed)


@pytest.mark.full
def test_a_run_stopped_twenty_times(make, whole):
    rng, run = random.Random(), make("stopped_twenty")
    for stop in range(20):
        if (run.root / "encoder").exists():
            same(run, whole)
            run = make(f"stopped_twenty{stop}")
        processes = run._begun(rng, ["--data.workers", rng.choice([0, 1, 3])], 1)
        rng.choice([lambda p: p[0].terminate(), everyone])(processes)
        processes[0].join(PATIENCE)
        assert processes[0].exitcode == 0, run.errors()[-3000:]
    same(run.finish(), whole)
