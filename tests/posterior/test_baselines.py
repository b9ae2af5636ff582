"""Baselines: they learn, their intervals cover what they were calibrated on, their folders come back the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.models.regressor import parameters_of
from lungwave.models.unet import UNetConfig
from lungwave.posterior.baselines import (
    BaselineEstimate,
    Conformal,
    Errors,
    RegressorModel,
    answers,
    load_regressor,
    save_regressor,
)
from lungwave.posterior.linear import LEVELS
from lungwave.posterior.pairs import Disturbance, Pairs
from lungwave.prior.baselines import TITLES, Kind, calibrated, halves, regressor, train_regressor
from lungwave.prior.build import Prior, Watch
from lungwave.prior.conditional import Ingredients, Posterior, ingredients
from lungwave.training.loop import TrainConfig, Training
from lungwave.training.regression import Regression
from lungwave.types import UsageError

NETWORK = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, patch=(8, 8))
TRAIN = TrainConfig(images=32, batch=16, lr=3e-3, warmup_images=16, snapshot_images=16)
PLAN = Posterior(Prior(TRAIN, NETWORK, held_out=0.2), Disturbance(drop=0), trace_channels=8, trace_images=2)

SMALL: dict[Kind, int | None] = {"mean": None, "unet": None, "fno": 15_000}  # None = as many as the posterior


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs(micro_cases: Path) -> Pairs:
    return Pairs.read(micro_cases, quiet=True)


@pytest.fixture(scope="module")
def made(pairs: Pairs) -> Ingredients:
    return ingredients(pairs, PLAN)


def model_of(made: Ingredients, kind: Kind) -> RegressorModel:
    """A model that was not trained, its last layers filled so that it says something."""
    net = regressor(made, PLAN, kind, SMALL[kind])
    torch.manual_seed(3)
    for value in net.parameters():
        if not value.any():
            torch.nn.init.normal_(value, std=0.05)
    return calibrated(made, net, halves(made.held_out, 0), {"images": 0})


class Sixteen:
    """The same sixteen frames again and again."""

    digest = "sixteen"

    def __init__(self, made: Ingredients) -> None:
        self.clean, self.cond = made.source.images(np.arange(16), None)

    def facts(self) -> dict:
        return {}

    def __len__(self) -> int:
        return 16

    def images(self, rows: np.ndarray, draws: object) -> tuple:
        return self.clean[rows], self.cond.take(torch.from_numpy(rows))


@pytest.mark.parametrize("kind", ["unet", "fno"])
def test_a_regressor_learns_what_the_mean_map_cannot_say(made: Ingredients, kind: Kind) -> None:
    """Sixteen lungs by heart: errors of map and bands fall below those of the best constant answer."""
    few, scaling = Sixteen(made), made.exported.scaling
    net = regressor(made, PLAN, kind, SMALL[kind])
    config = TrainConfig(images=16 * 30, batch=16, lr=1e-2, warmup_images=80, decay="none")
    Training(net, few, Regression(), config).run()
    bands, maps = answers(net.eval(), scaling, few.cond)
    true_maps, true_bands = made.source.pairs.cases.smooth[:16], made.source.pairs.aeration[:16]
    for found, truth in ((maps, true_maps), (bands, true_bands)):
        assert np.abs(found - truth).mean() < 0.7 * np.abs(truth - np.median(truth, 0)).mean()


def test_bands_are_read_off_a_map_as_the_posterior_reads_them(made: Ingredients) -> None:
    scaling, maps = made.exported.scaling, made.source.pairs.cases.smooth[:5]
    net = regressor(made, PLAN, "mean")
    found = scaling.to_data(net.read(scaling.to_network(torch.from_numpy(maps))[:, None]))
    np.testing.assert_allclose(found, made.exported.bands.expected(maps), atol=1e-5)


def test_the_mean_map_is_the_mean_of_the_maps_that_were_learned_from(made: Ingredients, pairs: Pairs) -> None:
    found = model_of(made, "mean").predict(pairs.rf[:3])
    np.testing.assert_allclose(found.map, np.tile(made.source.pairs.cases.smooth.mean(0), (3, 1, 1)), atol=1e-5)
    np.testing.assert_allclose(found.bands[0], made.source.pairs.aeration.mean(0), atol=1e-4)


def test_intervals_cover_the_cases_that_they_were_calibrated_on() -> None:
    """At every level, for every number, whatever the errors look like: that is what a rank means."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, 3))
    error = np.exp(features[:, :1]) * rng.standard_cauchy((400, 2)) * [0.02, 0.1]
    found = Conformal.fit(Errors(features[:200], error[:200]), Errors(features[200:], error[200:]))
    half = np.stack([found.half(features, level) for level in LEVELS])
    covered = (np.abs(error) <= half)[:, 200:].mean(1)
    assert (covered >= np.array(LEVELS)[:, None]).all() and (covered <= np.array(LEVELS)[:, None] + 0.02).all()
    assert (np.diff(half, axis=0) >= 0).all()
    with pytest.raises(UsageError, match="of level"):
        found.half(features, 0.7)


