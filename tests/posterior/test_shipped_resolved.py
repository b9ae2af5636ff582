"""The shipped posterior of resolved lungs on lungs that no training saw."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.receive import echo_rms
from lungwave.config import preset
from lungwave.data.generate import received, simulate_case
from lungwave.phantom.anatomy import draw
from lungwave.phantom.resolved import resolved, shown_config
from lungwave.posterior.guided import AMORTIZED, Heard, lead, macroscopic
from lungwave.posterior.lung import LungForward
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.posterior.walls import Wall, wall_errors
from lungwave.shipped import SHIPPED

CONFIG = preset("micro").override({"seed": 4242, "receive.snr_db": 30.0})
COUNT, SAMPLES = 8, 9


@pytest.fixture(scope="module")
def model() -> ResolvedModel:
    return load_resolved(SHIPPED / "resolved-micro")


@pytest.fixture(scope="module")
def heard() -> list[tuple[Heard, np.ndarray]]:
    """Recordings, and the maps that made them."""
    simulator, found = Simulator(CONFIG), []
    for index in range(COUNT):
        case = simulate_case(CONFIG, index, simulator)
        std = echo_rms(case.rf, simulator.scan, CONFIG.receive.echo_start) * 10**-1.5
        told = Heard(received(case, CONFIG, simulator), Wall.of(case.anatomy, CONFIG), std)
        found.append((told, resolved(case.anatomy, CONFIG)))
    return found


def test_it_is_small(model: ResolvedModel) -> None:
    assert sum(p.stat().st_size for p in (SHIPPED / "resolved-micro").iterdir()) < 12e6
    assert model.about["trained"]["images"] >= 100_000


def test_it_knows_how_much_air_there_is(model: ResolvedModel, heard: list[tuple[Heard, np.ndarray]]) -> None:
    """Half of the error that always guessing the mean makes, and the truth among the samples most of the time."""
    shown, wrong, usual, inside = shown_config(model.drawn), [], [], []
    whole = [macroscopic(truth[:1], shown)[1][0, -1] for _, truth in heard]
    for (told, _), known in zip(heard, whole, strict=True):
        found = lead(model, told, range(SAMPLES), method=AMORTIZED)
        values = model.scaling.to_data(found.maps[:, 0]).clamp(0, 1).numpy()
        bands = macroscopic(values, shown)[1][:, -1]
        wrong.append(abs(bands.mean() - known))
        usual.append(abs(np.mean(whole) - known))
        inside.append(bands.min() <= known <= bands.max())
    assert np.mean(wrong) < 0.5 * np.mean(usual)
    assert sum(inside) >= COUNT - 3


def test_it_hears_where_the_first_airspaces_lie(model: ResolvedModel, heard: list[tuple[Heard, np.ndarray]]) -> None:
    """Samples of a lung's own echoes are nearer to its upper two rows than samples of another lung's."""
    own, other = [], []
    for k, (told, truth) in enumerate(heard):
        found = lead(model, told, range(SAMPLES), method=AMORTIZED)
        upper = model.scaling.to_data(found.maps[:, 0, :2]).mean(0).numpy()
        own.append(np.square(upper - truth[0, :2]).mean())
        other.append(np.square(upper - heard[(k + 1) % COUNT][1][0, :2]).mean())
    assert np.mean(own) < 0.8 * np.mean(other)


def test_it_draws_lungs_without_echoes(model: ResolvedModel) -> None:
    """The same network told nothing: its denoiser beats the best linear one on true lungs."""
    truth = np.stack([resolved(draw(CONFIG, k), CONFIG) for k in range(6)])
    x = model.scaling.to_network(torch.from_numpy(truth).float())
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for sigma in (0.3, 1.0):
            level = torch.full((len(x),), sigma)
            linear = model.inner.filtered(x + sigma * noise, level)
            found = model.prior(x + sigma * noise, level)
            assert float((found - x).square().mean()) < 0.7 * float((linear - x).square().mean())


def test_what_an_estimated_wall_makes_wrong_is_part_of_the_noise(
    model: ResolvedModel, heard: list[tuple[Heard, np.ndarray]]
) -> None:
    """True maps explain their echoes under estimated walls, which without it they seem not to."""
    wrong, without, marginal, off = wall_errors(model, 40, quiet=True), [], [], []
    for told, truth in heard:
        wall = Wall.estimated(told.rf, model)
        off.append(np.abs(wall.surface - told.wall.surface).mean())
        forward = LungForward(model.config, wall.medium, wall.surface, model.scaling)
        echoes = forward(model.scaling.to_network(torch.from_numpy(truth)[None]).double())
        left = echoes - torch.from_numpy(told.rf[None, :, : forward.samples]).double()
        for found, discrepancy in ((without, None), (marginal, wrong)):
            noise = Heard(told.rf, wall, told.noise_std, discrepancy).noise(model)
            found.append(float(noise.chi2(left)))
    assert np.mean(off) < 0.2e-3
    assert np.median(without) > 10
    assert 0.5 < np.median(marginal) < 1.5
