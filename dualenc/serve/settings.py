"""What `dualenc serve` is told, as one value that all of its processes share."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "DUALENC_SERVE"  # the environment variable that hands the settings, as JSON, to each worker
PRECISIONS = ("auto", "float32", "bfloat16", "int8")
LOGS = ("text", "json")


@dataclass(frozen=True)
class Settings:
    """Settings of a server. ValueError: a value that cannot be, with what to write instead."""

    indexes: dict[str, Path]  # name -> folder, in order; the first is the default
    encoder: str | None = None  # overrides what the manifests say; its fingerprint is checked
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    workers: int = 1  # processes
    threads: int | None = None  # of one worker; None: cores // workers, at least 1
    token: str | None = None  # that every request but /healthz and /readyz must show; None: nobody has to
    cors: tuple[str, ...] = ()  # origins whose pages may call; "*" for all
    rate: float | None = None  # requests a second and client address, in bursts of 2 seconds' worth; None: no limit
    proxy: bool = False  # whether a proxy on this machine says who calls (X-Forwarded-For, X-Forwarded-Proto)
    fetch_urls: bool = False  # whether `image_url` may be fetched, from public addresses only
    max_body: int = 20 << 20  # bytes of a request
    max_pixels: int = 50_000_000  # of a picture that is sent
    precision: str = "auto"  # of the encoder: auto, float32, bfloat16 or int8
    log: str = "text"  # text or json

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "indexes", {name: Path(folder) for name, folder in self.indexes.items()})
        object.__setattr__(self, "cors", tuple(self.cors))

    def __repr__(self) -> str:
        """All but the token, which no log may hold."""
        shown = {**dataclasses.asdict(self), "token": None if self.token is None else "…"}
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def to_json(self) -> str:
        """The settings as `from_json` reads them."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Settings of a JSON object; what it leaves out is as the defaults. ValueError: no such object, unknown names."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f'settings are not JSON ({error}); write {{"indexes": {{"name": "folder"}}}}') from error
        if not isinstance(values, dict) or "indexes" not in values:
            raise ValueError('settings name no index; write {"indexes": {"name": "folder"}}')
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise ValueError(f"settings {', '.join(map(repr, unknown))} are unknown; known: {', '.join(known)}")
        return cls(**values)


def _check(settings: Settings) -> None:
    indexes: Any = settings.indexes
    if not isinstance(indexes, dict) or not indexes:
        raise ValueError("there is no index to serve; name one folder or more")
    for name in indexes:
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > 200:
            raise ValueError(f"index name {name!r} cannot be asked for; use up to 200 printable characters")
    for name, least in (("workers", 1), ("threads", 1), ("port", 0), ("max_body", 1024), ("max_pixels", 1)):
        value = getattr(settings, name)
        if value is None and name == "threads":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}; give a whole number, {least} or more")
    if settings.port > 65535:
        raise ValueError(f"port={settings.port}; ports end at 65535")
    if settings.rate is not None and not 0 < settings.rate < float("inf"):
        raise ValueError(f"rate={settings.rate!r}; give requests a second, more than 0, or leave it out for no limit")
    token = settings.token
    if token is not None and not (token.isascii() and token.isprintable() and token == token.strip() != ""):
        raise ValueError("the token is empty, has spaces around it or is not plain ASCII; no client could send it")
    for name, values in (("precision", PRECISIONS), ("log", LOGS)):
        if getattr(settings, name) not in values:
            raise ValueError(f"{name}={getattr(settings, name)!r} is unknown; use {', '.join(values)}")
