"""Laws of the discrete Gaussian diffusion: closed forms for Gaussian data, and outputs of the original program."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from lungwave.models.gaussian import Gaussian, eight_bit_log_likelihood, normal
from lungwave.models.unet import UNet, UNetConfig
from lungwave.types import UsageError

SPREAD = 0.3  # standard deviation of the Gaussian images whose best denoiser is known


def ideal(process: Gaussian):
    """The exact reverse step of independent N(0, SPREAD^2) pixels: E[eps | x_t] and, if learned, Var[x_{t-1} | x_t]."""
    scale = process.steps / 1000 if process.rescale_timesteps else 1
    first = process.betas * (1 - process.alpha_bar_before) / (1 - process.alpha_bar)
    exact = np.log(
        first + process.betas**2 * process.alpha_bar_before / (1 - process.alpha_bar) ** 2 * unknown(process)
    )
    low, high = process.posterior_tables[2], np.log(process.betas)
    v = torch.tensor(2 * (exact - low) / (high - low) - 1)

    def model(x, time, cond):
        t = torch.tensor(np.searchsorted(process.kept, (time * scale).round().numpy()))
        a = torch.tensor(process.alpha_bar)[t].to(x.dtype)[:, None, None, None]
        eps = (1 - a).sqrt() / (a * SPREAD**2 + 1 - a) * x
        return torch.cat([eps, v[t].to(x)[:, None, None, None].expand_as(x)], 1) if is_learned else eps

    is_learned = process.variance == "learned_range"
    return model


def unknown(process: Gaussian) -> np.ndarray:
    """Var[x0 | x_t] of such pixels at each step."""
    abar = process.alpha_bar
    return SPREAD**2 * (1 - abar) / (abar * SPREAD**2 + 1 - abar)


def images(count: int = 4, *, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    """8-bit images of independent Gaussian pixels."""
    draws = SPREAD * torch.randn(count, 1, 64, 64, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return ((draws.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# ---- outputs of the original program ----


@pytest.fixture(scope="module")
def reference(shared_data):
    return shared_data("diffusion-reference")


@pytest.fixture(scope="module")
def net(reference) -> UNet:
    config = UNetConfig(
        in_channels=3, out_channels=3, channels=32, channel_mult=(1, 2, 2, 2), blocks=1, attention=(1,), heads=4
    )
    net = UNet(config)
    net.load_state_dict(torch.load(reference / "model000000.pt", weights_only=True), strict=True)
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def golden(reference):
    with np.load(reference / "model000000_golden.npz") as arrays:
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


ORIGINAL = Gaussian(steps=1000, loss="mse", rescale_timesteps=False)


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_network_and_reverse_step_match_the_original(net, golden, case) -> None:
    x, t = golden[f"{case}_x"], golden[f"{case}_t"]
    assert torch.equal(ORIGINAL.model_time(t), golden[f"{case}_t_fed"])
    torch.testing.assert_close(net(x, ORIGINAL.model_time(t)), golden[f"{case}_out"], rtol=0, atol=1e-4)
    p = ORIGINAL.p_mean_variance(net, x, t)
    for name, found in {"mean": p.mean, "log_variance": p.log_variance, "pred_xstart": p.x0}.items():
        torch.testing.assert_close(found, golden[f"{case}_pmv_{name}"], rtol=0, atol=1e-4)
    torch.testing.assert_close(p.variance, golden[f"{case}_pmv_variance"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_noising_and_losses_match_the_original(net, golden, case) -> None:
    x, t, noise = (golden[f"{case}_{name}"] for name in ("x", "t", "noise"))
    torch.testing.assert_close(ORIGINAL.q_sample(x, t, noise), golden[f"{case}_q_sample"], rtol=1e-6, atol=1e-6)
    losses = ORIGINAL.training_losses(net, x.clamp(-1, 1), t, noise)
    assert losses.keys() == {"loss", "mse"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, golden[f"{case}_loss_{name}"], rtol=0, atol=1e-4)


def test_ten_ddim_steps_match_the_original(net, reference) -> None:
    with np.load(reference / "ddim_golden.npz") as arrays:
        noise, sample = torch.from_numpy(arrays["noise"]), torch.from_numpy(arrays["sample"])
        process = ORIGINAL.respaced(str(arrays["respacing"]))
    torch.testing.assert_close(process.ddim_loop(net, noise), sample, rtol=0, atol=1e-3)


# ---- tables, time and noise level ----


def test_settings_survive_json() -> None:
    process = Gaussian(steps=400, schedule="cosine", respacing=[4, 8], predicts="x0", variance="learned_range")
    assert Gaussian(**json.loads(json.dumps(dataclasses.asdict(process)))) == process
    assert process.length == 12


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_single_steps_compose_to_the_whole(schedule) -> None:
    process = Gaussian(steps=300, schedule=schedule, respacing="40")
    signal, variance = 1.0, 0.0
    for t, beta in enumerate(process.betas):
        signal, variance = signal * math.sqrt(1 - beta), variance * (1 - beta) + beta
        assert signal**2 == pytest.approx(process.alpha_bar[t], rel=1e-9)
        assert variance == pytest.approx(1 - process.alpha_bar[t], rel=1e-9)


@pytest.mark.parametrize("schedule, respacing", [("linear", ""), ("cosine", ""), ("cosine", "50")])
def test_noise_level_and_time_are_inverse(schedule, respacing) -> None:
    process = Gaussian(steps=500, schedule=schedule, respacing=respacing)
    t = torch.linspace(0, process.length - 1, 777, dtype=torch.float64)
    sigma = process.sigma(t)
    assert (sigma.diff() > 0).all()
    torch.testing.assert_close(process.time(sigma), t, rtol=0, atol=1e-8)
    whole = torch.arange(process.length)
    torch.testing.assert_close(process.sigma(whole.double()), torch.tensor(process.sigmas), rtol=1e-12, atol=0)
    torch.testing.assert_close(process.time(process.sigma(whole.float())), whole.float(), rtol=0, atol=2e-3)


def test_between_steps_the_logarithm_of_the_noise_level_is_a_line() -> None:
    process = Gaussian()
    sigma = process.sigma(torch.tensor([20.0, 20.25, 21.0], dtype=torch.float64)).log()
    torch.testing.assert_close(sigma[1], 0.75 * sigma[0] + 0.25 * sigma[2])


def test_noise_levels_beyond_the_schedule_meet_its_ends() -> None:
    process = Gaussian(schedule="cosine")
    sigma = torch.tensor([0.0, 1e-5, 1e9, torch.inf])
    assert process.time(sigma).tolist() == [0, 0, 999, 999]
    assert process.sigma(torch.tensor([-3.0, 5000.0])).tolist() == pytest.approx(
        [process.sigmas[0], process.sigmas[-1]]
    )
    inside = torch.tensor([0.5, 2.0, 1e9], requires_grad=True)
    process.time(inside).sum().backward()
    assert inside.grad is not None
    assert (inside.grad[:2] > 0).all()
    assert inside.grad[2] == 0


def test_the_network_is_told_original_times() -> None:
    process = Gaussian(steps=4000, respacing="100")
    t = torch.tensor([0, 1, 50, 99])
    torch.testing.assert_close(process.model_time(t), torch.tensor(process.kept[t] / 4).float())
    plain = dataclasses.replace(process, rescale_timesteps=False)
    assert plain.model_time(t).tolist() == process.kept[t].tolist()
    between = plain.model_time(torch.tensor([50.5], dtype=torch.float64))
    assert between.item() == pytest.approx((process.kept[50] + process.kept[51]) / 2)


# ---- the reverse step ----


def test_posterior_is_bayes_rule() -> None:
    process = Gaussian(steps=200)
    t = torch.tensor([1, 7, 100, 199])
    x0, x_t = torch.randn(2, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    beta, before = (torch.tensor(a)[t][:, None, None, None] for a in (process.betas, process.alpha_bar_before))
    precision = 1 / (1 - before) + (1 - beta) / beta
    mean = (before.sqrt() * x0 / (1 - before) + (1 - beta).sqrt() * x_t / beta) / precision
    found, log_variance = process.q_posterior(x0, x_t, t)
    torch.testing.assert_close(found, mean)
    torch.testing.assert_close(log_variance.exp(), (1 / precision).expand_as(x0))


def test_at_the_first_step_the_posterior_is_the_clean_image() -> None:
    x0, x_t = torch.randn(2, 1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Gaussian().q_posterior(x0, x_t, torch.zeros(1, dtype=torch.int64))[0], x0)


@pytest.mark.parametrize("v, fixed", [(-1.0, "fixed_small"), (1.0, "fixed_large")])
def test_learned_variance_reaches_the_fixed_ones(v, fixed) -> None:
    t = torch.tensor([1, 50, 99])  # at t = 0 the large variance is not beta
    x = torch.ones(3, 1, 2, 2)
    learned = Gaussian(steps=100, variance="learned_range")
    p = learned.p_mean_variance(lambda x, time, cond: torch.cat([x, torch.full_like(x, v)], 1), x, t)
    expected = dataclasses.replace(learned, variance=fixed).p_mean_variance(lambda x, time, cond: x, x, t)
    torch.testing.assert_close(p.log_variance, expected.log_variance)
    torch.testing.assert_close(p.mean, expected.mean)


@pytest.mark.parametrize("clip", [True, False])
def test_both_predictions_describe_the_same_step(clip) -> None:
    process = Gaussian(steps=100)
    model, t = ideal(process), torch.tensor([0, 30, 99])
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    by_x0 = dataclasses.replace(process, predicts="x0")
    clean = process.x0_from_eps(x, t, model(x, process.model_time(t), None))
    p = process.p_mean_variance(model, x, t, clip_denoised=clip)
    q = by_x0.p_mean_variance(lambda x, time, cond: clean, x, t, clip_denoised=clip)
    torch.testing.assert_close(p.mean, q.mean)
    torch.testing.assert_close(process.x0_from_eps(x, t, process.eps_from_x0(x, t, clean)), clean)


def test_the_clean_image_is_edited_then_clamped() -> None:
    seen = []

    def model(x, time, cond):
        seen.append(cond)
        return x

    process = Gaussian(steps=100, predicts="x0")
    x, t = torch.tensor([0.2, 0.7]).reshape(2, 1, 1, 1), torch.tensor([3, 4])
    p = process.p_mean_variance(model, x, t, cond="view", denoised_fn=lambda image: 2 * image)
    torch.testing.assert_close(p.x0.flatten(), torch.tensor([0.4, 1.0]))
    assert seen == ["view"]


def test_a_network_of_other_channels_is_named() -> None:
    x, t = torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(UsageError, match="'learned_range' needs 6 channels"):
        Gaussian(variance="learned_range").p_mean_variance(lambda x, time, cond: x, x, t)
    with pytest.raises(UsageError, match="'fixed_large' needs 3 channels"):
        Gaussian().p_mean_variance(lambda x, time, cond: torch.cat([x, x], 1), x, t)


# ---- losses and the bound ----


def learned(x, time, cond):
    """A network with two outputs, each with its own weight."""
    return torch.cat([cond[0] * x, torch.tanh(cond[1] * x)], dim=1)


def losses(process: Gaussian, weights) -> dict[str, torch.Tensor]:
    x0, noise = images(3)[..., :8, :8], torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return process.training_losses(learned, x0, torch.tensor([0, 9, 60]), noise, cond=weights)


def test_the_bound_teaches_the_variance_only_unless_it_is_the_loss() -> None:
    weights = torch.tensor([0.9, 0.3], requires_grad=True)
    hybrid = Gaussian(steps=100, variance="learned_range", loss="mse")
    of_mean, of_variance = torch.autograd.grad(losses(hybrid, weights)["vb"].sum(), weights)[0]
    assert of_mean == 0
    assert of_variance != 0
    whole = dataclasses.replace(hybrid, loss="kl")
    of_mean, of_variance = torch.autograd.grad(losses(whole, weights)["loss"].sum(), weights)[0]
    assert of_mean != 0
    assert torch.isfinite(of_mean)
    assert torch.isfinite(of_variance)


def test_rescaled_losses_scale_the_bound_by_the_steps() -> None:
    weights = torch.tensor([0.9, 0.3])
    of = {
        loss: losses(Gaussian(steps=400, respacing="80", variance="learned_range", loss=loss), weights)
        for loss in ("mse", "rescaled_mse", "kl", "rescaled_kl")
    }
    torch.testing.assert_close(of["rescaled_mse"]["vb"], of["mse"]["vb"] * 80 / 1000)
    torch.testing.assert_close(of["rescaled_kl"]["loss"], of["kl"]["loss"] * 80)
    torch.testing.assert_close(of["kl"]["loss"], of["mse"]["vb"])
    for loss in ("mse", "rescaled_mse"):
        torch.testing.assert_close(of[loss]["loss"], of[loss]["mse"] + of[loss]["vb"])
    torch.testing.assert_close(of["mse"]["mse"], of["rescaled_mse"]["mse"])


def test_a_perfect_prediction_has_no_error() -> None:
    x0, t = images(3), torch.tensor([0, 10, 99])
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    for predicts, answer in {"eps": noise, "x0": x0}.items():
        process = Gaussian(steps=100, predicts=predicts)
        found = process.training_losses(lambda x, time, cond, answer=answer: answer, x0, t, noise)
        assert found["loss"].tolist() == [0, 0, 0]


def test_the_decoder_is_a_distribution_over_256_values() -> None:
    values = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).reshape(1, 1, 256)
    for mean, std in ((0.0, 0.3), (0.99, 0.02), (-1.4, 0.5), (0.1003, 0.004)):
        log_p = eight_bit_log_likelihood(values, torch.full_like(values, mean), torch.full_like(values, math.log(std)))
        assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_decoder_stays_finite_far_from_the_mean() -> None:
    x0 = images(1).requires_grad_()
    log_p = eight_bit_log_likelihood(x0, torch.full_like(x0, 5.0), torch.full_like(x0, -6.0))
    log_p.sum().backward()
    assert x0.grad is not None
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(x0.grad).all()


ENTROPY = math.log2(SPREAD * math.sqrt(2 * math.pi * math.e) / (2 / 255))  # of one pixel [bits]


def test_the_bound_of_gaussian_images_is_its_closed_form() -> None:
    """With the posterior's variance a term is coefficient^2 Var[x0 | x_t] / (2 variance); more steps, less excess."""
    x0, excess = images(), []
    for respacing in ("25", "100", "400"):
        process = Gaussian(respacing=respacing, variance="fixed_small")
        terms = process.bits_per_dim(ideal(process), x0, torch.Generator().manual_seed(2), clip_denoised=False)
        of_x0, _, log_variance = process.posterior_tables
        expected = of_x0**2 * unknown(process) / (2 * np.exp(log_variance)) / math.log(2)
        found = terms["vb"].double().mean(0).numpy()
        np.testing.assert_allclose(found[1:], expected[1:], rtol=0.08)  # 16384 pixels: standard error 1.1 %
        np.testing.assert_allclose(found[1:].sum(), expected[1:].sum(), rtol=0.01)
        abar = process.alpha_bar
        np.testing.assert_allclose(terms["xstart_mse"].mean(0), unknown(process), rtol=0.08)
        np.testing.assert_allclose(terms["mse"].mean(0), unknown(process) * abar / (1 - abar), rtol=0.08)
        torch.testing.assert_close(terms["total_bpd"], terms["vb"].sum(1) + terms["prior_bpd"])
        excess.append(float(terms["total_bpd"].mean()) - ENTROPY)
    assert excess[0] > excess[1] > excess[2] > 0


