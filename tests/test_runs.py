"""The runs that end in a report: what they write agrees with what they say, and foreign tissue is drawn, not judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.data.generate import generate
from lungwave.data.hdf5 import read_cases, read_recording
from lungwave.posterior.reconstruct import DEFAULT, bundled_model
from lungwave.runs import DEMO_SEED, demo, reconstruct_files
from lungwave.shipped import SHIPPED
from lungwave.types import UsageError

FILES = {"report.html", "aeration.csv", "aeration.json", "maps.npz", "manifest.json"} | {
    "aeration_posterior.csv", "posterior.h5", "posterior.npz", "maps"
}  # fmt: skip


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("demo")
    return out, demo(out, quiet=True)


def test_demo_shows_one_lung_per_category_beside_its_truth(shown: tuple[Path, dict]) -> None:
    out, said = shown
    assert {path.name for path in out.iterdir()} == FILES | {"rf.h5", "overview.png"}
    assert [case["name"] for case in said["cases"]] == ["healthy", "interstitial", "consolidation"]
    truth = read_cases(out / "rf.h5")
    assert truth is not None and np.allclose(truth.whole, [case["truth"] for case in said["cases"]])
    text = (out / "report.html").read_text(encoding="utf-8")
    for case in said["cases"]:
        assert case["withheld"] is None and case["interval"][0] < case["percent_aeration"] < case["interval"][1]
        assert f"{100 * case['percent_aeration']:.0f}" in text
    assert "Not a medical device" in text
    about = json.loads((out / "manifest.json").read_text())
    assert about["seed"] == DEMO_SEED and about["config_sha256"] and about["versions"]["deepwave"]


def test_reconstructing_the_demo_file_gives_the_demo(shown: tuple[Path, dict], tmp_path: Path) -> None:
    out, said = shown
    again = reconstruct_files([out / "rf.h5"], tmp_path / "again", quiet=True)
    assert {path.name for path in (tmp_path / "again").iterdir()} == FILES
    for first, second in zip(said["cases"], again["cases"], strict=True):
        assert second["percent_aeration"] == pytest.approx(first["percent_aeration"], abs=1e-5)
        assert second["truth"] == pytest.approx(first["truth"], abs=1e-6)
    one = reconstruct_files([out / "rf.h5"], tmp_path / "one", frames=range(1, 2), quiet=True)
    assert one["frames"] == 1 and one["cases"][0]["percent_aeration"] == again["cases"][1]["percent_aeration"]
    maps = np.load(tmp_path / "again" / "maps.npz")
    assert maps["aeration"].shape == (3, 64, 64) and (maps["lower"] <= maps["upper"]).all()


def test_demo_never_shows_lungs_of_the_training_seed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="take another"):
        demo(tmp_path / "out", seed=bundled_model().config.seed, quiet=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file", "why"),
    [
        ("rf-fieldii-planewave3", "rf_dataset.hdf5", "192 elements at 0.23 mm"),
        ("rf-verasonics-disk", "PWI_disk.mat", "128 elements at 0.298 mm"),
        ("rf-fmc-aluminium", "contact_notch_aluminium.mat", "kind 'matrix'"),
    ],
)
def test_other_tissue_is_drawn_and_its_aeration_withheld(
    shared_data: Callable[[str], Path], tmp_path: Path, name: str, file: str, why: str
) -> None:
    said = reconstruct_files([shared_data(name) / file], tmp_path, frames=range(1), quiet=True)
    (case,) = said["cases"]
    assert why in case["withheld"] and case["percent_aeration"] is None
    assert not (tmp_path / "maps.npz").exists()
    tables = json.loads((tmp_path / "aeration.json").read_text())
    assert "withheld" in json.dumps(tables)
    assert "<svg" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_rf_of_another_preset_names_the_difference(tmp_path: Path) -> None:
    config = preset("micro").override({"grid.steps": 450, "seed": 3, "receive.echo_start": 3e-6})
    generate(config, range(1), tmp_path / "data", quiet=True)
    said = reconstruct_files([tmp_path / "data" / "cases_000000-000000.h5"], tmp_path / "out", quiet=True)
    assert "16 elements at 0.5 mm" in said["cases"][0]["withheld"]


def test_bad_requests_write_nothing(shown: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = shown
    for paths, frames, says in (
        ([], None, "no RF file"),
        ([out / "rf.h5"], range(2, 9), "has frames 0:3, asked for 2:9"),
        ([out / "rf.h5"], range(0), "asked for none"),
        ([tmp_path / "absent.h5"], None, "absent.h5"),
        ([out / "report.html"], None, "report.html"),
    ):
        with pytest.raises(UsageError, match=says):
            reconstruct_files(paths, tmp_path / "nothing", frames=frames, quiet=True)
    assert not (tmp_path / "nothing").exists()


def test_bare_array_needs_its_geometry_and_takes_it(shown: tuple[Path, dict], tmp_path: Path) -> None:
    out, said = shown
    recording = read_recording(out / "rf.h5", [1])
    np.savez(tmp_path / "bare.npz", rf=recording.rf)
    with pytest.raises(UsageError, match="give --geometry FILE"):
        reconstruct_files([tmp_path / "bare.npz"], tmp_path / "out", quiet=True)
    (tmp_path / "probe.toml").write_text(
        "center_frequency = 3e6\nsampling_frequency = 12e6\npitch = 0.25e-3\nelement_width = 0.25e-3\n"
        f"angles = {recording.scan.angles.tolist()}\ndelays = {recording.scan.delays.tolist()}\n"
        f"pulse_delay = {recording.scan.pulse_delay}\nbandwidth = {recording.scan.bandwidth}\n"
    )
    (case,) = reconstruct_files(
        [tmp_path / "bare.npz"], tmp_path / "out", quiet=True, geometry=tmp_path / "probe.toml"
    )["cases"]
    assert case["percent_aeration"] == pytest.approx(said["cases"][1]["percent_aeration"], abs=1e-3)


def test_bundled_model_says_how_it_was_made() -> None:
    folder = SHIPPED / DEFAULT
    about = json.loads((folder / "config.json").read_text())
    assert about["command"].startswith("lungwave ") and about["parents"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 12 * 2**20
    assert "Not a medical device" in (folder / "README.md").read_text()
