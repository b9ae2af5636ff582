"""Laws of drawn maps: the views agree with each other, any run of the command gives the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.cli import main
from lungwave.config import Config, preset
from lungwave.data import drawn
from lungwave.data.drawn import View, draw_map, map_size, plan, write_maps
from lungwave.data.maps import convert_maps, seed_view
from lungwave.data.mapset import read_maps
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import draw
from lungwave.types import UsageError

MICRO = preset("micro").override({"seed": 7})
WIDE = MICRO.override({"map.columns": 256})  # wide enough for the report's strip, fast to draw
VIEWS: tuple[View, ...] = ("smooth", "sharp", "seed", "resolved", "raw")


@pytest.mark.parametrize("view", VIEWS)
def test_a_map_has_its_size_its_range_and_its_lung(view: View) -> None:
    found = draw_map(WIDE, 4, view)
    anatomy = draw(WIDE, 4)
    assert found.values.shape == map_size(WIDE, view)
    assert 0 <= found.values.min() < found.values.max() <= 1
    assert (found.category, found.base_id, found.index) == (anatomy.category, anatomy.base_id, 4)
    assert found.name == f"{anatomy.category}_000004"
    assert found.whole == truth(anatomy, WIDE.map, truth_spacing(WIDE)).whole, "one lung, one aeration, in every view"
    if view in ("resolved", "raw"):
        assert set(np.unique(found.values)) == {0, 1}


def test_the_seed_view_is_what_the_reports_conversion_makes_of_the_raw_view() -> None:
    for index in (0, 1, 5):
        raw, strip = draw_map(WIDE, index, "raw").values, draw_map(WIDE, index, "seed").values
        assert raw.shape == (32, 1025)
        assert np.array_equal(seed_view(raw), strip)


def test_resolved_airspaces_have_the_aeration_of_the_truth() -> None:
    config = MICRO
    for index in range(6):
        found = draw_map(config, index, "resolved")
        rows = round(config.map.bands[-1] / config.map.pixel)
        assert abs(found.values[:rows].mean() - found.whole) < 0.02


def test_smooth_and_sharp_are_the_truth() -> None:
    known = truth(draw(MICRO, 3), MICRO.map, truth_spacing(MICRO))
    assert np.array_equal(draw_map(MICRO, 3, "smooth").values, known.smooth.astype(np.float32))
    assert np.array_equal(draw_map(MICRO, 3, "sharp").values, known.sharp.astype(np.float32))


def test_the_file_says_which_lung_each_map_is_of(tmp_path: Path) -> None:
    shared = MICRO.override({"lung.bases": 4})
    result = write_maps(shared, range(3, 15), tmp_path / "maps.npz", "sharp", quiet=True)
    assert (result["maps"], result["size"]) == (12, [64, 64])
    with np.load(tmp_path / "maps.npz", allow_pickle=False) as held:
        assert held["maps"].dtype == np.float32
        assert held["index"].tolist() == list(range(3, 15))
        assert held["groups"].tolist() == [i % 4 for i in range(3, 15)]
        for row in (0, 11):
            one = draw_map(shared, 3 + row, "sharp")
            assert np.array_equal(held["maps"][row], one.values)
            assert held["names"][row] == one.name
            assert held["classes"][held["labels"][row]] == one.category
            assert held["whole"][row] == one.whole
    beside = json.loads((tmp_path / "maps.manifest.json").read_text(encoding="utf-8"))
    assert beside["config"] == json.loads(shared.to_json())
    assert beside["asked"] == [3, 15]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["maps.manifest.json", "maps.npz"], "no parts left"


def test_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_maps(MICRO, range(12), tmp_path / f"{workers}.npz", workers=workers, quiet=True)
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes()


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "PART", 4)
    write_maps(MICRO, range(12), tmp_path / "whole.npz", quiet=True)
    seen: list[int] = []

    def stopping(config: Config, index: int, view: View) -> drawn.DrawnMap:
        seen.append(index)
        if index == limit:
            raise KeyboardInterrupt
        return draw_map(config, index, view)

    monkeypatch.setattr(drawn, "draw_map", stopping)
    limit = 9
    with pytest.raises(KeyboardInterrupt):
        write_maps(MICRO, range(12), tmp_path / "maps.npz", quiet=True)
    assert not (tmp_path / "maps.npz").exists()
    seen.clear()
    limit = -1
    write_maps(MICRO, range(12), tmp_path / "maps.npz", quiet=True)
    assert seen == list(range(8, 12)), "finished parts are kept"
    assert (tmp_path / "maps.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
    # parts of another seed, left by an interrupted run, are never taken for ours
    limit = 3_000
    other = tmp_path / ".again.npz.parts"
    other.mkdir()
    stale = drawn._draw_part(MICRO.override({"seed": 8}), "smooth", range(0, 4))
    drawn.files.save_npz(other / f"{MICRO.override({'seed': 8}).digest()}_smooth_000000-000003.npz", **stale)
    write_maps(MICRO, range(12), tmp_path / "again.npz", quiet=True)
    assert (tmp_path / "again.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_folder_of_images_reads_back_as_the_maps_that_were_drawn(tmp_path: Path) -> None:
    shared = MICRO.override({"lung.bases": 3})
    write_maps(shared, range(9), tmp_path / "maps.npz", quiet=True)
    write_maps(shared, range(9), tmp_path / "png", quiet=True)
    exact, bytes_ = read_maps(tmp_path / "maps.npz"), read_maps(tmp_path / "png", labels=True)
    order = [exact.names.index(name) for name in bytes_.names]
    assert np.abs(exact.fraction(order) - bytes_.fraction()).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(exact.labels[order], bytes_.labels)
    assert exact.classes == bytes_.classes
    assert np.array_equal(exact.groups[order], bytes_.groups), "base anatomies survive the way through images"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = drawn.files.save_png

    def failing(path: Path, values: np.ndarray) -> None:
        if len(written := list(path.parent.glob("*.png"))) == 3:
            raise KeyboardInterrupt(f"after {len(written)}")
        save(path, values)

    (tmp_path / "png").mkdir()  # an empty folder is as good as none
    monkeypatch.setattr(drawn.files, "save_png", failing)
    with pytest.raises(KeyboardInterrupt, match="after 3"):
        write_maps(MICRO, range(5), tmp_path / "png", quiet=True)
    assert not list((tmp_path / "png").iterdir())
    monkeypatch.setattr(drawn.files, "save_png", save)
    for _ in range(2):
        write_maps(MICRO, range(5), tmp_path / "png", quiet=True)
        assert len(list((tmp_path / "png").iterdir())) == 6, "five images and a manifest"
        assert [path.name for path in tmp_path.iterdir()] == ["png"]


def test_the_reports_conversion_runs_on_raw_tensors(tmp_path: Path) -> None:
    write_maps(WIDE, range(4), tmp_path / "raw", "raw", quiet=True)
    tensor = torch.load(tmp_path / "raw" / f"{draw_map(WIDE, 2, 'raw').name}.pt", weights_only=True)
    assert tensor.shape == (32, 1025)
    assert set(tensor.unique().tolist()) == {0.0, 1.0}
    said = convert_maps(tmp_path / "raw", tmp_path / "lung_8_256")
    assert (said["scale"], said["shape"], said["columns_left_out"]) == ("fraction", [8, 256], 1)
    write_maps(WIDE, range(4), tmp_path / "seed.npz", "seed", quiet=True)
    converted, direct = read_maps(tmp_path / "lung_8_256"), read_maps(tmp_path / "seed.npz")
    assert np.abs(converted.fraction() - direct.fraction()).max() <= 0.5 / 255 + 1e-6


def test_columns_without_truth_are_marked_or_left_out(tmp_path: Path) -> None:
    ribs = MICRO.override({"lung.rib_probability": 0.5})
    write_maps(ribs, range(8), tmp_path / "all.npz", quiet=True)
    with np.load(tmp_path / "all.npz") as held:
        holed = np.isnan(held["maps"]).any((1, 2))
    assert 0 < holed.sum() < 8
    result = write_maps(ribs, range(8), tmp_path / "png", quantifiable_only=True, quiet=True)
    assert (result["maps"], result["left_out"]) == (8 - holed.sum(), holed.sum())
    assert len(list((tmp_path / "png").glob("*.png"))) == result["maps"]
    with pytest.raises(UsageError, match="--quantifiable-only"):
        write_maps(ribs, range(8), tmp_path / "other", quiet=True)
    blocked = MICRO.override({"lung.rib_probability": 1.0})
    with pytest.raises(UsageError, match="none of the 3 lungs"):
        write_maps(blocked, range(3), tmp_path / "none.npz", quantifiable_only=True, quiet=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.manifest.json", "all.npz", "png"]


def test_a_plan_writes_nothing_and_knows_the_size(tmp_path: Path) -> None:
    planned = plan(MICRO, range(10), tmp_path / "maps.npz", "smooth")
    assert (planned["maps"], planned["size"], planned["bytes"]) == (10, [64, 64], 10 * 64 * 64 * 4)
    assert planned["seconds"] > 0
    assert not list(tmp_path.iterdir())


def test_the_verb_draws_resumes_and_overwrites_only_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["maps", "--preset", "micro", "--seed", "7", "--cases", "2:5", "--view", "resolved", "--out", "png"]
    assert main([*words, "--json", "--workers", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] == [64, 64]
    before = {path.name: path.read_bytes() for path in (tmp_path / "png").glob("*.png")}
    assert set(before) == {f"{draw_map(MICRO, i, 'resolved').name}.png" for i in range(2, 5)}
    assert main([*words, "--quiet"]) == 0, "the same command again"
    assert {path.name: path.read_bytes() for path in (tmp_path / "png").glob("*.png")} == before
    assert main([*words, "--cases", "0:3", "--quiet"]) == 2, "another request into the same folder"
    assert "two sets" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--view", "seed"], "--preset paper"),
        (["--view", "raw", "--preset", "tiny"], "6.4 mm wide"),
        (["--view", "resolved", "--map.columns", "63"], "even number"),
        (["--cases", "5:5"], "give a:b"),
        (["--workers", "0"], "at least 1"),
        (["--out", "maps.png"], "NAME.npz"),
        (["--out", "a_file"], "NAME.npz"),
        (["--out", "a_folder.npz"], "give a file name"),
        (["--out", "full"], "choose another --out"),
        (["--view", "blurred"], "view"),
        (["--lung.rib_probability", "0.5", "--out", "png"], "--quantifiable-only"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_written(
    words: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("x", encoding="utf-8")
    (tmp_path / "a_folder.npz").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("x", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for more in ([], ["--dry-run"]):
        assert main(["maps", "--preset", "micro", *words, *more]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_views_read_like_any_map_set(tmp_path: Path) -> None:
    write_maps(WIDE, range(6), tmp_path / "maps.npz", "seed", quiet=True)
    found = read_maps(tmp_path / "maps.npz")
    assert (found.size, found.channels, len(found)) == ((8, 256), 1, 6)
    assert found.classes == ("consolidation", "healthy", "interstitial")
