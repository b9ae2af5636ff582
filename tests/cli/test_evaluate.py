"""Models judged at the command line: resumed, planned, refused; the same table whatever was in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave import comparison
from lungwave.cli import main
from lungwave.config import Config, preset
from lungwave.data.generate import generate
from lungwave.evaluate import methods
from lungwave.evaluate.methods import Model
from lungwave.evaluate.reconstruction import Method, Sampled
from lungwave.models.unet import UNetConfig
from lungwave.posterior.baselines import save_regressor
from lungwave.posterior.pairs import Pairs, noisy
from lungwave.prior.baselines import calibrated, halves, regressor
from lungwave.prior.build import Prior
from lungwave.prior.conditional import Posterior, export, ingredients
from lungwave.repro import stream
from lungwave.training.loop import TrainConfig

CASES, SEED = 12, 7
TRAINED = preset("micro").override({"grid.steps": 320, "seed": 99})
TABLES = ("reconstruction.md", "reconstruction.csv")
WORDS = ("--snr", "30", "10", "--samples", "19", "--quiet")


@dataclass(frozen=True)
class Toy(Model):
    """Samples around a level that the frame's loudness decides; counts the frames that it was asked about."""

    asked = 0
    samples = True

    @property
    def config(self) -> Config:
        return TRAINED

    @property
    def method(self) -> Method:
        return Method(self.name, TRAINED.lung.categories, np.full((64, 64), 0.2))

    def __call__(self, rf, index, scan, count, seed) -> Sampled:
        if Toy.asked >= Toy.most:
            raise KeyboardInterrupt
        Toy.asked += len(rf)
        parts = []
        for frame, number in zip(rf, index, strict=True):
            draw = stream(seed, "toy", int(number)).standard_normal((count, 8))
            blocks = 0.5 + 0.05 * np.log(np.abs(frame).mean()) % 0.2 + 0.15 * draw
            parts.append(np.repeat(np.repeat(blocks[:, :, None], 8, 1), 64, 2).clip(0, 1))
        maps = np.stack(parts)
        numbers = np.stack(
            [maps[:, :, a:b].mean((2, 3)) for a, b in ((0, 5), (5, 10), (10, 20), (20, 40), (40, 60), (0, 60))], 2
        )
        return Sampled(maps.astype(np.float16), numbers, np.full((len(rf), 3), 1 / 3), np.zeros(len(rf)))


Toy.most = 10**9


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve micro lungs, recorded until the echo of the pleura has come."""
    folder = tmp_path_factory.mktemp("evaluate") / "cases"
    generate(TRAINED.override({"seed": SEED}), range(CASES), folder, workers=1, quiet=True)
    return folder


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a toy model."""
    monkeypatch.setitem(methods.KINDS, "toy", lambda name, folder: Toy(name))
    monkeypatch.setattr(Toy, "asked", 0)
    monkeypatch.setattr(comparison, "BLOCK", 5)
    return toy_folder(tmp_path / "toy")


