"""Likelihoods against closed-form densities."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lungwave.likelihood import EIGHT_BIT, Flow, bits_per_dim, log_likelihood
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.sample import Counted, Seeds, generate, karras, unipc
from lungwave.types import LungwaveError, UsageError
from sample.ideal import Gaussian, Mixture, gaussian, mixture

EXACT = Flow(probes=0)


def drawn(data: Gaussian, count: int, seed: int = 0) -> torch.Tensor:
    """Samples of a Gaussian."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(size=(count, len(data.mean))))
    return data.mean + noise @ torch.linalg.cholesky(data.cov).T


def test_bits_per_dim_of_a_gaussian_are_exact() -> None:
    data = gaussian(6)
    data = Gaussian(torch.zeros_like(data.mean), data.cov)  # scaled maps have mean zero
    x = drawn(data, 32)
    found = bits_per_dim(data, x.view(32, 1, 2, 3), Scaling(), grid=None, flow=EXACT)
    wanted = -data.log_density(x) / 6 / math.log(2)
    assert (found - wanted).abs().max() < 1e-3
    assert (found - wanted).mean().abs() < 1e-4


def test_the_density_is_that_of_what_the_sampler_draws() -> None:
    """Noise that starts at N(0, sigma_max^2), not at the data's own mean and spread, and stops at sigma_min."""
    data, low, high = gaussian(3), 0.1, 3.0
    values, vectors = torch.linalg.eigh(data.cov)
    stretch = ((values + low**2) / (values + high**2)).sqrt()
    mean = data.flow(torch.zeros(1, 3, dtype=torch.float64), high, low)[0]
    sampled = Gaussian(mean, vectors @ (high * stretch).square().diag() @ vectors.T)
    x = drawn(data, 16)
    found = log_likelihood(data, x, flow=Flow(steps=100, sigma_min=low, sigma_max=high, probes=0)).log_density
    torch.testing.assert_close(found, sampled.log_density(x), rtol=0, atol=1e-6)
    assert (found - data.log_density(x, low)).abs().max() > 0.05


def test_log_density_of_a_mixture_at_any_noise_level() -> None:
    data = mixture(3)
    x = torch.cat([drawn(part, 8) for part in data.parts])
    for level in (0.002, 0.3):
        found = log_likelihood(data, x, flow=Flow(probes=0, sigma_min=level, sigma_max=3000.0)).log_density
        assert (found - data.log_density(x, level)).abs().max() < 1e-3


def test_the_ode_is_solved_to_order_4() -> None:
    data = mixture(3)
    x = torch.cat([drawn(part, 4) for part in data.parts])

    def density(steps: int) -> torch.Tensor:
        return log_likelihood(data, x, flow=Flow(steps, sigma_min=0.05, sigma_max=20.0, probes=0)).log_density

    steps, fine = (24, 34, 48), density(120)
    errors = [float((density(n) - fine).norm()) for n in steps]
    assert -np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(4, abs=0.5)


