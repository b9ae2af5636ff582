"""The Wiener denoiser: exact where maps are Gaussian, whatever the network does not say."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from lungwave.models.checkpoint import ABOUT, WEIGHTS, load_model, save_model
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.models.wiener import Centred, Wiener, cosines, mode_variance
from lungwave.sample import generate
from lungwave.types import UsageError

SIZE = (8, 16)


def spectrum() -> torch.Tensor:
    """Smooth maps: variance falls with the wavenumber by six decades."""
    z, x = torch.arange(SIZE[0])[:, None], torch.arange(SIZE[1])
    return 8 * torch.exp(-0.5 * (z + 0.5 * x))[None] + 1e-6


def draw(count: int, seed: int = 0) -> torch.Tensor:
    """Gaussian maps of that spectrum."""
    modes = torch.randn(count, 1, *SIZE, generator=torch.Generator().manual_seed(seed)) * spectrum().sqrt()
    return cosines(SIZE[0]).float().T @ modes @ cosines(SIZE[1]).float()


class Silent(nn.Module):
    """A network that keeps what it is shown and says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, time: torch.Tensor, cond: Condition) -> torch.Tensor:
        self.seen = (x, time, cond)
        return torch.zeros_like(x)


def test_cosine_modes_are_orthonormal_and_their_variance_is_that_of_the_maps() -> None:
    """Parseval: the variances of all modes add up to the mean square of the pixels times their number."""
    basis = cosines(SIZE[1])
    torch.testing.assert_close(basis @ basis.T, torch.eye(SIZE[1], dtype=torch.float64))
    maps = draw(4000)
    found = mode_variance(maps)
    assert float(found.sum()) == pytest.approx(float(maps.square().mean()) * SIZE[0] * SIZE[1], rel=1e-4)
    ratio = found / spectrum()
    assert float(ratio.log().abs().mean()) < 0.03 and float((ratio - 1).abs().max()) < 0.15


@pytest.mark.parametrize("sigma", [0.01, 0.3, 3.0, 60.0])
def test_without_a_network_it_is_the_posterior_mean_of_gaussian_maps(sigma: float) -> None:
    """Dense linear algebra in pixels gives the same guess, and its error is the square of c_out."""
    denoiser = Wiener(Silent(), spectrum())
    basis = torch.kron(cosines(SIZE[0]), cosines(SIZE[1]))
    covariance = basis.T @ torch.diag(spectrum().double().flatten()) @ basis
    gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance)))
    clean = draw(3000, 1)
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(2))
    wanted = (noisy.double().flatten(1) @ gain.T).reshape(clean.shape)
    level = torch.full((len(clean),), sigma)
    guess = denoiser(noisy.double(), level)
    torch.testing.assert_close(guess, wanted, rtol=1e-4, atol=1e-5)
    error = float((guess - clean).square().mean().sqrt())
    assert error == pytest.approx(float(denoiser.error_scale(level[:1])), rel=0.02)


@pytest.mark.parametrize("sigma", [0.02, 1.0, 40.0])
def test_the_network_sees_maps_of_unit_variance(sigma: float) -> None:
    """The noisy map and the filtered one, which comes in front of the images of a condition."""
    net = Silent()
    clean = draw(3000, 3)
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    image = torch.randn(len(clean), 2, *SIZE)
    Wiener(net, spectrum())(noisy, torch.full((len(clean),), sigma), Condition(image=image))
    x, _, cond = net.seen
    assert float(x.square().mean()) == pytest.approx(1, rel=0.06)
    assert float(cond.image[:, :1].square().mean()) == pytest.approx(1, rel=0.06)
    assert torch.equal(cond.image[:, 1:], image)


def test_samples_of_a_silent_network_have_the_spectrum_of_the_maps() -> None:
    """Sampling solves the flow of a Gaussian: every mode comes out with its variance."""
    drawn = generate(Wiener(Silent(), spectrum()), (1, *SIZE), 3000, seed=0, batch=3000, steps=64)
    ratio = (mode_variance(drawn) / spectrum()).numpy()
    loud = spectrum().numpy() > 1e-3  # quieter modes than the last noise level say nothing
    assert abs(np.log(ratio[loud]).mean()) < 0.03 and np.abs(ratio[loud] - 1).max() < 0.2


