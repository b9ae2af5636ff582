"""Random streams, provenance, and files that appear whole or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungwave.config import preset
from lungwave.repro import atomic_path, manifest, provenance, sha256, stream, write_json
from lungwave.types import LungwaveError

names = st.text(min_size=0, max_size=12)


@given(st.integers(0, 2**63 - 1), names, st.integers(0, 2**20))
def test_stream_is_a_function_of_its_name(seed: int, name: str, index: int) -> None:
    assert np.array_equal(
        stream(seed, name, index).integers(2**63, size=4), stream(seed, name, index).integers(2**63, size=4)
    )


@given(st.integers(0, 2**63 - 1), names, names, st.integers(0, 2**20), st.integers(0, 2**20))
def test_other_name_index_or_seed_gives_another_stream(seed: int, one: str, two: str, i: int, j: int) -> None:
    draws = {
        (s, name, index): tuple(stream(s, name, index).integers(2**63, size=3))
        for s in (seed, seed + 1)
        for name in (one, two)
        for index in (i, j)
    }
    assert len(set(draws.values())) == len(draws)


def test_streams_are_the_same_on_every_machine() -> None:
    """Pinned draws: a change here changes every generated data set."""
    assert stream(0, "anatomy", 0).integers(2**32, size=3).tolist() == [2667666686, 2837578193, 1830034466]


def test_streams_of_neighbouring_cases_are_uncorrelated() -> None:
    draws = np.stack([stream(3, "noise", index).standard_normal(4000) for index in range(8)])
    correlation = np.corrcoef(draws) - np.eye(8)
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "result.txt"
    with pytest.raises(RuntimeError, match="half way"), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        raise RuntimeError("half way")
    assert list(path.parent.iterdir()) == []
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_old_file_survives_a_failed_rewrite(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_results_have_ordinary_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "result") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o640


def test_unwritable_place_and_full_disk_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with (
        pytest.raises(LungwaveError, match=r"cannot write.*choose another folder"),
        atomic_path(tmp_path / "file" / "result"),
    ):
        pass
    with pytest.raises(LungwaveError, match="No space left on device"), atomic_path(tmp_path / "result"):
        raise OSError(28, os.strerror(28))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_json_refuses_what_other_readers_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert not (tmp_path / "x.json").exists()
    write_json(tmp_path / "x.json", {"b": 1, "a": [0.1]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [0.1], "b": 1}


def test_provenance_repeats_and_names_its_parents(tmp_path: Path) -> None:
    parent = tmp_path / "parent.h5"
    parent.write_bytes(b"echoes")
    config = preset("micro").to_json()
    assert provenance(config, 3, [parent]) == provenance(config, 3, [parent])
    assert provenance(config, 3, [parent])["parents"] == {"parent.h5": sha256(parent)}
    assert provenance(preset("tiny").to_json(), 3)["config_sha256"] != provenance(config, 3)["config_sha256"]
    assert {"numpy", "torch", "deepwave", "h5py", "python"} <= set(provenance(config, 3)["versions"])
    extended = manifest(config, 3, category="healthy")
    assert {"created", "platform", "git_commit", "config", "seed"} <= set(extended)
    assert extended["category"] == "healthy"
    json.dumps(extended, allow_nan=False)
