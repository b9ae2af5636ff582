"""``daps_rto`` against exact posteriors, and forward models against their own derivatives."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lungwave.models.precond import Denoiser
from lungwave.models.wiener import Wiener, cosines
from lungwave.posterior.guided import Inner, ScalarGuess, SpectralGuess, daps_rto, guess_of
from lungwave.posterior.likelihood import Counted, Differentiable, GaussianNoise, Linear, check_forward
from lungwave.sample import Seeds
from lungwave.types import LungwaveError, UsageError

SIZE = (1, 32)
TRUTHS, DRAWS = 24, 128


class Silent(nn.Module):
    """A network that says nothing: its Wiener denoiser is exact for Gaussian maps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x, time, cond):
        return torch.zeros_like(x)


def prior() -> tuple[Wiener, torch.Tensor]:
    """Smooth lines of 32 pixels, as a denoiser and as a covariance."""
    spectrum = torch.exp(-0.35 * torch.arange(32.0))[None, None] * 6 + 1e-5
    basis = cosines(32)
    return Wiener(Silent(), spectrum), basis.T @ torch.diag(spectrum[0, 0].double()) @ basis


def blur() -> torch.Tensor:
    """Eight blurred looks at the first half."""
    place = torch.arange(32.0, dtype=torch.float64)
    rows = torch.exp(-0.5 * ((place - torch.linspace(1, 15, 8)[:, None]) / 1.5) ** 2)
    return rows / rows.sum(1, keepdim=True)


def twin(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Truths, noisy looks, and the exact posterior's means and covariance."""
    _, covariance = prior()
    a, generator = blur(), torch.Generator().manual_seed(seed)
    truth = torch.randn(TRUTHS, 32, generator=generator, dtype=torch.float64) @ torch.linalg.cholesky(covariance).T
    y = truth @ a.T + 0.1 * torch.randn(TRUTHS, 8, generator=generator, dtype=torch.float64)
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + 0.01 * torch.eye(8))
    return truth, y, y @ gain.T, covariance - gain @ a @ covariance


def drawn(y: torch.Tensor, denoiser: Denoiser, **how) -> torch.Tensor:
    """``DRAWS`` samples of each case (case, draw, pixel)."""
    many = y.repeat_interleave(DRAWS, 0)
    found = daps_rto(many, Linear(blur()), denoiser, GaussianNoise(0.1), (1, *SIZE), Seeds(0, range(len(many))), **how)
    return found.maps.reshape(len(y), DRAWS, 32)


@pytest.mark.parametrize("levels", [3, 10])
def test_gaussian_twin(levels: int) -> None:
    """Closed form: mean within a tenth of a standard deviation, variance, coverage and chi2, whatever the levels."""
    truth, y, mean, covariance = twin(0)
    samples = drawn(y, prior()[0], levels=levels, inner=Inner(1, 12))
    std = covariance.diagonal().sqrt()
    assert float(((samples.mean(1) - mean) / std).abs().mean()) < 0.1
    ratio = (samples.var(1) / std**2).mean(0)
    assert 0.9 < float(ratio.mean()) < 1.1 and float(ratio.min()) > 0.75 and float(ratio.max()) < 1.3
    low, high = (torch.quantile(samples, q, dim=1) for q in (0.05, 0.95))
    exact = ((truth - mean).abs() < 1.6449 * std).double().mean()  # what the exact interval holds of these truths
    assert float(((truth > low) & (truth < high)).double().mean()) == pytest.approx(float(exact), abs=0.03)
    residual = samples @ blur().T - y[:, None]
    expected = float(((mean @ blur().T - y) ** 2).mean() + (blur() @ covariance @ blur().T).diagonal().mean()) / 0.01
    assert float(residual.square().mean()) / 0.01 == pytest.approx(expected, rel=0.1)


def test_the_spectral_guess_is_what_makes_few_levels_exact() -> None:
    """With independent pixels of one variance instead, three levels leave the spread wrong."""
    _, y, _, covariance = twin(0)
    scalar = drawn(y, prior()[0], levels=3, inner=Inner(1, 12), guess=ScalarGuess())
    wrong = float((scalar.var(1) / covariance.diagonal()).mean())
    assert not 0.9 < wrong < 1.1
    assert isinstance(guess_of(prior()[0]), SpectralGuess) and isinstance(guess_of(Denoiser()), ScalarGuess)


