"""Several processes that answer at one socket; one that dies is started again, and none outlives the one that watches."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from dualenc.serve.accesslog import say_once
from dualenc.serve.metrics import shared
from dualenc.serve.settings import VARIABLE, Settings

LONGEST_PAUSE = 30.0  # seconds between two starts of a worker that never gets ready
LOADING = 60.0  # seconds that a worker which replaces one that died waits for its encoders
_SPAWN = multiprocessing.get_context("spawn")  # a fork would share locks and threads of whatever is loaded


@dataclass
class Worker:
    """A process, and the pipe through which it says that it is ready, or why it is not."""

    process: Any
    messages: Connection
    ready: bool = False


def supervise(
    settings: Settings,
    application: str,
    listener: socket.socket,
    listening: Callable[[], None],
    stopping: Callable[[], None],
) -> int:
    """Answer in `settings.workers` processes until SIGTERM or Ctrl-C; returns as `run.serve`.

    They take connections from the one listener, as the system hands them out. listening() is called when all are ready.
    ValueError: a worker cannot start at all, and says why.
    """
    os.environ[VARIABLE] = settings.to_json()
    with _signals() as (told, bell), shared(settings.workers):
        team = Team(application, listener, settings.workers)
        try:
            team.watch(told, bell, listening)
            if told:
                stopping()
        finally:
            listener.close()  # first: the last worker to go then closes it for good
            lost = team.stop()
    return 1 if lost else 0


class Team:
    """The workers of one server."""

    def __init__(self, application: str, listener: socket.socket, size: int):
        self._application, self._listener = application, listener
        self._workers: list[Worker] = []
        self._announced = False
        self._missing, self._due, self._pause = size, 0.0, 0.0  # to be started, not before, and how long to wait then

    def watch(self, told: list[int], bell: int, listening: Callable[[], None]) -> None:
        """Start workers and keep them, until `told` holds a signal; `bell` can be read then."""
        while not told:
            self._start_missing()
            if not self._announced and not self._missing and all(worker.ready for worker in self._workers):
                listening()
                self._announced = True
            patience = max(0.0, self._due - time.monotonic()) if self._missing else None
            things = [thing for worker in self._workers for thing in (worker.messages, worker.process.sentinel)]
            wait([bell, *things], patience)
            self._hear()

    def stop(self) -> int:
        """Have all finish what is running; how many had to be killed or gave requests up."""
        from dualenc.serve.process import GRACE, LAST

        end = time.monotonic() + GRACE + LAST + 2
        # those that are still starting first: they hold the listener, and connections would wait in it for nobody
        for ready in (False, True):
            some = [worker.process for worker in self._workers if worker.ready is ready]
            for process in some:
                process.terminate()
            for process in some:
                process.join(max(0.0, end - time.monotonic()))
                if process.is_alive():
                    process.kill()
                    process.join()
        return sum(worker.ready and worker.process.exitcode != 0 for worker in self._workers)

    def _start_missing(self) -> None:
        if self._missing and time.monotonic() >= self._due:
            while self._missing:
                self._workers.append(_start(self._application, self._listener, replaces=self._announced))
                self._missing -= 1

    def _hear(self) -> None:
        """Take what the workers say, and bury those that died."""
        for worker in list(self._workers):
            problem = None
            with contextlib.suppress(EOFError, OSError):  # it died without a word
                while worker.messages.poll():
                    problem = worker.messages.recv()
                    worker.ready = problem is None
            if worker.ready:
                self._pause = 0.0
            if problem is None and worker.process.is_alive():
                continue
            worker.process.join()
            code = worker.process.exitcode
            reason = problem or (f"signal {-code}" if code < 0 else f"exit code {code}")
            if not self._announced:  # it would only die again
                raise ValueError(problem or f"a worker died before it was ready ({reason}); its log tells why")
            self._replace(worker, reason)

    def _replace(self, worker: Worker, reason: str) -> None:
        self._pause = 0.0 if worker.ready else min(LONGEST_PAUSE, 2 * self._pause or 1.0)
        when = f" in {self._pause:g} s" if self._pause else ""
        sys.stderr.write(f"dualenc: worker {worker.process.pid} died ({reason}); another is started{when}\n")
        sys.stderr.flush()
        worker.messages.close()
        self._workers.remove(worker)
        self._missing, self._due = self._missing + 1, time.monotonic() + self._pause


def _start(application: str, listener: socket.socket, replaces: bool) -> Worker:
    messages, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_work, args=(application, listener, theirs, replaces), name="dualenc worker")
    before = signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # inherited: Ctrl-C reaches all, and is for this process alone
    try:
        process.start()
    finally:
        signal.signal(signal.SIGINT, before)
    theirs.close()
    return Worker(process, messages)


def _work(application: str, listener: socket.socket, messages: Connection, replaces: bool) -> None:
    """What a worker does: says None when it answers, a reason when it cannot.

    replaces: others answer already, so it takes no requests before its encoders are loaded.
    """
    from dualenc.serve.process import Process
    from dualenc.serve.run import leave, load

    threading.Thread(target=_follow, daemon=True).start()
    say_once()
    try:
        settings = Settings.from_json(os.environ[VARIABLE])
        app = load(application)(settings)
    except Exception as error:
        messages.send(" ".join(str(error).split()) or type(error).__name__)
        leave(1)
    service = getattr(getattr(app, "state", None), "service", None)
    prepared = (lambda: service.settled(LOADING)) if replaces and service is not None else None
    process = Process(app, lambda: messages.send(None), supervised=True, prepared=prepared, proxy=settings.proxy)
    started = process.answer(listener)
    if not started:
        messages.send("the server did not start; its log tells why")
    leave(0 if started else 1)


def _follow() -> None:
    """Stop when the process that watches this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[tuple[list[int], int]]:
    """(signals to stop that came, a descriptor that can be read then). The second Ctrl-C ends this process at once."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    told: list[int] = []

    def tell(number: int, _: Any) -> None:
        if told and number == signal.SIGINT:
            raise KeyboardInterrupt
        told.append(number)
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b"!")

    before = {number: signal.signal(number, tell) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told, reader
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)