def test_too_few_cases_for_a_level_leave_everything_open() -> None:
    errors = Errors(np.zeros((5, 1)), np.full((5, 1), 0.01))
    half = [float(Conformal.fit(errors, errors).half(np.zeros((1, 1)), level)[0, 0]) for level in LEVELS]
    assert half[0] < 0.05 and half[-1] >= 1


@pytest.mark.parametrize("kind", ["mean", "unet", "fno"])
def test_a_folder_comes_back_bit_for_bit(made: Ingredients, pairs: Pairs, kind: Kind, tmp_path: Path) -> None:
    model = model_of(made, kind)
    save_regressor(tmp_path, model, card="# card\n", command="made by hand", settings={}, seed=0)
    loaded, rf = load_regressor(tmp_path), pairs.rf[:4]
    before, after = model.predict(rf), loaded.predict(rf)
    for name in BaselineEstimate.__dataclass_fields__:
        assert np.array_equal(getattr(before, name), getattr(after, name)), name
    assert loaded.config == model.config and loaded.about["trained"] == {"images": 0}
    for low, value, high in (
        (after.bands_low, after.bands, after.bands_high),
        (after.map_low, after.map, after.map_high),
    ):
        assert ((low >= 0) & (low <= value) & (value <= high) & (high <= 1)).all()
    wide, narrow = loaded.predict(rf, 0.9), loaded.predict(rf, 0.5)
    assert (wide.map_high - wide.map_low >= narrow.map_high - narrow.map_low).all()


def test_damaged_and_foreign_folders_are_refused(made: Ingredients, tmp_path: Path) -> None:
    model = model_of(made, "fno")
    save_regressor(tmp_path, model, card="# card\n", command="made by hand", settings={}, seed=0)
    about = json.loads((tmp_path / "config.json").read_text())
    about.pop("content_sha256", None)
    for change, says in (
        ({"kind": "ridge"}, "'ridge' model"),
        ({"regressor": {"name": "oracle"}}, "'oracle' is unknown"),
        ({"regressor": {"name": "fno", "operator": {"breadth": 3}}}, "not of this format"),
        ({"levels": [0.5]}, "levels"),
        ({"transform": {**about["transform"], "version": 99}}, "another way"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**about, **change}))
        with pytest.raises(UsageError, match=says):
            load_regressor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UsageError, match="damaged"):
        load_regressor(tmp_path)


def test_frames_that_are_not_finite_are_refused(made: Ingredients, pairs: Pairs) -> None:
    rf = pairs.rf[:1].copy()
    rf[0, 0, 0, 0] = np.nan
    with pytest.raises(UsageError, match="not finite"):
        model_of(made, "mean").predict(rf)


@pytest.mark.parametrize("kind", list(TITLES))
def test_training_leaves_a_model_and_runs_once(pairs: Pairs, made: Ingredients, kind: Kind, tmp_path: Path) -> None:
    """From pairs to a folder, with as many parameters as the posterior; the same command again changes nothing."""
    watch = Watch(quiet=True, check_images=32, check_maps=8)
    plan = replace(PLAN, disturbance=Disturbance())
    found = train_regressor(pairs, plan, kind, tmp_path, lambda images: f"see {images}", watch=watch, device="cpu")
    model = load_regressor(tmp_path / "model")
    assert found["model"] == str(tmp_path / "model")
    assert model.predict(pairs.rf[:2]).map.shape == (2, 64, 64)
    if kind != "mean":
        assert found["images"] == 32 and found["held_out_loss"] > 0
        assert abs(found["parameters"] / parameters_of(made.model) - 1) <= 0.1
        lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert {"train", "held_out"} <= next(line for line in lines if line["kind"] == "check").keys()
        assert train_regressor(pairs, plan, kind, tmp_path, str, watch=watch, device="cpu")["already_finished"]