def test_density_integrates_to_one() -> None:
    """On a fine grid over the plane: 2-d mixture, without knowing its closed form."""
    data = Mixture((0.6, 0.4), (gaussian(2, 1), gaussian(2, 2)))
    axis = torch.linspace(-3, 3, 61, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    density = log_likelihood(data, points, flow=Flow(probes=0, steps=24)).log_density.exp()
    assert density.sum() * 0.1**2 == pytest.approx(1, abs=2e-3)


def test_random_probes_are_unbiased_and_exact_where_pixels_do_not_mix() -> None:
    data = gaussian(4)
    x = drawn(data, 1).expand(800, 4)
    exact = log_likelihood(data, x[:1], flow=EXACT).log_density.item()
    rough = log_likelihood(data, x, flow=Flow(steps=24), randomness=Seeds(1, range(800))).log_density
    assert rough.std() > 0.05
    assert abs(rough.mean() - exact) < 4 * rough.std() / math.sqrt(800) + 1e-3
    more = log_likelihood(data, x, flow=Flow(steps=24, probes=4), randomness=Seeds(1, range(800))).log_density
    assert more.std().item() == pytest.approx(rough.std().item() / 2, rel=0.15)

    diagonal = Gaussian(data.mean, data.cov.diagonal().diag())
    one = log_likelihood(diagonal, x[:3], flow=Flow(), randomness=Seeds(1, range(3))).log_density
    torch.testing.assert_close(one, log_likelihood(diagonal, x[:3], flow=EXACT).log_density, rtol=1e-9, atol=1e-9)


def test_maps_and_noise_are_two_ends_of_one_path() -> None:
    data = mixture(4)
    x = torch.cat([drawn(part, 3) for part in data.parts])
    noise = log_likelihood(data, x, flow=Flow(probes=0, steps=100)).noise
    torch.testing.assert_close(unipc(data, noise, karras(300)[:-1]), x, rtol=0, atol=2e-4)


def test_eight_bit_maps_cost_what_their_values_cost() -> None:
    """Bits per pixel of a wide Gaussian on the 8-bit grid: minus the logarithm of each grid value's probability."""
    scaling = Scaling(mean=0.5, std=0.1)
    data = Gaussian(torch.zeros(12, dtype=torch.float64), 0.25 * torch.eye(12, dtype=torch.float64))
    rng = np.random.default_rng(3)
    levels = np.clip(np.round(255 * (0.5 + 0.1 * rng.normal(size=(40, 1, 3, 4)))), 0, 255)
    maps = torch.from_numpy(levels / 255).float()
    found = bits_per_dim(data, maps, scaling, seed=5)
    edges = torch.from_numpy(((levels[None] + np.array([-0.5, 0.5])[:, None, None, None, None]) / 255 - 0.5) / 0.1)
    probability = torch.special.ndtr(edges[1]) - torch.special.ndtr(edges[0])
    wanted = -probability.log2().flatten(1).mean(1)
    assert (found - wanted).abs().max() < 0.03  # the noise of one draw within a grid step
    assert (found - wanted).mean().abs() < 0.005

    density = bits_per_dim(data, maps, scaling, grid=None)
    assert (density - math.log2(EIGHT_BIT) - wanted).abs().max() < 0.002
    with pytest.raises(UsageError, match="not multiples of"):
        bits_per_dim(data, maps + 0.001, scaling)


def test_a_map_costs_the_same_in_any_batch() -> None:
    data = gaussian(4)
    maps = (
        torch.round(255 * torch.rand(7, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)) / 255
    )
    flow = Flow(steps=4)
    whole = bits_per_dim(data, maps, Scaling(), flow=flow)
    torch.testing.assert_close(whole, bits_per_dim(data, maps, Scaling(), flow=flow, batch=3), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        whole[5:], bits_per_dim(data, maps[5:], Scaling(), flow=flow, first=5), rtol=1e-12, atol=0
    )


def test_the_condition_reaches_the_denoiser() -> None:
    data = mixture(4)
    x = drawn(data.parts[2], 5)
    found = bits_per_dim(data, x.view(5, 1, 2, 2), Scaling(), Condition(label=torch.full((5,), 2)), grid=None,
                         flow=Flow(probes=0, sigma_max=1000.0), batch=2)  # fmt: skip
    assert (found + data.parts[2].log_density(x) / 4 / math.log(2)).abs().max() < 1e-3


def test_through_a_real_network() -> None:
    net = Preconditioned(UNet(UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, dropout=0.5)))
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=source))
    counted = Counted(net)
    maps = generate(net, (1, 8, 8), 2, seed=0, steps=4).clamp(-1, 1) / 2 + 0.5
    found = bits_per_dim(counted, maps, Scaling(0.5, 0.25), grid=None, flow=Flow(steps=6))
    assert found.shape == (2,) and found.isfinite().all()
    assert counted.calls == 24
    assert net.training and all(p.grad is None for p in net.parameters())
    assert torch.equal(found, bits_per_dim(net, maps, Scaling(0.5, 0.25), grid=None, flow=Flow(steps=6)))


def test_bad_requests_are_refused() -> None:
    x = torch.zeros(2, 4, dtype=torch.float64)
    with pytest.raises(UsageError, match="randomness=Seeds"):
        log_likelihood(gaussian(4), x)
    with pytest.raises(UsageError, match="sigma_max > sigma_min"):
        log_likelihood(gaussian(4), x, flow=Flow(sigma_min=1.0, sigma_max=0.1, probes=0))
    with pytest.raises(LungwaveError, match="map 0 is not finite"):
        log_likelihood(lambda x, sigma, cond: x / 0, x, flow=EXACT)
