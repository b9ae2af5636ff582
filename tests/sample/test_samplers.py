"""Samplers against closed forms: orders of convergence, moments, identities, calls, seeds and guidance."""

from __future__ import annotations

import json
import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from lungwave.models.openai import openai_denoiser
from lungwave.models.precond import Preconditioned
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.sample import (
    SAMPLERS,
    SCHEDULES,
    Counted,
    Guidance,
    Seeds,
    Step,
    ancestral,
    ddim,
    dpmpp,
    exponential,
    generate,
    guided,
    heun,
    karras,
    respaced,
    unipc,
)
from lungwave.types import LungwaveError, UsageError
from sample.ideal import Gaussian, gaussian, mixture

DIM, COUNT, END = 4, 8, 0.05


# ------------------------------------------------------------------------------------------------- noise levels


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_noise_levels_fall_from_the_largest_to_the_smallest_and_end_at_zero(schedule) -> None:
    levels = schedule(18, 0.002, 80.0)
    assert levels.shape == (19,) and levels.dtype == torch.float64
    assert (levels.diff() < 0).all()
    np.testing.assert_allclose(levels[[0, -2, -1]], [80.0, 0.002, 0.0], rtol=1e-9)


def test_karras_levels_are_those_of_the_paper() -> None:
    """Karras et al. 2022, eq. 5, written as printed."""
    n, low, high = 7, 0.002, 80.0
    wanted = [(high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)]
    np.testing.assert_allclose(karras(n), [*wanted, 0], rtol=1e-12)


def test_levels_of_the_linear_beta_process_are_even_in_its_time() -> None:
    """T linear betas from 1e-4 to 0.02 (T = 1000) are Song's continuous process with 0.1 and 20."""
    time = np.linspace(0, 1, 100_001)
    sigma = np.sqrt(np.expm1(np.cumsum(0.1 + 19.9 * time) * 1e-5))
    levels = SCHEDULES["vp_linear"](9, 0.01, 100.0)[:-1].numpy()
    np.testing.assert_allclose(np.diff(np.interp(levels, sigma, time), 2), 0, atol=1e-5)


def test_respacing_keeps_the_steps_that_openai_keeps(shared_data) -> None:
    golden = np.load(shared_data("diffusion-reference") / "schedules.npz")
    name = next(key for key in golden.files if "1000" in key and "250" in key and "beta" not in key)
    table = np.linspace(0.01, 157, 1000)
    np.testing.assert_array_equal(respaced(table, 250)[:-1], table[golden[name].ravel()[::-1]])


def test_any_table_of_sigmas_is_a_schedule() -> None:
    table = np.geomspace(0.01, 100, 50)
    np.testing.assert_array_equal(respaced(table), [*table[::-1], 0])
    np.testing.assert_array_equal(respaced(table[::-1].copy(), 3)[[0, 2, 3]], [table[-1], table[0], 0])
    with pytest.raises(UsageError, match="51 steps"):
        respaced(table, 51)


def test_bad_levels_are_refused() -> None:
    noise = torch.zeros(1, DIM, dtype=torch.float64)
    for levels in ([1.0, 1.0, 0.0], [1.0, -0.1], [1.0], [math.inf, 1.0, 0.0], [0.1, 1.0]):
        with pytest.raises(UsageError, match="must fall strictly"):
            heun(mixture(DIM), noise, torch.tensor(levels, dtype=torch.float64))
    with pytest.raises(UsageError, match="sigma_max > sigma_min"):
        karras(5, 80.0, 0.002)
    with pytest.raises(UsageError, match="0 sampling steps"):
        exponential(0)


# ---------------------------------------------------------------------------------------------------- the ODE