@pytest.fixture
def blind(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, which take most of the time."""
    monkeypatch.setattr(comparison, "save_pictures", lambda levels, folder: [])


def toy_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"kind": "toy"}', encoding="utf-8")
    (path / "model.safetensors").write_bytes(path.name.encode())
    return path


def run(*words: object) -> int:
    return main(["evaluate", "reconstruction", *map(str, words)])


def tables(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in TABLES]


@pytest.mark.usefixtures("blind")
def test_a_killed_run_goes_on_to_the_same_table(
    cases: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(cases, "--model", toy, *WORDS, "--out", whole) == 0
    assert Toy.asked == 2 * CASES
    monkeypatch.setattr(Toy, "asked", 0)
    monkeypatch.setattr(Toy, "most", 9)  # dies at the third block
    assert run(cases, "--model", toy, *WORDS, "--out", broken) == 130
    assert "rerun the same command" in capfd.readouterr().err
    assert not (broken / TABLES[0]).exists() and len(list((broken / "cache").iterdir())) == 2
    monkeypatch.setattr(Toy, "most", 10**9)
    damaged = sorted((broken / "cache").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:200])  # what a full disk leaves
    assert run(cases, "--model", toy, *WORDS, "--out", broken) == 0
    assert Toy.asked == 2 * CASES + 5  # the damaged block again, nothing else twice
    assert tables(whole) == tables(broken)
    first, second = (json.loads((folder / "reconstruction.json").read_text()) for folder in (whole, broken))
    assert first["results"] == second["results"] and first["improvements"] == second["improvements"]
    monkeypatch.setattr(Toy, "most", 0)
    assert run(cases, "--model", toy, *WORDS, "--out", broken) == 0  # all is kept
    assert tables(whole) == tables(broken)


def test_the_result_says_where_it_is_from(
    cases: Path, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, other = tmp_path / "out", toy_folder(tmp_path / "other")
    words = ("--model", toy, "--model", other, "--cases", "2:12", "--snr", "20", "--samples", "19", "--out", out)
    assert run(cases, *words, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["cases"] == 10 and {row["method"] for row in said["methods"]} == {"toy", "other", "mean map"}
    held = json.loads((out / "reconstruction.json").read_text(encoding="utf-8"))
    assert held["command"].startswith("lungwave evaluate reconstruction ") and "--cases 2:12" in held["command"]
    assert held["config"]["seed"] == SEED and held["models"]["toy"]["seed"] == TRAINED.seed
    assert held["models"]["toy"]["digest"] != held["models"]["other"]["digest"]
    assert {r["snr_db"] for r in held["results"]} == {20} and "test cases" in held["sources"]["mean"]
    ours = [r for r in held["results"] if r["method"] != "mean map"]
    assert all(r["samples"] == 19 and r["uniformity"]["0-6 mm"]["cases"] == 10 for r in ours)
    text = (out / "reconstruction.md").read_text(encoding="utf-8")
    for name in said["pictures"]:
        assert f"({name})" in text and (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(said["pictures"]) == 4


def test_every_method_hears_the_same_noise_and_every_level_other_noise(cases: Path) -> None:
    pairs = Pairs.read(cases, quiet=True)

    def heard(rows: list[int], snr_db: float) -> np.ndarray:
        return noisy(pairs, np.array(rows), (snr_db, snr_db), 0, f"{comparison.NOISE}/{snr_db:g}")

    np.testing.assert_array_equal(heard([0, 1, 2], 20.0)[2], heard([2], 20.0)[0])
    loud, soft = (heard([0], snr_db)[0] - pairs.rf[0] for snr_db in (10.0, 30.0))
    assert loud.std() / soft.std() == pytest.approx(10, rel=0.05)
    assert abs(np.corrcoef(loud.ravel(), soft.ravel())[0, 1]) < 0.1


@pytest.mark.usefixtures("blind")
def test_a_dry_run_writes_nothing(cases: Path, toy: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run(cases, "--model", toy, *WORDS, "--out", out, "--dry-run", "--json") == 0
    planned = json.loads(capfd.readouterr().out)
    assert (planned["predictions"], planned["in_the_cache"]) == (2 * CASES, 0) and planned["seconds"] > 0
    assert planned["methods"] == ["toy", "mean map"] and not out.exists()
    assert run(cases, "--model", toy, *WORDS, "--out", out) == 0
    before = sorted(path.name for path in out.rglob("*"))
    assert run(cases, "--model", toy, *WORDS, "--out", out, "--dry-run", "--json") == 0
    capfd.readouterr()
    assert sorted(path.name for path in out.rglob("*")) == before


def test_a_training_is_named_by_its_folder_and_a_name_comes_once(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    toy_folder(tmp_path / "run" / "model")
    found = comparison._entrants([str(toy), str(tmp_path / "run"), str(toy), "ridge-tiny"])
    assert [entrant.name for entrant in found] == ["toy", "run", "toy 2", "ridge-tiny"]
    assert found[0].digest == found[2].digest != found[1].digest


def test_a_model_is_not_judged_on_the_lungs_it_learnt_from(
    cases: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    monkeypatch.setattr(Toy, "config", TRAINED.override({"seed": SEED}))
    line = refused("evaluate", "reconstruction", cases, "--model", toy, *WORDS, "--out", tmp_path / "out")
    assert f"seed {SEED}, on which toy was trained" in line and "another --seed" in line
    assert Toy.asked == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no model to judge"),
        (("--model", "nowhere"), "nowhere: no such folder; give the folder of a model, or a shipped one"),
        (("--model", "ridge-tiny"), "ridge-tiny does not fit these cases"),
        (("--model", "toy", "--snr", "30", "30"), "each once"),
        (("--model", "toy", "--snr", "nan"), "--snr nan"),
        (("--model", "toy", "--samples", "8"), "--samples 8"),
        (("--model", "toy", "--seed", "-1"), "--seed -1"),
        (("--model", "toy", "--cases", "0:13"), "holds 12 quantifiable ones"),
        (("--model", "toy", "--cases", "5:5"), "holds none"),
        (("--model", "toy", "--cases", "5:6"), "one base anatomy"),
        (("--model", "toy", "--out", "toy/config.json"), "is a file"),
        (("--model", "prior"), "'prior' model, which reads no echoes"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    words: tuple[str, ...], said: str, cases: Path, toy: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    toy_folder(tmp_path / "prior").joinpath("config.json").write_text('{"kind": "prior"}', encoding="utf-8")
    assert said in refused("evaluate", "reconstruction", cases, "--quiet", *words)


def test_folders_without_cases_and_another_map_are_refused(
    cases: Path, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., str]
) -> None:
    assert "lungwave generate" in refused("evaluate", "reconstruction", tmp_path, "--model", toy, *WORDS)
    monkeypatch.setattr(Toy, "config", TRAINED.override({"map.columns": 32}))
    assert "another map" in refused("evaluate", "reconstruction", cases, "--model", toy, *WORDS)


@pytest.mark.usefixtures("blind")
def test_real_models_of_both_kinds_are_judged_side_by_side(
    micro_cases: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A posterior with random weights and the mean map of the same pairs; a case's samples know no other case."""
    pairs = Pairs.read(micro_cases, quiet=True)
    network = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, patch=(8, 8), attention=())
    plan = Posterior(Prior(TrainConfig(seed=2), network, held_out=0.15), trace_channels=8, trace_images=2)
    made = ingredients(pairs, plan)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.model.denoiser.net.out[2].weight, std=0.3)
    export(made, plan, tmp_path / "drawn", "a command", {"images": 0}, {}, ())
    mean_map = calibrated(made, regressor(made, plan, "mean"), halves(made.held_out, 2), {"images": 0})
    save_regressor(tmp_path / "mean", mean_map, card="a card", command="a command", settings={}, seed=2)
    test = tmp_path / "test"
    generate(pairs.config.override({"seed": SEED}), range(4), test, workers=1, quiet=True)
    models = ("--model", tmp_path / "drawn", "--model", tmp_path / "mean")
    assert run(test, *models, "--snr", "20", "--samples", "19", "--quiet", "--out", tmp_path / "a") == 0
    held = json.loads((tmp_path / "a/reconstruction.json").read_text(encoding="utf-8"))
    assert [r["method"] for r in held["results"]] == ["drawn", "mean", "mean map"]
    assert held["sources"]["mean"] == "that of the cases on which mean was trained"
    drawn, mean, base = held["results"]
    assert mean["scores"]["map"] == pytest.approx(base["scores"]["map"], abs=1e-5)
    assert mean["coverage"]["0-6 mm"][0]["level"] == 0.9 and base["coverage"] == {}
    assert drawn["samples"] == 19 and drawn["scores"]["CRPS, map"]["value"] > 0 and drawn["tarp"]["curve"]["cases"] == 4
    words = ("--snr", "20", "--samples", "19", "--cases", "3:4", "--quiet", "--out", tmp_path / "b")
    assert run(test, *models[:2], "--model", tmp_path / "mean", *words) == 0
    (whole,), (alone,) = (
        [np.load(path)["bands"] for path in (tmp_path / name / "cache").glob("*_19_*.npz")] for name in "ab"
    )
    np.testing.assert_allclose(whole[3:], alone, atol=1e-4)
