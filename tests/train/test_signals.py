"""What a signal does where no run is needed to see it; `test_kill.py` stops whole runs."""

import multiprocessing
import os
import signal
import threading
from types import SimpleNamespace

import pytest
from pytorch_lightning.utilities.exceptions import SIGTERMException

from dualenc.data.loader import outlive_a_signal
from dualenc.train import signals
from dualenc.train.signals import StopAtSignal, caught


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


class Trainer:
    """Enough of one: what is saved is noted in `saved`."""

    world_size, is_global_zero, training, max_epochs, max_steps, current_epoch = 1, True, True, 2, -1, 0

    def __init__(self, step=3, over=False, validates=False, last=False):
        progress = SimpleNamespace(is_last_batch=last, current=SimpleNamespace(ready=3, completed=3))
        loop = SimpleNamespace(
            _is_training_done=over, _should_check_val_fx=lambda _: validates, batch_progress=progress
        )
        self.fit_loop = SimpleNamespace(epoch_loop=loop, _data_fetcher=None)
        self._signal_connector = SimpleNamespace(received_sigterm=False)
        self.global_step, self.saved = step, []

    def save_checkpoint(self, path):
        self.saved.append(str(path))
        send()  # a second one, in the middle of it


@pytest.fixture
def running():
    """A fit whose steps have begun."""
    with caught():
        callback = StopAtSignal("folder/last.ckpt")
        callback.setup(Trainer(), None, "fit")
        callback.on_train_start(Trainer(), None)
        yield callback


def test_before_the_first_step_it_stops_on_the_spot(capfd):
    cleaned = False
    with pytest.raises(SystemExit) as stop, caught():
        try:
            send()
        finally:
            send()  # a second one does not disturb what is put in order
            cleaned = True
    assert stop.value.code == 0 and cleaned
    assert capfd.readouterr().err == "\nstopped by SIGTERM before the first step, so there is nothing to save\n"


def test_handlers_are_put_back(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    numbers = [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(SystemExit), caught():
        assert all(signal.getsignal(number) is signals._hear for number in numbers)
        send(signal.SIGUSR2)
    assert [signal.getsignal(number) for number in numbers] == before


def test_signals_that_others_use_are_left_to_them(monkeypatch):
    def own(*_):
        pass

    before = signal.signal(signal.SIGUSR1, own)
    try:
        monkeypatch.delenv("SLURM_JOB_ID", raising=False)
        with caught():
            assert signal.getsignal(signal.SIGUSR1) is own and signal.getsignal(signal.SIGUSR2) is signals._hear
        monkeypatch.setenv("SLURM_JOB_ID", "1")  # Lightning puts the job into the queue again at SIGUSR1
        with caught():
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGTERM) is signals._hear
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_other_threads_are_left_alone():
    found = []

    def fit():
        with caught():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=fit)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)] != [signals._hear]


def test_a_forked_process_dies_of_it():
    with caught():
        signals._heard.waits = True
        if (child := os.fork()) == 0:
            send()
            os._exit(7)  # it lived
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


def test_a_step_is_finished_and_saved_once(running, capfd):
    trainer = Trainer()
    running.on_train_batch_end(trainer)
    assert not trainer.saved and not trainer._signal_connector.received_sigterm
    send()
    assert capfd.readouterr().err == ""
    running.on_train_batch_end(trainer)
    assert trainer.saved == ["folder/last.ckpt"] and trainer._signal_connector.received_sigterm
    running.on_exception(trainer, None, SIGTERMException())
    said = "\nstopped by SIGTERM after step 3; folder/last.ckpt is written; go on with --ckpt_path last\n"
    assert capfd.readouterr().err == said


@pytest.mark.parametrize("no_place", [{"over": True}, {"validates": True}])
def test_where_no_run_can_be_resumed_nothing_is_saved(running, no_place):
    send()
    trainer = Trainer(**no_place)
    running.on_train_batch_end(trainer)
    assert not trainer.saved and not trainer._signal_connector.received_sigterm
    running.on_train_batch_end(after := Trainer(step=4))
    assert after.saved and after._signal_connector.received_sigterm


def test_an_epochs_end_stops_unless_it_is_the_last(running):
    trainer = Trainer()
    running.on_train_epoch_end(trainer, None)
    assert not trainer._signal_connector.received_sigterm
    send()
    trainer.current_epoch = 1
    running.on_train_epoch_end(trainer, None)
    assert not trainer._signal_connector.received_sigterm  # the encoder is written instead
    trainer.current_epoch = 0
    running.on_train_epoch_end(trainer, None)
    assert trainer._signal_connector.received_sigterm and not trainer.saved  # the epoch's own checkpoint is there


def test_during_validation_it_says_that_it_waits(running, capfd):
    running.on_validation_start(None, None)
    send()
    assert capfd.readouterr().err == "\nSIGTERM: training stops after this validation\n"
    running.on_validation_end(None, None)
    running.on_train_batch_end(trainer := Trainer())
    assert trainer.saved


def test_a_worker_outlives_the_first_signal_alone():
    ours, theirs = multiprocessing.get_context("fork").Pipe()

    def work():
        outlive_a_signal()
        theirs.send("ready")
        while True:
            theirs.send(theirs.recv())

    process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
    process.start()
    assert ours.poll(30) and ours.recv() == "ready"
    process.terminate()
    ours.send("still there?")
    assert ours.poll(30) and ours.recv() == "still there?"
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGTERM


def test_lightnings_own_way_is_replaced_where_ours_is_at_work_alone():
    trainer, callback = Trainer(), StopAtSignal("last.ckpt")
    callback.setup(trainer, None, "fit")
    assert not hasattr(trainer._signal_connector, "_sigterm_notifier_fn")  # nobody else would act on a signal
    with caught():
        callback.setup(trainer, None, "fit")
        trainer._signal_connector._sigterm_notifier_fn(signal.SIGTERM, None)
    assert not trainer._signal_connector.received_sigterm
