"""Bytes that the fuzzer found, read again: every reader succeeds or says in one sentence what is wrong."""

from __future__ import annotations

import warnings
import zipfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

import readers
from lungwave.types import LungwaveError

CORPUS = Path(__file__).resolve().parents[2] / "fuzz" / "corpus"
MOST = 40  # files of a reader, the smallest: seconds, where the fuzzer has minutes


@cache
def files(name: str) -> list[tuple[str, bytes]]:
    """Files of a ZIP, smallest first."""
    with zipfile.ZipFile(CORPUS / name) as archive:
        found = [(item.filename, archive.read(item)) for item in archive.infolist()]
    return sorted(found, key=lambda pair: (len(pair[1]), pair[0]))


def survive(reader: str, data: bytes) -> None:
    """Read; warnings of numbers that overflow are the file's fault."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            readers.read(reader, data)
        except (LungwaveError, TypeCheckError):  # the second is of the tests alone: a shape that no code relies on
            return


@pytest.mark.parametrize("reader", readers.READERS)
def test_the_corpus_still_passes(reader: str) -> None:
    chosen = files(f"{reader}.zip")[:MOST]
    assert chosen, "an empty corpus tests nothing"
    for _, data in chosen:
        survive(reader, data)


EDITS = st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 8), st.binary(max_size=8)), min_size=1, max_size=4)


@pytest.mark.parametrize("reader", readers.READERS)
@settings(max_examples=200, deadline=None)
@given(which=st.integers(0, MOST - 1), edits=EDITS, length=st.integers(0, 2**20) | st.none())
def test_any_damage_is_answered(
    reader: str, which: int, edits: list[tuple[int, int, bytes]], length: int | None
) -> None:
    """Bytes replaced, left out and put in anywhere, and the end cut off: a file, or a sentence."""
    chosen = files(f"{reader}.zip")[:MOST]
    data = bytearray(chosen[which % len(chosen)][1])
    for place, out, new in edits:
        at = place % (len(data) + 1)
        data[at : at + out] = new
    survive(reader, bytes(data if length is None else data[: length % (len(data) + 1)]))


CRASHES = files("crashes.zip")


@pytest.mark.parametrize(("name", "data"), CRASHES, ids=[name for name, _ in CRASHES])
def test_what_once_crashed_is_answered(name: str, data: bytes) -> None:
    """Crashes by reader: EOFError, TokenError, NotImplementedError and TypeError of NPZ heads, text that is no text,
    billions of classes, ZIPs that are no torch files, and HDF5 at which the library waited for ever."""
    survive(name.split("/")[0], data)