@pytest.mark.parametrize("respacing", ["10", "60"])
def test_with_the_exact_variance_the_bound_is_the_entropy(respacing) -> None:
    """The reverse of a Gaussian chain is Gaussian, so the bound is tight however few the steps."""
    process = Gaussian(respacing=respacing, variance="learned_range")
    terms = process.bits_per_dim(ideal(process), images(), torch.Generator().manual_seed(2), clip_denoised=False)
    assert terms["total_bpd"].mean().item() == pytest.approx(ENTROPY, abs=0.03)


def test_the_prior_term_is_the_divergence_from_pure_noise() -> None:
    process, x0 = Gaussian(steps=100, respacing="5,0"), images(2)
    variance, mean2 = 1 - process.alpha_bar[-1], process.alpha_bar[-1] * x0.square().flatten(1).mean(1)
    expected = 0.5 * (variance + mean2 - 1 - math.log(variance)) / math.log(2)
    torch.testing.assert_close(process.prior_bpd(x0), expected, rtol=1e-4, atol=0)
    assert Gaussian().prior_bpd(x0).max() < 1e-4


# ---- samplers ----


def test_ancestral_samples_with_the_exact_variance_have_the_spread_of_the_data() -> None:
    process = Gaussian(respacing="10", variance="learned_range")
    noise = torch.randn(4, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    states = list(
        process.p_sample_progressive(ideal(process), noise, torch.Generator().manual_seed(4), clip_denoised=False)
    )
    variance = process.alpha_bar * SPREAD**2 + 1 - process.alpha_bar
    found = [float(state.x.std()) for state in states[:-1]]
    np.testing.assert_allclose(found, np.sqrt(variance[-2::-1]), rtol=0.03)
    left = math.sqrt(SPREAD**2 - unknown(process)[0])  # the last step shows the mean, without the last noise
    assert float(states[-1].x.std()) == pytest.approx(left, rel=0.03)


def test_ddim_is_linear_on_gaussian_images() -> None:
    """From level a to level b a step multiplies by (sqrt(ab) s^2 + sqrt((1 - a)(1 - b))) / (a s^2 + 1 - a)."""
    process = Gaussian(respacing="30")
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def factor(a, b):
        return (np.sqrt(a * b) * SPREAD**2 + np.sqrt((1 - a) * (1 - b))) / (a * SPREAD**2 + 1 - a)

    abar = process.alpha_bar
    decoded = process.ddim_loop(ideal(process), noise, clip_denoised=False)
    torch.testing.assert_close(decoded, np.prod(factor(abar, process.alpha_bar_before)) * noise, rtol=1e-9, atol=0)
    enter = np.sqrt(abar[0]) + (1 - abar[0]) / (abar[0] * SPREAD**2 + 1 - abar[0])  # with the noise seen at t = 0
    encoded = process.ddim_encode(ideal(process), noise, clip_denoised=False)
    torch.testing.assert_close(encoded, enter * np.prod(factor(abar[:-1], abar[1:])) * noise, rtol=1e-9, atol=0)


def test_ddim_with_eta_one_is_the_ancestral_step() -> None:
    process = Gaussian(steps=200, variance="fixed_small")
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.tensor([0, 1, 150])
    one = process.p_sample(ideal(process), x, t, torch.Generator().manual_seed(1))
    two = process.ddim_sample(ideal(process), x, t, 1.0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(one.x, two.x)
    assert torch.equal(one.x0, two.x0)


def test_ddim_returns_from_its_own_code() -> None:
    """Encoding and decoding differ by an error of first order in the step; the code is the flow's closed form."""
    x0, errors = images(1, dtype=torch.float64), []
    for respacing in ("50", "100", "200"):
        process = Gaussian(respacing=respacing, rescale_timesteps=False)
        code = process.ddim_encode(ideal(process), x0, clip_denoised=False)
        back = process.ddim_loop(ideal(process), code, clip_denoised=False)
        last = process.alpha_bar[-1]
        flow = math.sqrt(last + (1 - last) / SPREAD**2) * x0  # the probability flow keeps each pixel's quantile
        errors.append([float((a - b).norm() / b.norm()) for a, b in ((back, x0), (code, flow))])
    ratios = np.divide(errors[:-1], errors[1:])
    assert (np.array(errors[-1]) < 0.05).all()
    assert ((ratios > 1.7) & (ratios < 2.3)).all()


@pytest.mark.parametrize("eta", [None, 0.5])
def test_a_sample_is_the_same_in_any_batch(eta) -> None:
    process = Gaussian(respacing="12", variance="learned_range")
    noise = normal(torch.empty(5, 1, 4, 8), generators(*range(5)))

    def model(x, time, cond):
        return torch.cat([torch.sin(3 * x), torch.cos(x + time[:, None, None, None])], dim=1)

    def run(*index: int) -> torch.Tensor:
        seeds = generators(*(100 + k for k in index))
        if eta is None:
            return process.p_sample_loop(model, noise[list(index)], seeds)
        return process.ddim_loop(model, noise[list(index)], eta, seeds)

    whole = run(0, 1, 2, 3, 4)
    assert torch.equal(whole, torch.cat([run(0, 1), run(2, 3, 4)]))
    assert torch.equal(whole[[3, 1]], run(3, 1))
    assert not torch.equal(whole[0], whole[1])


def test_bits_per_dimension_are_the_same_in_any_batch() -> None:
    process, x0 = Gaussian(respacing="6"), images(3)
    whole = process.bits_per_dim(ideal(process), x0, generators(1, 2, 3))
    part = process.bits_per_dim(ideal(process), x0[1:], generators(2, 3))
    assert all(torch.equal(whole[name][1:], part[name]) for name in whole)


def test_noise_comes_from_where_it_is_asked() -> None:
    like = torch.empty(2, 1, 4, 4)
    state = torch.get_rng_state()
    one, each = normal(like, torch.Generator().manual_seed(0)), normal(like, generators(0, 0))
    assert torch.equal(state, torch.get_rng_state()), "the global generator is left alone"
    assert torch.equal(each[0], each[1])
    assert torch.equal(one[:1], normal(like[:1], torch.Generator().manual_seed(0)))
    assert torch.equal(normal(like, torch.zeros_like), torch.zeros(2, 1, 4, 4))
    with pytest.raises(UsageError, match="3 generators for 2 samples"):
        normal(like, generators(1, 2, 3))
    with pytest.raises(UsageError, match=r"eta 0\.5 draws noise"):
        Gaussian().ddim_sample(lambda x, time, cond: x, like, torch.zeros(2, dtype=torch.int64), eta=0.5)
    with pytest.raises(UsageError, match="eta is 2"):
        Gaussian().ddim_loop(lambda x, time, cond: x, like, eta=2.0)


def test_every_step_is_shown_and_gradients_are_left_as_they_were() -> None:
    process = Gaussian(respacing="7")
    noise = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    steps = []
    for step in process.p_sample_progressive(ideal(process), noise, torch.Generator().manual_seed(1)):
        assert torch.is_grad_enabled()
        steps.append(step)
    assert len(steps) == 7
    last = process.p_sample_loop(ideal(process), noise, torch.Generator().manual_seed(1))
    assert torch.equal(steps[-1].x, last)
    assert torch.equal(steps[-1].x, steps[-1].x0), "the last step adds no noise"
    assert not last.requires_grad
    guided = process.ddim_sample(ideal(process), noise, torch.full((2,), 5)).x
    assert torch.autograd.grad(guided.sum(), noise)[0].abs().max() > 0, "a single step can be differentiated"