def exact(start: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and where the probability-flow ODE of the mixture carries it, by SciPy's order-8 solver."""
    noise, denoiser = Seeds(0, range(COUNT)).normal((DIM,)), mixture(DIM)

    def slope(log_sigma: float, state: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(state.reshape(COUNT, DIM))
        sigma = torch.full((COUNT,), math.exp(log_sigma), dtype=torch.float64)
        return (x - denoiser(x, sigma)).numpy().ravel()

    span = math.log(start), math.log(END)
    solution = solve_ivp(slope, span, (start * noise).numpy().ravel(), method="DOP853", rtol=1e-12, atol=1e-12)
    return noise, torch.from_numpy(solution.y[:, -1].reshape(COUNT, DIM))


@pytest.mark.parametrize(
    ("name", "start", "order"),
    [
        ("euler", 80.0, 1),
        ("heun", 80.0, 2),
        ("dpmpp_2m", 80.0, 2),
        ("dpmpp_3m", 80.0, 3),
        ("dpmpp_3m", 2.0, 2),  # near the data the first step, of order 1, decides
        ("unipc_2", 80.0, 3),  # the corrector raises the order by one (Zhao et al. 2023, theorem 3.1)
        ("unipc_2", 2.0, 3),
        ("unipc", 80.0, 4),
    ],
)
def test_order_of_convergence(name: str, start: float, order: int) -> None:
    noise, wanted = exact(start)
    steps = (64, 128, 256)
    errors = [
        float((SAMPLERS[name](mixture(DIM), noise, karras(n, END, start)[:-1]) - wanted).square().mean().sqrt())
        for n in steps
    ]
    assert errors[-1] > 1e-10, "the reference decides, not the sampler"
    measured = np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert -measured == pytest.approx(order, abs=0.15)


def test_multistep_is_exact_where_the_denoiser_is_a_polynomial_of_log_sigma() -> None:
    """3M integrates degree 2 exactly once it has three calls: the state is then that of a run with finer steps."""

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        return (0.3 - 0.2 * sigma.log() + 0.1 * sigma.log() ** 2)[:, None].expand_as(x)

    def closed_form(s: float, t: float) -> float:
        """``int_0^h e^(u - h) D du`` with D along the step, by quadrature."""
        u, weight = np.polynomial.legendre.leggauss(40)
        h = math.log(s / t)
        log = math.log(s) - (u + 1) * h / 2
        return float((weight * np.exp((u - 1) * h / 2) * (0.3 - 0.2 * log + 0.1 * log**2)).sum() * h / 2)

    seen: list[Step] = []
    levels = torch.tensor([5.0, 3.1, 1.7, 0.9, 0.2], dtype=torch.float64)
    last = dpmpp(denoiser, torch.ones(1, 1, dtype=torch.float64), levels, order=3, callback=seen.append)
    for step, after in zip(seen[2:], [*(s.x for s in seen[3:]), last], strict=True):
        wanted = step.x * step.sigma_next / step.sigma + closed_form(step.sigma, step.sigma_next)
        torch.testing.assert_close(after, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SAMPLERS)
def test_last_step_to_zero_is_finite_and_returns_what_the_denoiser_said(name: str) -> None:
    """A single point as data: every sampler ends on it, whatever the last levels are."""
    point = torch.tensor([0.3, -0.2], dtype=torch.float64)

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        return point.expand_as(x)

    seeds = Seeds(0, range(5))
    for levels in (karras(3), karras(12, 1e-9, 80.0), karras(1)):
        x = SAMPLERS[name](denoiser, seeds.normal((2,)), levels, randomness=seeds)
        torch.testing.assert_close(x, point.expand(5, 2), rtol=0, atol=1e-14)


def test_eighteen_steps_of_heun_are_35_calls() -> None:
    for name, calls in {"heun": 35, "euler": 18, "dpmpp_2m": 18, "unipc": 18, "ancestral": 18, "edm": 35}.items():
        counted = Counted(gaussian(DIM))
        seeds = Seeds(0, range(3))
        SAMPLERS[name](counted, seeds.normal((DIM,)), karras(18), randomness=seeds)
        assert (counted.calls, counted.samples) == (calls, 3 * calls), name


def test_spread_of_gaussian_data_after_35_calls() -> None:
    """Heun's rule by hand for ``dx/dsigma = f x``, ``f = sigma / (sigma^2 + 1/4)``; and how far off 35 calls are."""
    data = Gaussian(torch.zeros(1, dtype=torch.float64), torch.full((1, 1), 0.25, dtype=torch.float64))
    levels, noise = karras(18), torch.ones(1, 1, dtype=torch.float64)
    factor, (start, *_) = 1.0, levels.tolist()
    for s, t in pairwise(levels[:-1].tolist()):
        f, g, h = s / (s**2 + 0.25), t / (t**2 + 0.25), t - s
        factor *= 1 + h / 2 * (f + g * (1 + h * f))
    last = levels[-2].item()
    wanted = start * factor * 0.25 / (0.25 + last**2)
    assert heun(data, noise, levels).item() == pytest.approx(wanted, rel=1e-12)
    assert wanted / 0.5 == pytest.approx(1.055, abs=1e-3)
    assert unipc(data, noise, karras(35)).item() / 0.5 == pytest.approx(0.998, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- the SDE


class Impulses:
    """Noise that is one in draw k - 1 of row k and zero else: a linear sampler then shows its impulse responses."""

    def __init__(self) -> None:
        self.draw = 0

    def normal_like(self, x: torch.Tensor) -> torch.Tensor:
        self.draw += 1
        noise = torch.zeros_like(x)
        noise[self.draw] = 1
        return noise


def moments(sampler, data: Gaussian, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of what a sampler draws from Gaussian data with independent coordinates; nothing is random.

    The ideal denoiser of a Gaussian is linear in x, so a sample is a sum of responses to independent noises.
    """
    draws = Impulses()
    first = draws.normal_like(torch.zeros(steps + 2, DIM, dtype=torch.float64))
    x = sampler(data, first, karras(steps, 2e-4, 80.0), randomness=draws)
    return x[0], (x[1:] - x[0]).square().sum(0)


@pytest.mark.parametrize(
    ("name", "sampler", "order", "tolerance"),
    [
        ("ancestral", ancestral, 1, 0.04),
        ("ancestral, large", partial(ancestral, large=True), 1, 0.04),
        ("ddim, eta 0.5", partial(ddim, eta=0.5), 1, 0.04),
        ("stochastic EDM", partial(SAMPLERS["edm"], churn_min=0.01), 2, 0.01),
        ("2M SDE", SAMPLERS["dpmpp_2m_sde"], 2, 0.01),
        ("3M SDE", SAMPLERS["dpmpp_3m_sde"], 2, 0.01),
    ],
)
def test_stochastic_samplers_converge_to_the_data_moments(name: str, sampler, order: int, tolerance: float) -> None:
    deviations = torch.tensor([0.1, 0.3, 0.5, 1.0], dtype=torch.float64)
    data = Gaussian(torch.tensor([0.5, -0.3, 0.0, 0.2], dtype=torch.float64), deviations.square().diag())
    errors = []
    for steps in (150, 600):
        mean, variance = moments(sampler, data, steps)
        assert ((mean - data.mean).abs() / deviations).max() < tolerance
        errors.append(float((variance / deviations.square() - 1).abs().max()))
    assert errors[-1] < tolerance
    assert math.log(errors[0] / errors[1], 4) > order - 0.3, f"{name}: {errors}"


def test_ancestral_sampling_reproduces_mean_and_covariance() -> None:
    data = gaussian(3)
    x = generate(data, (3,), 2000, seed=4, sampler="ancestral", steps=200, batch=2000).double()
    spread = data.cov.diagonal().sqrt()
    assert ((x.mean(0) - data.mean) / spread).abs().max() < 4 / math.sqrt(2000) + 0.01
    correlation = (x.T.cov() - data.cov) / torch.outer(spread, spread)
    assert correlation.abs().max() < 4 * math.sqrt(2 / 2000) + 0.02


@pytest.mark.parametrize("other", [partial(ddim, eta=1.0), partial(dpmpp, order=1, eta=1.0)], ids=["ddim", "sde"])
def test_ddim_with_eta_1_and_the_sde_at_order_1_are_ancestral_sampling(other) -> None:
    levels = karras(12, 0.01, 40.0)
    first, second = Seeds(3, range(6)), Seeds(3, range(6))
    a = other(mixture(DIM), first.normal((DIM,)), levels, randomness=first)
    b = ancestral(mixture(DIM), second.normal((DIM,)), levels, randomness=second)
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_euler_is_ddim_without_fresh_noise() -> None:
    """DDIM in the variables of its paper (eq. 12, alpha-bar), sigma_t = 0."""
    levels, noise = karras(9, 0.01, 40.0), Seeds(3, range(6)).normal((DIM,))
    x = noise * levels[0] / (1 + levels[0] ** 2).sqrt()
    for s, t in pairwise(levels):
        a, b = 1 / (1 + s**2), 1 / (1 + t**2)
        x0 = mixture(DIM)(x / a.sqrt(), s.expand(6))
        x = b.sqrt() * x0 + (1 - b).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()
    torch.testing.assert_close(SAMPLERS["euler"](mixture(DIM), noise, levels), x, rtol=1e-9, atol=1e-10)


def test_ancestral_variances_are_those_of_ddpm() -> None:
    """Ho et al. 2020, eq. 7 and section 3.2, in their variables: a data point at zero, one step from unit x."""
    alpha = {s: 1 / (1 + s**2) for s in (2.0, 1.5)}  # alpha-bar
    beta = 1 - alpha[2.0] / alpha[1.5]
    posterior = (1 - alpha[1.5]) / (1 - alpha[2.0]) * beta
    for large, wanted in ((False, posterior), (True, beta)):
        draws = Impulses()
        noise = torch.zeros(2, 1, dtype=torch.float64)
        levels = torch.tensor([2.0, 1.5], dtype=torch.float64)
        x = ancestral(lambda x, s, c: torch.zeros_like(x), noise, levels, large=large, randomness=draws)
        assert (x[1] * math.sqrt(alpha[1.5])).item() ** 2 == pytest.approx(wanted, rel=1e-12)


def test_stochastic_samplers_ask_for_randomness() -> None:
    noise = torch.zeros(1, DIM, dtype=torch.float64)
    for name in ("ancestral", "edm", "dpmpp_2m_sde"):
        with pytest.raises(UsageError, match="randomness=Seeds"):
            SAMPLERS[name](gaussian(DIM), noise, karras(5))
    with pytest.raises(UsageError, match="eta 2"):
        ddim(gaussian(DIM), noise, karras(5), eta=2.0)


# ------------------------------------------------------------------------------------------------ seeds and batches


@pytest.mark.parametrize("name", ["heun", "edm", "dpmpp_3m_sde", "unipc"])
def test_a_sample_is_the_same_in_any_batch_and_rank(name: str) -> None:
    """To the last bit with a denoiser that treats rows alone."""

    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        return x / (1 + sigma[:, None] ** 2)

    draw = partial(generate, denoiser, (DIM,), seed=7, sampler=name, steps=6)
    whole = draw(9, batch=9)
    assert torch.equal(whole, draw(9, batch=2))
    assert torch.equal(whole[4:], draw(5, first=4, batch=3))
    assert not torch.equal(whole, generate(denoiser, (DIM,), 9, seed=8, sampler=name, steps=6))
    assert len({tuple(row) for row in whole.tolist()}) == 9


def test_seeds_give_each_sample_its_own_noise() -> None:
    one, many = Seeds(5, [11]), Seeds(5, range(10, 13))
    for _ in range(3):
        x = torch.zeros(3, 2, 4, dtype=torch.float64)
        assert torch.equal(one.normal((2, 4))[0], many.normal_like(x)[1])
    signs, uniform = many.signs_like(torch.zeros(3, 1000)), many.uniform_like(torch.zeros(3, 1000))
    assert set(signs.unique().tolist()) == {-1.0, 1.0} and signs.mean().abs() < 0.1
    assert uniform.abs().max() <= 0.5 and uniform.mean().abs() < 0.03
    noise = Seeds(5, range(200)).normal((64,))
    assert noise.mean().abs() < 0.03 and abs(noise.std() - 1) < 0.03


def test_a_sample_that_is_not_finite_is_named() -> None:
    def denoiser(x: torch.Tensor, sigma: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        assert cond is not None and cond.label is not None
        return x / torch.where(cond.label == 5, 0.0, 2.0)[:, None]

    done: list[int] = []
    with pytest.raises(LungwaveError, match="sample 105 is not finite"):
        generate(denoiser, (DIM,), 9, seed=0, first=100, batch=2, progress=done.append,
                 cond=Condition(label=torch.arange(9)))  # fmt: skip
    assert done == [2, 2]
    with pytest.raises(UsageError, match="unknown sampler 'huen'; choose one of heun"):
        generate(denoiser, (DIM,), 1, seed=0, sampler="huen")
    with pytest.raises(UsageError, match="unknown schedule"):
        generate(denoiser, (DIM,), 1, seed=0, schedule="linear")
    with pytest.raises(UsageError, match="0 samples"):
        generate(denoiser, (DIM,), 0, seed=0)


# -------------------------------------------------------------------------------------------------------- guidance


def test_guidance_of_scale_1_is_the_denoiser() -> None:
    strong, weak = mixture(DIM), gaussian(DIM)
    assert guided(strong, weak, 1.0) is strong
    plain = generate(strong, (DIM,), 4, seed=1)
    assert torch.equal(plain, generate(strong, (DIM,), 4, seed=1, autoguide=Guidance(weak, 1.0)))
    assert not torch.equal(plain, generate(strong, (DIM,), 4, seed=1, autoguide=Guidance(weak, 2.0)))


def test_guidance_extrapolates_inside_its_interval_only() -> None:
    strong, weak = mixture(DIM), Counted(gaussian(DIM))
    both = guided(strong, weak, 1.7, (0.3, 2.0))
    sigma = torch.tensor([0.3, 0.31, 2.0, 2.01], dtype=torch.float64)
    x = Seeds(0, range(4)).normal((DIM,))
    d, w = strong(x, sigma), weak(x, sigma)
    wanted = torch.where(torch.tensor([False, True, True, False])[:, None], w + 1.7 * (d - w), d)
    torch.testing.assert_close(both(x, sigma, None), wanted, rtol=1e-14, atol=1e-14)
    before = weak.calls
    assert torch.equal(both(x, torch.full_like(sigma, 5.0), None), strong(x, torch.full_like(sigma, 5.0)))
    assert weak.calls == before, "outside the interval the weaker denoiser costs nothing"
    with pytest.raises(UsageError, match="low < high"):
        guided(strong, weak, 2.0, (2.0, 1.0))


def test_autoguidance_of_gaussians_has_a_known_effect() -> None:
    """Strong N(0, 1) and weak N(0, 4): ``D = (w + scale (d - w)) x`` with known d and w; the flow follows by hand."""
    eye = torch.eye(1, dtype=torch.float64)
    strong, weak = (Gaussian(torch.zeros(1, dtype=torch.float64), var * eye) for var in (1.0, 4.0))
    noise = torch.ones(1, 1, dtype=torch.float64)
    levels = karras(400, 0.01, 80.0)[:-1]
    x = unipc(guided(strong, weak, 2.0), noise, levels)
    # dln x / dsigma = (2 sigma / (1 + sigma^2) - sigma / (4 + sigma^2)), as 1 - d = sigma^2 / (1 + sigma^2)
    log = [math.log1p(s**2) - 0.5 * math.log(4 + s**2) for s in (80.0, 0.01)]
    assert x.item() == pytest.approx(80 * math.exp(log[1] - log[0]), rel=1e-6)


def test_classifier_free_guidance_drops_the_condition() -> None:
    data, x = mixture(DIM), Seeds(0, range(3)).normal((DIM,))
    sigma = torch.full((3,), 0.8, dtype=torch.float64)
    cond = Condition(label=torch.tensor([0, 1, 2]))
    wanted = 3 * data(x, sigma, cond) - 2 * data(x, sigma)
    torch.testing.assert_close(guided(data, None, 3.0)(x, sigma, cond), wanted, rtol=1e-13, atol=1e-13)


# --------------------------------------------------------------------------------------------------- a real network


@pytest.fixture(scope="module")
def network() -> Preconditioned:
    """A tiny untrained U-Net for 8 x 256 maps, all layers filled, with dropout."""
    config = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, strides=((1, 2),), heads=2, dropout=0.5)
    net = UNet(config)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=source))
    return Preconditioned(net)


def test_a_strip_of_8_by_256_is_sampled_through_a_real_network(network: Preconditioned) -> None:
    draw = partial(generate, network, (1, 8, 256), seed=2, steps=2)
    whole = draw(3, batch=3)
    assert whole.shape == (3, 1, 8, 256) and whole.dtype == torch.float32
    torch.testing.assert_close(whole, draw(3, batch=1), rtol=1e-3, atol=1e-3)  # a network's bits depend on its batch
    assert torch.equal(whole, draw(3, batch=3)), "dropout is off while sampling"
    assert network.training and network.net.training, "and in its former mode afterwards"
    assert all(p.grad is None for p in network.parameters())


def test_euler_through_an_openai_file_is_its_ddim(shared_data) -> None:
    """Ten steps of improved-diffusion's own DDIM, clipping on: the same maps from the same noise."""
    folder = shared_data("diffusion-reference")
    flags = json.loads((folder / "model000000.json").read_text())["flags"]
    network, _ = openai_denoiser(folder / "model000000.pt", flags)
    levels = respaced(network.noising.respaced("ddim10").sigmas)
    with np.load(folder / "ddim_golden.npz") as golden:
        noise, wanted = (torch.from_numpy(golden[name]) for name in ("noise", "sample"))

    def clipped(x: torch.Tensor, sigma: torch.Tensor, cond: Condition | None = None) -> torch.Tensor:
        return network(x, sigma, cond).clamp(-1, 1)

    start = noise.double() * (1 + levels[0] ** 2).sqrt() / levels[0]  # the original starts from x_vp = noise
    with torch.no_grad():
        found = SAMPLERS["euler"](clipped, start, levels)
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=1e-3)


def test_samplers_are_differentiable(network: Preconditioned) -> None:
    noise = torch.zeros(1, 1, 8, 256, dtype=torch.float64, requires_grad=True)
    heun(network.eval(), noise, karras(2)).sum().backward()
    assert noise.grad is not None and noise.grad.abs().sum() > 0


def test_the_state_keeps_its_type_and_the_callback_sees_every_step() -> None:
    for dtype in (torch.float32, torch.float64):
        seen: list[Step] = []
        levels = karras(6)
        noise = Seeds(0, range(2)).normal((DIM,)).to(dtype)
        data = gaussian(DIM)
        data = Gaussian(data.mean.to(dtype), data.cov.to(dtype))
        for sampler in (heun, ddim, dpmpp, unipc):
            seen.clear()
            assert sampler(data, noise, levels, callback=seen.append).dtype == dtype
            assert [step.sigma for step in seen] == levels[:-1].tolist()
            assert [step.index for step in seen] == list(range(6)) and seen[-1].sigma_next == 0
