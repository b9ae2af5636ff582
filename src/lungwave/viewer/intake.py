"""Files that a browser sends: a short list of suffixes, bytes counted as they come, a name that is only ever shown."""

from __future__ import annotations

import re
import shutil
import unicodedata
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

from lungwave.types import UsageError
from lungwave.viewer.limits import MB, Limits

SUFFIXES = (".h5", ".hdf5", ".uff", ".npz")
LONGEST = 80  # letters of a name that are shown
SPARE = 256 * MB  # [byte] that the disk keeps


class TooLarge(UsageError):
    """More bytes than are taken."""


def shown_name(given: str) -> str:
    """A name fit to be shown: the part after the last slash, without what is not printed, not too long.

    It never becomes part of a path. UsageError for a suffix that is not read here.
    """
    name = re.split(r"[/\\]", unquote(given, errors="replace"))[-1]
    name = "".join(letter for letter in name if unicodedata.category(letter)[0] != "C").strip()
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{f'files that end in {suffix[:12]}' if suffix else 'files without a suffix'} are not read here; give "
            f"{', '.join(SUFFIXES)} ('lungwave data convert' reads more)"
        )
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - len(suffix) - 1]}…{name[-len(suffix) :]}"
    return name


def check_announced(length: str | None, folder: Path, limits: Limits) -> None:
    """TooLarge where a Content-Length says that the file, or the disk, is not made for this; before a byte is read."""
    if length is None or not length.isdecimal():  # it may also come in chunks, which are counted
        return
    size = int(length)
    if size > limits.upload:
        raise _too_large(limits)
    free = shutil.disk_usage(folder).free
    if size + SPARE > free:
        raise TooLarge(f"the disk has {free // MB} MB left, the file has {size // MB}; free some space")


async def receive(chunks: AsyncIterator[bytes], folder: Path, suffix: str, limits: Limits) -> Path:
    """Write what streams in to ``folder/upload.SUFFIX`` and return that path. TooLarge once it is."""
    path, size = folder / f"upload{suffix}", 0
    with path.open("xb") as file:
        async for chunk in chunks:
            size += len(chunk)
            if size > limits.upload:
                raise _too_large(limits)
            file.write(chunk)
    if not size:
        raise UsageError("the file is empty; choose another")
    return path


def _too_large(limits: Limits) -> TooLarge:
    return TooLarge(
        f"the file is larger than {limits.upload / MB:g} MB; start 'lungwave view --max-upload MB' with more, or use "
        "'lungwave reconstruct'"
    )
