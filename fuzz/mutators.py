"""Changes that keep a container whole, so that what lies inside is reached: ZIP members, PNG chunks.

A byte changed at random breaks a checksum, and the reader stops there. These take a file apart, change one part, and
put it together with its checksums right; every fourth change is of plain bytes all the same.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

Change = Callable[[bytes, int], bytes]
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def zip_members(data: bytes, most: int, seed: int, change: Change) -> bytes:
    """Change the bytes of one member of a ZIP archive."""
    chance = random.Random(seed)
    if chance.random() < 0.25:
        return change(data, most)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(item.filename, archive.read(item)) for item in archive.infolist()]
    except Exception:  # no archive (any more)
        return change(data, most)
    if not members:
        return change(data, most)
    at = chance.randrange(len(members))
    name, content = members[at]
    if chance.random() < 0.05:
        members.pop(at)
    elif chance.random() < 0.3:  # the head says what the rest is
        members[at] = (name, change(content[:160], 200) + content[160:])
    else:
        members[at] = (name, change(content, max(len(content) + 64, 64)))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue() if len(out.getvalue()) <= most else data[:most]


def png_chunks(data: bytes, most: int, seed: int, change: Change) -> bytes:
    """Change what one chunk of a PNG holds; of compressed ones, now and then, what is compressed."""
    chance = random.Random(seed)
    if not data.startswith(SIGNATURE) or chance.random() < 0.25:
        return change(data, most)
    chunks, at = [], len(SIGNATURE)
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return change(data, most)
    n = chance.randrange(len(chunks))
    kind, content = chunks[n]
    if kind == b"IDAT" and chance.random() < 0.5:
        try:
            content = zlib.compress(change(zlib.decompress(content), 4096))
        except zlib.error:
            content = change(content, 4096)
    else:
        content = change(content, len(content) + 16)
    chunks[n] = (change(kind, 4) if chance.random() < 0.05 else kind, content)
    body = b"".join(struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
    return (SIGNATURE + body)[:most]


MUTATORS: dict[str, Callable[[bytes, int, int, Change], bytes]] = {
    "arrays": zip_members,
    "openai": zip_members,
    "image": png_chunks,
}
