"""Running averages of weights: closed forms, and reconstruction after training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lungwave.models.ema import (
    Averages,
    exponential,
    gamma_of,
    inner_product,
    posthoc_coefficients,
    power,
    power_averages,
)
from lungwave.training.state import posthoc
from lungwave.types import UsageError
from training.tiny import tiny


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.20, 0.28])
def test_gamma_gives_the_relative_width_back(sigma_rel: float) -> None:
    if sigma_rel >= 0.28:
        with pytest.raises(UsageError, match="must lie between"):
            gamma_of(sigma_rel)
        return
    gamma = gamma_of(sigma_rel)
    assert math.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))) == pytest.approx(sigma_rel, rel=1e-9)


def averaged(values: np.ndarray, sigma_rel: float) -> np.ndarray:
    """Power-function average after every step, by its recursion."""
    keep, found = power(sigma_rel), []
    mean = np.zeros(values.shape[1])
    for step, value in enumerate(values, 1):
        mean = keep(step) * mean + (1 - keep(step)) * value
        found.append(mean)
    return np.array(found)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15])
def test_the_recursion_has_the_profile_of_the_power_function(sigma_rel: float) -> None:
    """Step k weighs what ``(gamma + 1) t^gamma / T^(gamma + 1)`` holds between k - 1 and k, exactly."""
    steps, gamma = 40, gamma_of(sigma_rel)
    weights = averaged(np.eye(steps), sigma_rel)[-1]
    edges = (np.arange(steps + 1) / steps) ** (gamma + 1)
    np.testing.assert_allclose(weights, np.diff(edges), rtol=1e-9, atol=1e-15)
    times = (np.arange(200_000) + 0.5) / 200_000
    density = (gamma + 1) * times**gamma
    mean = (times * density).mean()
    assert math.sqrt((times**2 * density).mean() - mean**2) == pytest.approx(sigma_rel, rel=1e-4)


def test_inner_products_are_integrals() -> None:
    time = (np.arange(400_000) + 0.5) / 400_000 * 300
    for a, g, b, h in ((100.0, 5.0, 300.0, 16.0), (300.0, 7.0, 300.0, 7.0), (250.0, 2.0, 80.0, 20.0)):
        first = np.where(time <= a, (g + 1) * (time / a) ** g / a, 0)
        second = np.where(time <= b, (h + 1) * (time / b) ** h / b, 0)
        assert inner_product(a, g, b, h) == pytest.approx((first * second).mean() * 300, rel=1e-3)


def test_posthoc_equals_the_direct_average() -> None:
    """Weights of a random walk, averages of two lengths stored now and then: other lengths follow from them."""
    walk = np.cumsum(np.random.default_rng(0).standard_normal((1600, 30)), 0)
    ends = np.tile(np.arange(100.0, 1601.0, 100.0), 2)
    lengths = np.repeat([0.05, 0.10], 16)
    stored = np.concatenate([averaged(walk, s)[99::100] for s in (0.05, 0.10)])
    for sigma_rel, tolerance in ((0.05, 1e-9), (0.07, 1e-3), (0.10, 1e-9), (0.15, 2e-3), (0.20, 2e-2)):
        factors = posthoc_coefficients(ends, lengths, 1600.0, sigma_rel)
        assert factors.sum() == pytest.approx(1.0, abs=1e-12)
        direct = averaged(walk, sigma_rel)[-1]
        assert np.abs(factors @ stored - direct).max() < tolerance * direct.std(), sigma_rel


def test_posthoc_from_the_files_of_a_training(tmp_path) -> None:
    run = tiny(
        tmp_path, images=240, snapshot_images=16, averages={**power_averages(), "direct": power(0.07)}, save_minutes=9.0
    )
    assert run.run()
    found = posthoc(tmp_path, run.images, run.step, (0.07,))[0.07]
    direct, start = run.averages.weights["direct"], tiny(None).model.state_dict()
    for name, value in direct.items():
        moved = (value - start[name]).abs().max()
        assert (found[name] - value).abs().max() <= 0.02 * moved + 2e-3 * value.abs().max(), name


def test_weights_that_stay_are_their_average() -> None:
    """Also where the snapshots say little about what is asked for."""
    module = nn.Linear(3, 2)
    averages = Averages(module, {**power_averages((0.05, 0.2)), "plain": exponential(0.9)})
    for step in range(1, 6):
        averages.update(step)
    for name in averages.keeps:
        torch.testing.assert_close(averages.weights[name], dict(module.named_parameters()), rtol=1e-6, atol=1e-7)
    factors = posthoc_coefficients(np.array([2.0, 5.0]), np.array([0.05, 0.05]), 5.0, 0.2)
    assert factors.sum() == pytest.approx(1.0)


def test_the_first_step_of_a_power_average_forgets_the_random_start() -> None:
    module = nn.Linear(2, 1)
    averages = Averages(module, {"power": power(0.1), "classical": exponential(0.9)})
    with torch.no_grad():
        module.weight += 1.0
    before = module.weight.detach().clone() - 1.0
    averages.update(1)
    assert torch.equal(averages.weights["power"]["weight"], module.weight)
    torch.testing.assert_close(averages.weights["classical"]["weight"], 0.9 * before + 0.1 * module.weight.detach())


def test_applied_swaps_and_gives_back() -> None:
    module = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5)).train()
    averages = Averages(module, {"old": exponential(1.0)})
    old = module[0].weight.detach().clone()
    with torch.no_grad():
        module[0].weight += 1.0
    own = module[0].weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), averages.applied("old") as inner:
        assert not inner.training
        assert torch.equal(inner[0].weight, old)
        raise RuntimeError("inside")
    assert module.training
    assert torch.equal(module[0].weight, own)