def test_nonlinear_twin_against_importance_sampling() -> None:
    """y = exp of a mean: the posterior of that mean from a million weighted prior draws."""
    denoiser, covariance = prior()
    row = torch.full((1, 32), 1 / 32, dtype=torch.float64)
    forward = Differentiable(lambda x: torch.exp(2 * x.flatten(1) @ row.T.to(x.dtype)))
    y = torch.tensor([[1.8]], dtype=torch.float64)
    spread = float((row @ covariance @ row.T).sqrt())
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64) * spread
    weight = torch.exp(-0.5 * (grid / spread) ** 2 - 0.5 * ((torch.exp(2 * grid) - y) / 0.3) ** 2)[0]
    mean = float((weight * grid).sum() / weight.sum())
    std = math.sqrt(float((weight * (grid - mean) ** 2).sum() / weight.sum()))
    found = daps_rto(
        y.expand(600, 1), forward, denoiser, GaussianNoise(0.3), (1, *SIZE), Seeds(1, range(600)), levels=12,
        inner=Inner(3, 4),
    )  # fmt: skip
    means = found.maps.flatten(1).mean(1)
    assert abs(float(means.mean()) - mean) < 0.25 * std
    assert 0.75 < float(means.std()) / std < 1.25


def test_samples_do_not_depend_on_their_neighbours_and_lost_ones_are_counted() -> None:
    """A forward model that fails for one case loses that one alone."""
    denoiser, _ = prior()
    _, y, _, _ = twin(1)
    plain = Linear(blur())
    whole = daps_rto(y[:4], plain, denoiser, GaussianNoise(0.1), (1, *SIZE), Seeds(0, range(4)), levels=4)
    alone = daps_rto(y[2:3], plain, denoiser, GaussianNoise(0.1), (1, *SIZE), Seeds(0, range(2, 3)), levels=4)
    torch.testing.assert_close(whole.maps[2], alone.maps[0])
    assert whole.calls["denoiser"] == 16 and whole.calls["vjp"] > 0
    broken = y[:4].clone()
    broken[1] = math.nan
    found = daps_rto(broken, plain, denoiser, GaussianNoise(0.1), (1, *SIZE), Seeds(0, range(4)), levels=4)
    assert found.kept.tolist() == [True, False, True, True] and found.levels[-1].lost == 1
    assert bool(found.maps[1].isnan().all()) and bool(found.chi2[1].isnan())
    torch.testing.assert_close(found.maps[[0, 2, 3]], whole.maps[[0, 2, 3]])
    with pytest.raises(LungwaveError, match="all 4 cases were lost at sigma 20"):
        daps_rto(y[:4] * math.nan, plain, denoiser, GaussianNoise(0.1), (1, *SIZE), Seeds(0, range(4)), levels=2)


class Wrong(Linear):
    """A forward model whose adjoint has the wrong sign."""

    def vjp(self, x, u):
        return -super().vjp(x, u)


def test_a_forward_model_is_tried_before_it_is_trusted() -> None:
    """Right ones pass to rounding; a wrong adjoint, a leak between cases and a bad range are named."""
    x = torch.randn(3, 1, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = check_forward(Differentiable(lambda v: v.flatten(1).sin() @ blur().T), x)
    assert found["adjoint"] < 1e-12 and found["batch"] < 1e-12
    assert check_forward(Linear(blur()), x)["slope"] < 1e-6
    with pytest.raises(LungwaveError, match="<J v, u> and <v, J' u> differ by"):
        check_forward(Wrong(blur()), x)
    with pytest.raises(LungwaveError, match="a batch and its maps one by one differ"):
        check_forward(Differentiable(lambda v: v.flatten(1) - v.flatten(1).mean(0)), x)
    with pytest.raises(UsageError, match=r"the model is valid in 0-1"):
        check_forward(Linear(blur(), (0.0, 1.0)), x)
    with pytest.raises(LungwaveError, match="forward gives values that are not finite"):
        check_forward(Differentiable(lambda v: v.flatten(1).log()), x)


def test_noise_knows_its_size_and_a_temperature_is_explicit() -> None:
    """chi2 is 1 for residuals of the noise; zero noise and other shapes are refused."""
    std = torch.tensor([0.1, 2.0])
    residual = std * torch.randn(4000, 2, generator=torch.Generator().manual_seed(0))
    assert float(GaussianNoise(std).chi2(residual).mean()) == pytest.approx(1, abs=0.05)
    assert float(GaussianNoise(std, temperature=4.0).chi2(residual).mean()) == pytest.approx(0.25, abs=0.02)
    log = GaussianNoise(0.5).log_prob(torch.tensor([[1.0, 0.0]]))
    assert float(log) == pytest.approx(-2.0)
    with pytest.raises(UsageError, match="standard deviation 0; measure it"):
        GaussianNoise(0.0)
    with pytest.raises(UsageError, match=r"noise of shape \(2,\) for recordings of \(3,\)"):
        GaussianNoise(std).whiten(torch.zeros(1, 3))


def test_calls_are_counted_case_by_case() -> None:
    """Ten maps at once are ten calls."""
    counted = Counted(Linear(blur()))
    x = torch.zeros(10, 1, *SIZE, dtype=torch.float64)
    counted.vjp(x, counted(x))
    counted.jvp(x, x)
    assert (counted.forwards, counted.jvps, counted.vjps) == (10, 10, 10)
    assert counted.valid_range == (-math.inf, math.inf) and np.isinf(counted.valid_range[1])
