"""Laws of the parametrisations: a network that says exactly what its paper defines makes the denoiser exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lungwave.models.noising import Noising
from lungwave.models.precond import SIGMA_DATA, Discrete, Preconditioned, Scaling
from lungwave.models.unet import Condition

SIGMAS = torch.tensor([0.002, 0.05, 0.5, 1.0, 7.0, 80.0], dtype=torch.float64)
KINDS = ["edm", "eps", "x0", "v", "flow"]


class Says(nn.Module):
    """A network with a known answer; remembers what it was asked."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer
        self.precision = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, time: Tensor, cond: Condition | None = None) -> Tensor:
        self.x, self.time, self.cond = x, time, cond
        return self.answer(x, time)


def draws(n: int = len(SIGMAS)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(n, 2, 5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    return SIGMA_DATA * x0, noise


def target(kind: str, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """What the network of each paper is to predict."""
    s = sigma[:, None, None, None]
    length = (s**2 + SIGMA_DATA**2).sqrt()
    match kind:
        case "edm":  # arXiv:2206.00364, eq. 8: (y - c_skip (y + n)) / c_out
            skip, out = SIGMA_DATA**2 / length**2, s * SIGMA_DATA / length
            return (x0 - skip * (x0 + s * noise)) / out
        case "eps":  # arXiv:2006.11239
            return noise
        case "x0":
            return x0 / SIGMA_DATA
        case "v":  # arXiv:2202.00512: alpha eps - sigma x, at unit variance and alpha^2 + sigma^2 = 1
            return SIGMA_DATA / length * noise - s / length * x0 / SIGMA_DATA
        case "flow":  # arXiv:2210.02747: velocity of (1 - t) x0 + t noise
            return noise - x0
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_target_gives_the_clean_map(kind: str) -> None:
    x0, noise = draws()
    denoiser = Preconditioned(Says(lambda x, time: target(kind, x0, noise, SIGMAS)), kind)
    found = denoiser(x0 + SIGMAS[:, None, None, None] * noise, SIGMAS)
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_the_weighted_error_is_the_networks_own(kind: str) -> None:
    x0, noise = draws()
    said = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser = Preconditioned(Says(lambda x, time: said), kind)
    error = (denoiser(x0 + SIGMAS[:, None, None, None] * noise, SIGMAS) - x0).square().sum((1, 2, 3))
    own = (said - target(kind, x0, noise, SIGMAS)).square().sum((1, 2, 3))
    torch.testing.assert_close(error / denoiser.coefficients(SIGMAS)[1] ** 2, own, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_sees_maps_of_bounded_size_and_each_level_apart(kind: str) -> None:
    denoiser = Preconditioned(Says(lambda x, time: x), kind)
    variance = denoiser.coefficients(SIGMAS)[2] ** 2 * (SIGMAS**2 + SIGMA_DATA**2)
    if kind == "flow":  # (1 - t) x0 + t noise, from variance 1/4 to 1
        t = SIGMAS / (1 + SIGMAS)
        expected = (1 - t) ** 2 * SIGMA_DATA**2 + t**2
    else:
        expected = torch.ones_like(SIGMAS)
    torch.testing.assert_close(variance, expected)
    assert (denoiser.coefficients(SIGMAS)[3].diff() > 1).all()


@pytest.mark.parametrize("kind", ["edm", "x0", "v", "flow"])
def test_without_noise_and_without_signal(kind: str) -> None:
    """As sigma falls to 0 the map itself remains, whatever a bounded network says; only x0 must know it by heart."""
    x0, _ = draws(1)
    denoiser = Preconditioned(Says(lambda x, time: torch.ones_like(x)), kind)
    quiet = denoiser(x0, torch.tensor([1e-9], dtype=torch.float64))
    expected = torch.full_like(x0, SIGMA_DATA) if kind == "x0" else x0
    torch.testing.assert_close(quiet, expected, rtol=1e-6, atol=1e-6)


def test_conditions_and_precision_pass_through() -> None:
    x0, _ = draws()
    says, cond = Says(lambda x, time: x), Condition(label=torch.arange(len(x0)))
    denoiser = Preconditioned(says)
    assert denoiser(x0.float(), SIGMAS.float(), cond).dtype == torch.float32
    assert says.x.dtype == says.time.dtype == torch.float64 and says.cond is cond


# ---- discrete processes --------------------------------------------------------------------------------------------

PROCESSES = [
    Noising(),
    Noising(4000, "cosine"),
    Noising(1000, "linear", "ddim50"),
    Noising(7000, rescale_timesteps=False),
]


@pytest.mark.parametrize("process", PROCESSES, ids=["linear", "cosine", "ddim50", "7000"])
@pytest.mark.parametrize("predicts", ["eps", "x0"])
def test_table_levels_are_table_steps(process: Noising, predicts: str) -> None:
    steps = torch.tensor([0, 3, process.length // 2, process.length - 2])
    sigma = torch.as_tensor(process.sigmas)[steps]
    x0, noise = draws(len(steps))
    s = sigma[:, None, None, None]
    says = Says(lambda x, time: torch.cat([noise if predicts == "eps" else x0, torch.full_like(x0, 9.0)], 1))
    found = Discrete(says, process, predicts)(x0 + s * noise, sigma)
    torch.testing.assert_close(found, x0, rtol=1e-9, atol=1e-9 * float(sigma.max()))
    original = torch.as_tensor(process.kept)[steps].double()
    scale = 1000 / process.steps if process.rescale_timesteps else 1.0
    torch.testing.assert_close(says.time, original * scale, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(says.x, process.q_sample(x0, steps, noise))


def test_eps_networks_give_x_minus_sigma_eps() -> None:
    process = Noising()
    sigma = torch.as_tensor(process.sigmas)[[10, 500]]
    says = Says(lambda x, time: torch.tanh(x))
    x, _ = draws(2)
    found = Discrete(says, process)(x, sigma)
    torch.testing.assert_close(found, x - sigma[:, None, None, None] * torch.tanh(says.x))


def test_time_is_interpolated_in_the_logarithm_and_ends_at_the_table() -> None:
    process = Noising()
    says = Says(lambda x, time: x)
    between = float((process.sigmas[20] * process.sigmas[21]) ** 0.5)
    sigma = torch.tensor([between, 1e-6, 1e6], dtype=torch.float64)
    Discrete(says, process)(draws(3)[0], sigma)
    torch.testing.assert_close(says.time, torch.tensor([20.5, 0.0, 999.0], dtype=torch.float64), rtol=1e-6, atol=1e-6)


# ---- scaling -------------------------------------------------------------------------------------------------------


@given(mean=st.floats(-2, 2), std=st.floats(0.01, 10))
def test_scaling_comes_back(mean: float, std: float) -> None:
    maps = torch.linspace(0, 1, 11, dtype=torch.float64)
    scaling = Scaling(mean, std)
    torch.testing.assert_close(scaling.to_data(scaling.to_network(maps)), maps, rtol=1e-9, atol=1e-9)


def test_scaled_maps_have_mean_0_and_standard_deviation_one_half() -> None:
    maps = torch.rand(4, 1, 8, 8, dtype=torch.float64) ** 2
    scaled = Scaling(float(maps.mean()), float(maps.std())).to_network(maps)
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-12)
    assert float(scaled.std()) == pytest.approx(SIGMA_DATA)


def test_openai_files_see_minus_one_to_one() -> None:
    torch.testing.assert_close(Scaling(0.5, 0.25).to_network(torch.tensor([0.0, 0.5, 1.0])), torch.tensor([-1.0, 0, 1]))
