"""``evaluate generative`` and ``memorisation``: files in, tables and pictures out; planted copies are found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from lungwave.data.maps import save_npz, save_png


def lungs(count: int, seed: int, size: tuple[int, int] = (12, 24), spread: float = 0.8) -> np.ndarray:
    """Smooth maps of different mean."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.standard_normal((count, *size)), (0, 1.5, 1.5))
    return (0.5 + 0.4 * np.tanh(3 * noise + rng.uniform(-spread, spread, (count, 1, 1)))).astype(np.float32)


@pytest.fixture
def run(tmp_path: Path, answers: Callable[..., dict]) -> Callable[..., dict]:
    """Commands in a folder with maps of three sets."""
    train, held, fresh = lungs(160, 0), lungs(120, 1), lungs(60, 2)
    copies = fresh.copy()
    copies[:12] = train[:12, :, ::-1]
    for name, maps in (("train", train), ("held", held), ("fresh", fresh), ("copies", copies)):
        save_npz(tmp_path / f"{name}.npz", maps=maps)
    save_npz(tmp_path / "other.npz", maps=lungs(60, 3, (8, 24)))
    save_npz(tmp_path / "narrow.npz", maps=0.5 + 0.3 * (fresh - 0.5))
    return answers


def test_fresh_maps_are_near_real_ones_and_narrow_ones_are_not(run: Callable[..., dict], tmp_path: Path) -> None:
    assert run("evaluate generative fresh.npz --reference held.npz --train train.npz --dry-run")["held_out"] == 120
    assert not (tmp_path / "lungwave-generated").exists()
    good = run("evaluate generative fresh.npz --reference held.npz --train train.npz --out good")
    bad = run("evaluate generative narrow.npz --reference held.npz --train train.npz --out bad")
    assert bad["kid_wavelet"] > 5 * abs(good["kid_wavelet"])
    assert good["recall_wavelet"] > 0.6 > bad["recall_wavelet"]
    text = (tmp_path / "good/generative.md").read_text()
    assert "Vendi, wavelet" in text and "| precision | recall | density | coverage |" in text
    assert {p.name for p in (tmp_path / "good").iterdir()} == {
        "generative.md", "generative.html", "generative.json", "samples.png", "held_out.png",
    }  # fmt: skip
    halves = run("evaluate generative fresh.npz --reference held.npz --out halves")
    assert halves["maps"]["train"] == 60 and "was cut in two" in (tmp_path / "halves/generative.md").read_text()


def test_planted_copies_are_found_and_fresh_maps_are_not_accused(run: Callable[..., dict], tmp_path: Path) -> None:
    guilty = run("evaluate memorisation copies.npz --train train.npz --held-out held.npz --out guilty")
    assert guilty["p"] < 1e-4 and guilty["share"] >= 0.2
    assert guilty["ratio"] >= 0.2 and guilty["categories"]["all"]["samples"] == 60
    assert "copies are among them" in (tmp_path / "guilty/memorisation.md").read_text()
    page = (tmp_path / "guilty/memorisation.html").read_text()
    assert "copies are among them" in page and page.count('src="data:image/png;base64,') == 2 and '"http' not in page
    spaces = json.loads((tmp_path / "guilty/memorisation.json").read_text())["spaces"]
    assert {name: space["p"] < 0.01 for name, space in spaces.items()} == dict.fromkeys(spaces, True)
    free = run("evaluate memorisation fresh.npz --train train.npz --held-out held.npz --out free")
    assert free["p"] > 0.01 and "no sign of copies" in (tmp_path / "free/memorisation.md").read_text()
    assert {"distances.png", "nearest.png", "memorisation.json"} <= {p.name for p in (tmp_path / "free").iterdir()}


def test_samples_that_are_nowhere_near_real_maps_are_judged_all_the_same(
    run: Callable[..., dict], tmp_path: Path
) -> None:
    """No cell of the training holds both, so the data-copying test has nothing to compare; the rest has."""
    dark, light = 0.05 * lungs(100, 7), 0.9 + 0.05 * lungs(100, 8)
    save_npz(tmp_path / "both.npz", maps=np.concatenate([dark, light]))
    save_npz(tmp_path / "dark.npz", maps=0.05 * lungs(60, 9))
    save_npz(tmp_path / "light.npz", maps=0.9 + 0.05 * lungs(60, 10))
    found = run("evaluate memorisation dark.npz --train both.npz --held-out light.npz --out apart")
    assert found["copying"] is None and 0 <= found["p"] <= 1
    assert json.loads((tmp_path / "apart/memorisation.json").read_text())["results"]["copying_p"] is None


def test_categories_come_from_names(run: Callable[..., dict], tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    for k, values in enumerate(lungs(12, 5)):
        save_png(tmp_path / "named" / f"{'healthy' if k % 2 else 'wet'}_{k:03d}.png", values)
    found = run("evaluate memorisation named --train train.npz --held-out held.npz --out named-judged")
    assert {name: part["samples"] for name, part in found["categories"].items()} == {"healthy": 6, "wet": 6}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("generative other.npz --reference held.npz", "other.npz holds maps of 8 x 24, held.npz of 12 x 24"),
        ("generative nowhere.npz --reference held.npz", "nowhere.npz: does not exist"),
        ("memorisation fresh.npz --held-out held.npz", "give them with --train"),
        ("memorisation fresh.npz --train train.npz --held-out held.npz --shifts -1", "shifts is -1"),
        ("generative fresh.npz --reference held.npz --seed -3", "--seed -3 is negative"),
    ],
)
def test_bad_input_is_one_line(run: Callable[..., dict], tmp_path: Path, words: str, said: str) -> None:
    assert said in run(f"evaluate {words}", code=2)["error"]
    assert not (tmp_path / "lungwave-generated").exists()
