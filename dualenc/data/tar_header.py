"""What one header of a tar says, and what is left of a damaged one: functions of bytes alone."""

from __future__ import annotations

import zlib

BLOCK = 512
MAGIC, MAGIC_AT = b"ustar", 257


def parse(header: bytes) -> tuple[bytes, str, int] | None:
    """(kind, name, size) of a header, or None where its checksum or its size is wrong."""
    field, size = header[148:156], header[124:136]
    checksum = field.split(b"\0", 1)[0].strip(b" ")
    if len(header) < BLOCK or not checksum.isdigit():
        return None
    try:
        # the sum of all bytes, the checksum's own read as spaces; Adler-32's lower half is 1 + the sum of all bytes modulo
        # 65521, ten times faster than sum()
        wanted = int(checksum, 8) - 8 * 32 + (zlib.adler32(field) & 0xFFFF)
        if zlib.adler32(header) & 0xFFFF != wanted % 65521:
            return None
        digits = size.strip(b" \0")
        length = int.from_bytes(size[1:], "big") if size[0] == 0x80 else int(digits, 8) if digits else 0
    except ValueError:  # not octal
        return None
    if length < 0 or length >> 63:
        return None
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return header[156:157], name.decode("utf-8", "surrogateescape"), length


def extends(header: bytes) -> tuple[bool, bool]:
    """Whether a damaged header looks like one that said the name of the next member, and whether too little of it is left."""
    name, field = header[:100], header[148:156].split(b"\0", 1)[0].strip(b" ")
    stored = int(field, 8) if field and not field.strip(b"01234567") else -BLOCK
    off = sum(header) - sum(header[148:156]) + 8 * 32 - stored
    kind_alone = off == header[156] - ord("0")  # with a file's kind in its place the sum is right
    of_kind = header[156:157] in (b"x", b"g", b"L", b"K") and not kind_alone
    looks = of_kind or b"PaxHeader" in name or b"@LongLink" in name
    one_byte = abs(off) < 256
    return looks, not one_byte and header[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC


def may_be_cut(name: str) -> bool:
    """Whether a plain header's name may stand for one that did not fit: long, or with a sign for what is not ASCII."""
    return len(name.encode("utf-8", "surrogateescape")) > 90 or "?" in name


def records(text: bytes) -> dict[bytes, bytes] | None:
    """The `length key=value` records of a pax header, or None where they are damaged."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(text) and text[at]:
        digits, space, _ = text[at : at + 20].partition(b" ")
        if not space or not digits.isdigit():
            return None
        end = at + int(digits)
        key, equals, value = text[at + len(digits) + 1 : end - 1].partition(b"=")
        if not equals or text[end - 1 : end] != b"\n":
            return None
        found[key] = value
        at = end
    return found
