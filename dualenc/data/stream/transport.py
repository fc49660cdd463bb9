"""One shard that is not local, as a stream of bytes: the program that reads it, and what to do when the connection breaks.

webdataset opens `pipe:` and `file:` and runs our command lines for the rest. Its own would wait a minute for a server that
is gone, send `Bearer None` to Hugging Face, and it knows no `s3://`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable
from typing import Any

from webdataset.gopen import Pipe, gopen, rewrite_url

log = logging.getLogger("dualenc")

BROKEN, MISSING = "broken stream", "missing shard"
RETRIES = 5
DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before the first retry, doubled for each one up to the longest
STALL = 60  # seconds without a byte after which curl gives a connection up
PROGRESS = 1 << 20  # bytes after which a stream that breaks again has all its retries before it
CHUNK = 1 << 20

CURL = ("http", "https", "hf", "ftp", "ftps", "sftp", "scp")
TOOLS = dict.fromkeys(CURL, ("curl", "install curl")) | {
    "s3": ("aws", "pip install awscli"),
    "gs": ("gsutil", "install the Google Cloud CLI"),
}
_CANNOT_RESUME, _HTTP_ERROR = 33, 22  # exit statuses of curl
_HOPELESS = (1, 3, 60)  # no such protocol, no such URL, a certificate that is not trusted
_GONE = r"NoSuchKey|NoSuchBucket|AccessDenied|Not Found|Forbidden|No URLs matched|matched no objects|\((40[0134]|410)\)"


class ShardError(OSError):
    """A shard of which nothing, or nothing more, can be read; `reason` is what its loss is counted under."""

    def __init__(self, reason: str, url: str, why: str):
        super().__init__(f"{shown(url)}: {reason}: {why}")
        self.reason = reason


def shown(url: str) -> str:
    """A URL as it may stand in a log: without password and signature."""
    return url if url.startswith("pipe:") else re.sub(r"\?.*", "?…", re.sub(r"//[^/@]*@", "//", url))


def scheme(url: str) -> str:
    """What stands before the first colon of a URL; "" for a plain path."""
    match = re.match(r"(pipe|file):|([a-z][a-z0-9+.-]+)://", url)
    return (match[1] or match[2]) if match else ""


def check_tools(urls: Iterable[str]) -> None:
    """FileNotFoundError where the program that reads a URL is not installed; ValueError where there is none."""
    for name in sorted({scheme(rewrite_url(url)) for url in urls}):
        tool, cure = TOOLS.get(name, (None, None))
        if tool is not None and shutil.which(tool) is None:
            raise FileNotFoundError(
                f"{tool} is not installed, and {name}:// is read with it; {cure}, or copy the shards to a local folder"
            )
        if tool is None and name not in ("", "file", "pipe", "ais", "htgs"):
            known = ", ".join(f"{scheme}://" for scheme in TOOLS)
            raise ValueError(f"{name}:// cannot be read; use {known}, file:, pipe:COMMAND or a local path")


class Reader:
    """The bytes of one shard from first to last.

    A stream that breaks is taken up where it broke, after a pause: from that byte on where the server can, else from the
    start, passing over what was read. ShardError when the shard is not there, or broke `retries` times more without
    PROGRESS. `complete`: the end was reached, and the program that read it says so too.
    """

    def __init__(self, url: str, retries: int = RETRIES):
        self.url, self.retries = rewrite_url(url), retries
        self.position, self.complete = 0, False
        self._attempt, self._broke_at, self._skip, self._offset = 0, 0, 0, 0
        self._resumes = scheme(self.url) in CURL
        self._source: Any = None  # a Pipe, or a file
        self._errors: Any = None  # what its program writes to stderr

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer only at the end."""
        return self._read(size, patient=True)

    def tail(self, size: int) -> bytes:
        """The same after a tar's end, where only padding is due: a break is not worth a retry."""
        return self._read(size, patient=False)

    def close(self) -> None:
        """End the program that reads, if it still runs."""
        if self._source is None:
            return
        getattr(self._source, "stream", self._source).close()
        if isinstance(self._source, Pipe):
            self._source.proc.kill()
            self._source.proc.wait()
        if self._errors is not None:
            self._errors.close()
        self._source = self._errors = None

    def _read(self, size: int, patient: bool) -> bytes:
        parts: list[bytes] = []
        while size and not self.complete:
            data = self._some(size)
            parts.append(data)
            size -= len(data)
            if not data and not self._at_end(patient):
                break
        return b"".join(parts)

    def _some(self, most: int) -> bytes:
        if self._source is None:
            self._open()
        stream = getattr(self._source, "stream", self._source)
        try:
            while self._skip:
                passed = len(stream.read(min(self._skip, CHUNK)))
                if not passed:
                    return b""
                self._skip -= passed
            data = stream.read(min(most, CHUNK))
        except OSError as error:
            raise ShardError(BROKEN, self.url, error.strerror or str(error)) from None
        self.position += len(data)
        return data

    def _open(self) -> None:
        self._offset = self.position if self._resumes else 0
        self._skip = self.position - self._offset
        if scheme(self.url) in TOOLS:
            check_tools([self.url])
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed in `close`)
            self._source = _run(self.url, self._offset, self._errors)
            return
        try:
            self._source = gopen(self.url)
        except OSError as error:
            raise ShardError(MISSING, self.url, error.strerror or str(error)) from None

    def _at_end(self, patient: bool) -> bool:
        """After the last byte: True at the shard's end, or with another connection before it."""
        status = self._source.proc.wait() if isinstance(self._source, Pipe) else 0
        why = self._complaint() or f"exit status {status}"
        if not isinstance(self._source, Pipe) or status in self._source.ignore_status:
            self.complete = True
            return True
        self.close()
        if not patient:
            return False
        if self._offset and (status == _CANNOT_RESUME or (status == _HTTP_ERROR and why.endswith(" 416"))):
            self._resumes = False
            return True
        self._check_worth(status, why)
        if self.position - self._broke_at >= PROGRESS:
            self._attempt = 0
        if self._attempt >= self.retries:
            raise ShardError(BROKEN, self.url, f"{why} ({self.retries} retries)")
        delay = min(DELAY * 2**self._attempt, LONGEST_DELAY)
        told = shown(self.url), self.position, why, delay, self._attempt + 1, self.retries
        log.warning("%s broke at byte %d (%s); trying again in %g s, %d of %d", *told)
        time.sleep(delay)
        self._attempt, self._broke_at = self._attempt + 1, self.position
        return True

    def _check_worth(self, status: int, why: str) -> None:
        """ShardError where another attempt would end the same way."""
        name = scheme(self.url)
        if name == "pipe" and status == 127 and not self.position:
            raise FileNotFoundError(
                f"{self.url}: the shell does not find a program in it; install it, or give its path"
            )
        if name in CURL:
            code = re.search(r"returned error: (\d+)", why)
            if code and code[1].startswith("4") and code[1] not in ("408", "425", "429"):
                raise ShardError(MISSING, self.url, f"HTTP {code[1]}")
            if status in _HOPELESS:
                raise ShardError(BROKEN, self.url, why)
        elif re.search(_GONE, why):
            raise ShardError(MISSING, self.url, why)

    def _complaint(self) -> str:
        """The last line that the program wrote to stderr."""
        if self._errors is None:
            return ""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _run(url: str, offset: int, errors: Any) -> Pipe:
    """The program that writes a shard to its stdout."""
    name = scheme(url)
    if name == "s3":
        return _pipe(["aws", "s3", "cp", "--only-show-errors", url, "-"], errors)
    if name == "gs":
        return _pipe(["gsutil", "-q", "cat", url], errors)
    command = ["curl", "--fail", "--silent", "--show-error", "--location", "--globoff", "--connect-timeout", "30"]
    command += ["--speed-limit", "1", "--speed-time", str(STALL)]
    if offset:
        command += ["--continue-at", str(offset)]
    if name != "hf":
        return _pipe([*command, "--url", url], errors)
    address, token = _hugging_face(url)
    # not on a command line, which others can see
    secret = f'header = "Authorization: Bearer {token}"\n' if token else ""
    return _pipe([*command, "--config", "-", "--url", address], errors, secret)


def _pipe(command: list[str], errors: Any, text: str = "") -> Pipe:
    end, start = os.pipe()
    with contextlib.closing(os.fdopen(end)) as stdin:
        with os.fdopen(start, "w") as writer:
            writer.write(text)
        return Pipe(command, mode="rb", bufsize=1 << 16, stdin=stdin, stderr=errors)


def _hugging_face(url: str) -> tuple[str, str | None]:
    """`hf://datasets/ORG/REPO[@REVISION]/PATH` -> (its https address, the user's token if there is one)."""
    from huggingface_hub import get_token, hf_hub_url

    match = re.fullmatch(r"hf://(?:(datasets|spaces)/)?([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", url)
    if match is None:
        raise ValueError(f"{url} names no file on Hugging Face; write hf://datasets/ORGANISATION/REPOSITORY/PATH.tar")
    kind = {"datasets": "dataset", "spaces": "space", None: None}[match[1]]
    endpoint = os.environ.get("HF_ENDPOINT")
    return hf_hub_url(match[2], match[4], repo_type=kind, revision=match[3], endpoint=endpoint), get_token()
