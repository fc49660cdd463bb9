"""Whose embeddings these are: the encoder that a store, a caller or an index names, and the refusal of another's."""

from __future__ import annotations

from typing import Any

from dualenc.index.vectors import is_store


def store_metadata(source: Any, side: str) -> Any:
    """The metadata that a store has for a side; None for plain vectors."""
    if not is_store(source):
        return None
    return source.metadata() if side == "image" else source.text_metadata()


def source_folder(source: Any) -> str | None:
    """Where the store is that an index is made from; None for plain vectors."""
    return str(source.folder.absolute()) if is_store(source) else None


def whose(source: Any, encoder: Any) -> tuple[str | None, str | None]:
    """(fingerprint, name or path) of the encoder: the store's, or the one given; ValueError where they differ."""
    theirs = (source.fingerprint, source.encoder) if is_store(source) else (None, None)
    if encoder is None:
        return theirs
    given = fingerprint_of(encoder)
    refuse_foreign(theirs[0], given, "the encoder given")
    path = getattr(encoder, "path", None)
    return given, theirs[1] if path is None else str(path)


def fingerprint_of(encoder: Any) -> str:
    """The fingerprint that `encoder` is, or has."""
    fingerprint = encoder if isinstance(encoder, str) else getattr(encoder, "fingerprint", None)
    if not isinstance(fingerprint, str) or not fingerprint:
        raise ValueError(f"encoder={encoder!r} has no fingerprint; give an encoder or its fingerprint")
    return fingerprint


def refuse_foreign(ours: str | None, theirs: str | None, name: str) -> None:
    """ValueError when both fingerprints are known and differ: their cosines would mean nothing."""
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(
            f"{name} has fingerprint {theirs[:12]}…, the vectors are from {ours[:12]}…; "
            "use the encoder that embedded them, or embed and build again with this one"
        )
