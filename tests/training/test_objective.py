"""The denoising loss: its weight, and the noise levels it sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungwave.models.precond import Preconditioned
from lungwave.models.unet import UNet, UNetConfig
from lungwave.prior.journal import SIGMAS, sigma_losses
from lungwave.training.objective import Denoising
from lungwave.training.source import Batch, Draws


def small(kind: str = "edm") -> Preconditioned:
    """A small network that is not zero."""
    torch.manual_seed(1)
    net = UNet(UNetConfig(channels=8, channel_mult=(1,), blocks=1, heads=2))
    torch.nn.init.normal_(net.out[2].weight, std=0.1)
    return Preconditioned(net, kind).eval()


@pytest.mark.parametrize("kind", ["edm", "eps", "x0", "v", "flow"])
def test_the_loss_is_the_networks_own_error(kind: str) -> None:
    """``|D - x0|^2 / c_out^2`` is the squared distance of the network's output to its target, in every kind."""
    model = small(kind)
    batch = Batch(
        0.5 * torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0)), None, Draws(0, np.arange(6))
    )
    with torch.no_grad():
        values = Denoising().losses(model, batch)
        sigma = values["sigma"]
        noisy = batch.clean + sigma[:, None, None, None] * batch.normal("noise")
        c_skip, c_out, c_in, time = (v[:, None, None, None] for v in model.coefficients(sigma))
        target = (batch.clean - c_skip * noisy) / c_out
        wanted = (model.net(c_in * noisy, time.flatten()) - target).square().mean((1, 2, 3))
    torch.testing.assert_close(values["loss"], wanted, rtol=2e-4, atol=1e-5)


def test_noise_levels_are_log_normal() -> None:
    batch = Batch(torch.zeros(4000, 1, 1, 1), None, Draws(0, np.arange(4000)))
    task = Denoising(p_mean=-0.7, p_std=1.4)
    quantile = batch.uniform("sigma")
    log = task.p_mean + task.p_std * torch.special.ndtri(quantile)
    assert float(log.mean()) == pytest.approx(-0.7, abs=4 * 1.4 / np.sqrt(4000))
    assert float(log.std()) == pytest.approx(1.4, rel=4 / np.sqrt(8000))


def test_several_levels_are_the_mean_of_as_many_losses() -> None:
    model, task = small(), Denoising(levels=3)
    clean = 0.5 * torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    batch = Batch(clean, None, Draws(0, np.arange(5)))
    with torch.no_grad():
        values = task.losses(model, batch)
        total = torch.zeros(5)
        for k in range(3):
            share = (batch.uniform("sigma").double() + k) / 3  # one level in each third of the distribution
            sigma = (task.p_mean + task.p_std * torch.special.ndtri(share)).exp().float()
            noisy = clean + sigma[:, None, None, None] * batch.normal(f"noise {k}")
            total += task.weights(model, sigma) * (model(noisy, sigma) - clean).square().mean((1, 2, 3)) / 3
    torch.testing.assert_close(values["loss"], total)
    assert len(values["sigma"]) == 5


def test_soft_min_snr_weighs_low_noise_less() -> None:
    sigma = torch.tensor([1e-3, 0.5, 50.0])
    ratio = Denoising(weight="soft-min-snr").weights(small(), sigma) / Denoising().weights(small(), sigma)
    # (sigma sigma_data)^2 / (sigma^2 + sigma_data^2)^2, at most 1/4 where the two are equal
    torch.testing.assert_close(ratio, (0.5 * sigma) ** 2 / (sigma**2 + 0.25) ** 2)


class Gaussian:
    """Images of independent values of deviation 0.5."""

    digest = "gaussian"

    def facts(self) -> dict:
        return {}

    def __len__(self) -> int:
        return 400

    def images(self, rows: np.ndarray, draws: Draws | None) -> tuple[torch.Tensor, None]:
        return 0.5 * Draws(7, rows).normal("image", (1, 8, 8)), None


def test_a_fresh_network_has_loss_one_on_gaussian_images() -> None:
    """Its output is zero; ``D = c_skip x`` is then the posterior mean, with error ``c_out^2`` (EDM, appendix B)."""
    fresh = Preconditioned(UNet(UNetConfig(channels=8, channel_mult=(1,), blocks=1, heads=2)))
    losses = sigma_losses(fresh, Gaussian(), 400)
    assert len(losses) == len(SIGMAS)
    np.testing.assert_allclose(losses, 1.0, atol=4 * np.sqrt(2 / (400 * 64)))
