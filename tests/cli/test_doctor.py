"""``lungwave doctor``: well here, and it finds what was damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lungwave import doctor
from lungwave.cli import main
from lungwave.shipped import SHIPPED


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without timing simulations of the large presets."""
    monkeypatch.setattr(doctor, "seconds_per_case", lambda config: 1.0)


@pytest.mark.usefixtures("quick")
def test_this_installation_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["well"] and found["numbers"]["gmac_s"] > 0.1
    looked = {finding["what"] for finding in found["findings"]}
    assert {"Python", "threads", "disk", "wave equation", "prior-tiny", "ridge-tiny"} <= looked
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "attention at" in text and "Not a medical device" in text


@pytest.mark.usefixtures("quick")
def test_a_damaged_model_is_named_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SHIPPED, tmp_path / "models")
    weights = tmp_path / "models/prior-tiny/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    monkeypatch.setattr(doctor, "SHIPPED", tmp_path / "models")
    assert main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "WRONG prior-tiny" in out and "-> install lungwave again" in out
    assert "something is wrong" in err and "Traceback" not in err


@pytest.mark.usefixtures("quick")
def test_a_place_that_cannot_be_written_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    health = doctor.examine(tmp_path / "not" / "there")
    (disk,) = [f for f in health.findings if f.what == "disk"]
    assert disk.state == "wrong" and "read-only" in disk.said and not health.well


@pytest.mark.usefixtures("quick")
def test_maps_to_train_on_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--size", "8", "256"]) == 0
    said = capsys.readouterr().out
    assert "maps of 8 x 256" in said and "levels 8 x 256, 8 x 128, 8 x 64, 4 x 32; attention at" in said
    assert main(["doctor", "--size", "7", "255"]) == 0
    assert "pad them to 8 x 256" in capsys.readouterr().out
    assert main(["doctor", "--size", "0", "64"]) == 2
    assert "--size 0 64" in capsys.readouterr().err
