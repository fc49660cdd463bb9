"""Start a server: listen, say so, and answer in this process or in several."""

from __future__ import annotations

import contextlib
import errno
import importlib
import importlib.util
import os
import signal
import socket
import sys
from typing import Any

from dualenc.files import read_json
from dualenc.serve import accesslog
from dualenc.serve.addresses import is_loopback
from dualenc.serve.settings import Settings

APPLICATION = "dualenc.serve.app:create_app"  # takes Settings, returns an ASGI application
NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
BACKLOG = 2048  # connections that may wait to be taken


def serve(settings: Settings, application: str = APPLICATION) -> int:
    """Serve until SIGTERM or Ctrl-C, finish what is running, and return 0; 1 where a request had to be given up.

    Says on stdout where it listens, as soon as requests are answered. Call it in the main thread: it takes the signals.
    ImportError: the extra is not installed. ValueError or OSError: an index, a setting or the address is unfit.
    """
    check_installed()
    if not is_loopback(settings.host) and settings.token is None:
        _say(
            f"warning: {settings.host} can be reached from other machines, and nobody is asked for a token: give one with "
            "--token-file, or stay on 127.0.0.1"
        )
    _allow_connections()
    with listen(settings.host, settings.port) as listener:
        signal.signal(signal.SIGTERM, _end)  # until there is something to finish
        signal.signal(signal.SIGINT, _end)
        if settings.workers > 1:
            from dualenc.serve.workers import supervise

            return supervise(settings, application, listener, lambda: announce(settings, listener), stopping)
        from dualenc.serve.process import Process

        accesslog.say_once()
        app = load(application)(settings)
        process = Process(app, lambda: announce(settings, listener), stopping, proxy=settings.proxy)
        return 0 if process.answer(listener) else 1


def _allow_connections() -> None:
    """Let as many files and connections be open as this user may have: the usual 1,024 are soon used up."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # not on Windows
        import resource

        soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and (most == resource.RLIM_INFINITY or soft < most):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check_installed() -> None:
    """ImportError with what to install, where a library is missing that only the server needs."""
    missing = [name for module, name in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        raise ImportError(
            f"the server needs {', '.join(missing)}, which {are} not installed: pip install 'dualenc[serve]'"
        )


def load(application: str) -> Any:
    """The function that `module:name` names."""
    module, _, name = application.partition(":")
    return getattr(importlib.import_module(module), name)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; connections wait in it until they are taken. ValueError: the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ValueError(_refused(error, host, port)) from error
    return listener


def _refused(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken; stop what listens there, or choose another with --port (0: any free one)"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} needs more rights than you have; choose one from 1024 on with --port"
    if error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME, socket.EAI_AGAIN):
        return f"{host!r} is no address of this machine; use --host 127.0.0.1, or 0.0.0.0 for all of them"
    return f"{host} port {port} cannot be listened at ({error.strerror or error}); choose others with --host and --port"


def announce(settings: Settings, listener: socket.socket) -> None:
    """Say what is served where: `dualenc: serving photos (6,000 rows) on http://127.0.0.1:8000`."""
    parts = [
        f"{name} ({read_json(folder / 'manifest.json')['rows']:,} rows)" for name, folder in settings.indexes.items()
    ]
    try:
        sys.stdout.write(f"dualenc: serving {', '.join(parts)} on {address(settings.host, listener)}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):  # nobody reads it, or it is closed: no reason not to serve
        sys.stdout = sys.stderr


def address(host: str, listener: socket.socket) -> str:
    """The URL of a listener: of this machine, where it listens at all addresses."""
    port = listener.getsockname()[1]
    everywhere = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}
    shown = everywhere.get(host, host)
    url = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    return f"{url} and this machine's other addresses" if host in everywhere else url


def stopping() -> None:
    """Say that it ends."""
    _say("stopping: what is running is finished first")


def _say(text: str) -> None:
    with contextlib.suppress(OSError, AttributeError):  # it is closed
        sys.stderr.write(f"dualenc: {text}\n")
        sys.stderr.flush()


def _end(number: int, _: Any) -> None:
    raise SystemExit(0)  # nothing is running yet


def leave(code: int) -> None:
    """End this process without waiting for its threads."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # its reader has left, or it is closed
            stream.flush()
    os._exit(code)
