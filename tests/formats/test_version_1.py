"""Files that the first format wrote are read for ever: made once by make_version_1.py, never again."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.cli import main
from lungwave.data.dataset import read_shards
from lungwave.data.hdf5 import read_cases, read_recording
from lungwave.data.mapset import read_maps
from lungwave.data.posteriors import read_posteriors
from lungwave.models.checkpoint import load_model
from lungwave.training.state import load_state

FILES = Path(__file__).parent / "version_1"


def test_a_recording_and_its_truth() -> None:
    recording, cases = read_recording(FILES / "rf.h5"), read_cases(FILES / "rf.h5")
    assert recording.rf.shape == (1, 3, 192, 32) and recording.scan.degrees == "-8, 0, 8"
    assert float(np.square(recording.rf, dtype=np.float64).mean()) == pytest.approx(0.00309664558, rel=1e-6)
    assert cases is not None and list(cases.category) == ["consolidation"]
    assert cases.whole[0] == pytest.approx(0.16954753, abs=1e-6)


def test_a_folder_of_cases() -> None:
    ((recording, cases),) = read_shards(FILES / "cases")
    assert len(recording.rf) == len(cases.index) == 3
    assert main(["data", "validate", str(FILES / "cases/cases_000000-000002.h5"), "--quiet"]) == 0


def test_maps() -> None:
    maps = read_maps(FILES / "maps.npz")
    assert len(maps) == 12 and maps.size == (64, 64)
    assert float(maps.fraction().mean()) == pytest.approx(0.51372093, abs=1e-5)


def test_a_result_in_all_its_forms() -> None:
    fields = read_posteriors(FILES / "result/posterior.h5")
    beside = np.load(FILES / "result/posterior.npz")
    assert fields["samples"].shape == (1, 4, 64, 64)
    np.testing.assert_array_equal(fields["samples"], beside["samples"])
    table = json.loads((FILES / "result/aeration.json").read_text(encoding="utf-8"))
    assert table["format"] == 1
    with (FILES / "result/aeration.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))  # the whole depth comes first
    assert float(row["estimate"]) == pytest.approx(table["cases"][0]["whole"]["estimate"], abs=1e-6)


def test_a_model_gives_what_it_gave() -> None:
    model = load_model(FILES / "prior/model")
    x = torch.linspace(-1, 1, 64 * 64, dtype=torch.float64).reshape(1, 1, 64, 64)
    with torch.no_grad():
        found = model.denoiser(x, torch.tensor([0.5], dtype=torch.float64))
    assert float(found.mean()) == pytest.approx(-0.00018083, abs=1e-5)
    assert float(found.std()) == pytest.approx(0.57619371, abs=1e-5)


def test_a_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    shutil.copytree(FILES / "prior", tmp_path / "prior")
    held = load_state(tmp_path / "prior")
    assert held is not None and held[1]["images"] == 48
    shutil.copy(FILES / "maps.npz", tmp_path / "maps.npz")
    words = (
        "--batch 4 --held-out 0.2 --channels 8 --mult 1 1 --blocks 1 --heads 1 --patch 8 8 --attention 1 --warmup 4 "
        "--decay-images 16 --samples 0 --images 56 --quiet"
    )
    assert main(["train", str(tmp_path / "maps.npz"), "--out", str(tmp_path / "prior"), *words.split()]) == 0
    later = load_state(tmp_path / "prior")
    assert later is not None and later[1]["images"] == 56