def network(seed: int = 0) -> UNet:
    """A small network that is not zero."""
    torch.manual_seed(seed)
    net = UNet(UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, image_channels=1))
    nn.init.normal_(net.out[2].weight, std=0.1)
    return net


def test_a_stored_model_says_the_same_and_half_precision_keeps_the_spectrum(tmp_path) -> None:
    """The spectrum spans more decades than float16 holds, so it is stored as it is."""
    denoiser = Wiener(network(), spectrum() * 1e-3).eval()
    x, sigma = torch.randn(2, 1, *SIZE), torch.tensor([0.3, 9.0])
    save_model(tmp_path / "whole", denoiser, Scaling(), SIZE, card="# A", command="a")
    torch.testing.assert_close(load_model(tmp_path / "whole").denoiser(x, sigma), denoiser(x, sigma))
    save_model(tmp_path / "half", denoiser, Scaling(), SIZE, card="# A", command="a", dtype="float16")
    again = load_model(tmp_path / "half").denoiser
    assert isinstance(again, Wiener) and torch.equal(again.spectrum, denoiser.spectrum)
    torch.testing.assert_close(again(x, sigma), denoiser(x, sigma), atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("damage", ["missing", "size", "negative"])
def test_a_damaged_spectrum_is_refused(tmp_path, damage: str) -> None:
    """No number of it may be absent, of another map, or below zero."""
    values = {"missing": spectrum(), "size": spectrum(), "negative": -spectrum()}[damage]
    save_model(tmp_path, Wiener(network(), values), Scaling(), SIZE, card="# A", command="a")
    about = json.loads((tmp_path / ABOUT).read_text())
    if damage == "missing":
        from safetensors.torch import load_file, save_file

        kept = {name: value for name, value in load_file(tmp_path / WEIGHTS).items() if name != "spectrum"}
        save_file(kept, tmp_path / WEIGHTS)
        del about["weights_sha256"]
    if damage == "size":
        about["size"] = [SIZE[0], 2 * SIZE[1]]
    (tmp_path / ABOUT).write_text(json.dumps(about))
    with pytest.raises(UsageError, match="spectrum"):
        load_model(tmp_path)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_around_an_estimate_it_is_the_posterior_mean_of_what_the_estimate_leaves(sigma: float) -> None:
    """Maps are an estimate and a Gaussian rest; a silent network gives the exact guess and its error."""
    denoiser = Centred(Silent(), spectrum())
    center = draw(200, 5) * 2
    clean = center + draw(200, 6)
    noisy = clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(7))
    level = torch.full((200,), sigma)
    found = denoiser(noisy, level, Condition(center=center))
    rest = Wiener(Silent(), spectrum())(noisy - center, level)
    torch.testing.assert_close(found, center + rest, rtol=1e-4, atol=1e-5)
    error = float((found - clean).square().mean())
    assert error == pytest.approx(float(denoiser.error_scale(level)[0]) ** 2, rel=0.1)
    assert denoiser.net.seen[2].image.shape[1] == 2 and denoiser.net.seen[2].center is None
    with pytest.raises(UsageError, match="works around an estimate"):
        denoiser(noisy, level, Condition())


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m", "unipc"])
def test_samples_start_where_the_maps_are_however_low_the_first_noise_level_is(sampler: str) -> None:
    """The loudest mode's spread is sigma_max itself: from noise alone it would come out with half of its variance, and
    an estimate would be left with 0.29 of its mean."""
    loudest = float(spectrum().max().sqrt())
    how = {"seed": 1, "batch": 2000, "steps": 48, "sigma_max": loudest, "sampler": sampler}
    drawn = generate(Wiener(Silent(), spectrum()), (1, *SIZE), 2000, **how)
    assert float(mode_variance(drawn)[0, 0, 0]) == pytest.approx(loudest**2, rel=0.1)
    center = torch.zeros(2000, 1, *SIZE)
    center += 2 * loudest * cosines(SIZE[0])[0, 0] * cosines(SIZE[1])[0, 0]
    around = generate(Centred(Silent(), spectrum()), (1, *SIZE), 2000, cond=Condition(center=center), **how)
    assert float(around.mean()) == pytest.approx(float(center.mean()), rel=0.03)
    assert float(mode_variance(around - center)[0, 0, 0]) == pytest.approx(loudest**2, rel=0.1)
