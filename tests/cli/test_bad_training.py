"""What a hostile user types at the commands of learning: one line, the right code, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungwave import cli
from lungwave.training.state import alone
from lungwave.types import UsageError

NET = ("--images", "8", "--batch", "4", "--channels", "8", "--mult", "1", "2", "--blocks", "1", "--heads", "2",
       "--samples", "0", "--quiet")  # fmt: skip


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    path = tmp_path / "maps.npz"
    np.savez(path, maps=np.random.default_rng(0).random((8, 8, 16)).astype(np.float32))
    return path


def refused(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line that a refused command says."""
    assert cli.main(words) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert "defect" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    "words",
    [
        "--channels 0", "--channels -8", "--channels 1000000000", "--mult 0", "--mult -1", "--mult nan", "--mult inf 1",
        "--blocks 0", "--blocks -1", "--blocks 100000000", "--patch 0 1", "--patch -2 2", "--patch 8 16", "--heads 0",
        "--heads -1", "--dropout 2", "--dropout -1", "--dropout nan", "--dropout 1", "--p-mean nan", "--p-mean 1e9",
        "--p-std -1", "--p-std 0", "--p-std nan", "--p-std 1e9", "--lr inf", "--lr nan", "--weight-decay nan",
        "--weight-decay inf", "--clip nan", "--minutes inf", "--save-minutes nan", "--save-minutes inf", "--samples -1",
        "--samples 100000000",
    ],
)  # fmt: skip
def test_a_number_that_makes_no_training_is_named_before_anything_is_written(
    words: str, maps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    line = refused(capfd, ["train", str(maps), "--out", str(out), *NET, *words.split()])
    name = words.split()[0].removeprefix("--").replace("-", "_")
    assert name in line.replace("-", "_")
    assert not out.exists()


def test_maps_without_shape_or_company_are_refused_with_the_cure(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "point.npz", maps=np.random.default_rng(0).random((8, 1, 1)).astype(np.float32))
    np.savez(tmp_path / "one.npz", maps=np.random.default_rng(0).random((1, 8, 16)).astype(np.float32))
    out = ["--out", str(tmp_path / "out"), *NET]
    assert "1 x 1" in refused(capfd, ["train", str(tmp_path / "point.npz"), *out])
    assert "--held-out 0" in refused(capfd, ["train", str(tmp_path / "one.npz"), *out])


def test_a_folder_belongs_to_one_training_at_a_time(
    maps: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with alone(out):
        assert "in use by another" in refused(capfd, ["train", str(maps), "--out", str(out), *NET])
        assert list(out.iterdir()) == []
        with pytest.raises(UsageError, match="in use"), alone(out):
            pass
    with alone(out):  # let go of
        pass


def test_what_a_killed_process_was_writing_is_swept_away_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    left = [".state.safetensors.ab_12xyz.part", "snapshots/.000000000004.safetensors.abcdefgh.part"]
    for name in [*left, ".mine.part", "film.part"]:
        (tmp_path / name).write_bytes(b"x")
    with alone(tmp_path):
        pass
    assert sorted(p.name for p in tmp_path.rglob("*part")) == [".mine.part", "film.part"]
