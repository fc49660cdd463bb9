"""One process that answers requests: uvicorn, stopped so that whatever has reached it is still answered."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any

import uvicorn

from dualenc.serve import protocol
from dualenc.serve.run import leave

GRACE = 10.0  # seconds that requests have to finish once the process is told to stop; then they are cancelled
LINGER = 1.0  # seconds that idle connections stay open then: their next request may be on its way
LAST = 5.0  # seconds more for what no request waits for, such as an encoder that is still loading
KEEP_ALIVE = 75  # seconds of silence until a connection is closed: longer than the 60 s of the usual proxies
Message = dict[str, Any]
Asgi = Callable[[Any, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class Process(uvicorn.Server):
    """uvicorn's server on a socket that listens already.

    prepared(): awaited when the app has started, before connections are taken. listening() is called when they are;
    stopping() at the first signal to stop. supervised: Ctrl-C, which reaches the whole group of processes, is left to the
    one that started this.
    """

    def __init__(
        self,
        app: Asgi,
        listening: Callable[[], None] = lambda: None,
        stopping: Callable[[], None] = lambda: None,
        supervised: bool = False,
        prepared: Callable[[], Awaitable[None]] | None = None,
        proxy: bool = False,
    ):
        super().__init__(
            uvicorn.Config(
                self._answered(app),
                interface="asgi3",
                http=protocol.best(),
                lifespan="on",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=proxy,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(GRACE),
            )
        )
        self._listening, self._stopping, self._supervised = listening, stopping, supervised
        self._prepared = prepared

    def answer(self, listener: socket.socket) -> bool:
        """Answer requests until told to stop; False where the app did not start, which it has said in the log.

        A process that is told so by a signal ends within GRACE + LAST seconds, whatever its threads do.
        """
        if threading.current_thread() is threading.main_thread():
            for number in (
                signal.SIGTERM,
                signal.SIGINT,
            ):  # before uvicorn listens for them, and when it hands them back
                signal.signal(number, lambda *_: setattr(self, "should_exit", True))
        try:
            self.run(sockets=[listener])
        except SystemExit:  # how uvicorn says that the app did not start
            return False
        return True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, then says so."""
        await super().startup(sockets)
        if self.started and not self.should_exit:
            self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal to stop; the second Ctrl-C stops at once."""
        if self._supervised and sig == signal.SIGINT:
            return
        first = not self.should_exit
        super().handle_exit(sig, frame)
        if first:
            threading.Thread(target=self._bound, daemon=True).start()
            self._stopping()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what the open ones still bring, and close them one after the other."""
        pending = [listener.dup() for listener in sockets or []]
        for server in self.servers:
            server.close()
        for listener in pending:
            await self._accept_last(listener)
        deadline = time.monotonic() + LINGER
        while self.server_state.connections and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def _accept_last(self, listener: socket.socket) -> None:
        """Take the connections that the system has made and nobody has looked at: they would be reset."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        taken = []
        with contextlib.suppress(OSError), listener:
            while True:
                taken.append(listener.accept()[0])
        for connection in taken:
            with contextlib.suppress(OSError):  # it has left meanwhile
                await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    def _answered(self, app: Asgi) -> Asgi:
        """The app; its start ends with prepared(), a request whose caller has left ends where it is, and what is answered
        from the signal on also says that the connection will be closed."""

        async def answered(scope: Any, receive: Any, send: Any) -> None:
            async def watched(message: Message) -> None:
                if self.should_exit and message["type"] == "http.response.start":
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
                elif self._prepared is not None and message["type"] == "lifespan.startup.complete":
                    await self._prepared()  # uvicorn listens when it has this message
                await send(message)

            with protocol.ends_with_its_caller(scope, receive):
                await app(scope, receive, watched)

        return answered

    def _bound(self) -> None:
        """End the process when its time is over: a thread that hangs must not keep it."""
        end, quiet = time.monotonic() + GRACE + LAST, None
        while (now := time.monotonic()) < end:
            if self.server_state.tasks or self.server_state.connections:
                quiet = None
            elif quiet is None:
                quiet = now
            elif now - quiet > LAST:  # nobody waits for anything: the threads that are left may go
                leave(0)
            time.sleep(0.1)
        sys.stderr.write(f"dualenc: {len(self.server_state.tasks)} requests took more than {GRACE:g} s and are lost\n")
        leave(1)
