"""Samplers against exact posteriors, and forward models against their own derivatives."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import twins
from lungwave.models.precond import Denoiser
from lungwave.posterior.likelihood import Counted, Differentiable, Forward, GaussianNoise, Linear, check_forward
from lungwave.posterior.samplers import SAMPLERS, Guided, Inner, Problem, Unknown, daps_rto, mmps, pnpdm_rto, tds
from lungwave.posterior.samplers.chains import effective_size, split_rhat
from lungwave.posterior.samplers.inner import ScalarGuess, SpectralGuess, guess_of
from lungwave.posterior.samplers.weigh import weigh
from lungwave.sample import Seeds
from lungwave.types import LungwaveError, UsageError

SIZE = (1, 32)
TRUTHS, DRAWS = 16, 64


def problem(y: torch.Tensor, forward: Forward, denoiser: Denoiser, noise: float = 0.1) -> Problem:
    return Problem(y, forward, denoiser, GaussianNoise(noise), (1, *SIZE))


def four(seed: int) -> torch.Tensor:
    """Recordings of four lines."""
    return twins.linear(4, 2, seed).y


@pytest.mark.parametrize(
    ("sampler", "how", "variance"),
    [
        (daps_rto, {"levels": 3, "inner": Inner(1, 12)}, (0.9, 1.1)),
        (daps_rto, {"levels": 12}, (0.9, 1.1)),
        (pnpdm_rto, {"iterations": 60, "burn_in": 45, "rho_max": 3.0}, (0.88, 1.12)),
        (mmps, {"levels": 100, "gradients": 8}, (0.85, 1.1)),  # its ancestral steps lose a tenth of the variance
    ],
)
def test_linear_twin(sampler: Callable[..., Guided], how: dict[str, Any], variance: tuple[float, float]) -> None:
    """The closed form: mean, variance, coverage and chi2."""
    twin = twins.linear(TRUTHS, DRAWS)
    found = twin.run(sampler, DRAWS, Seeds(0, range(DRAWS * TRUTHS)), **how)
    scores, exact = twin.scores(twin.samples(found)), twin.scores(twin.reference)
    assert scores["mean_error"] < 0.1 + 0.8 * math.sqrt(2 / DRAWS)  # two sets of so many draws differ by as much
    assert variance[0] < scores["variance"] < variance[1]
    assert scores["inside_90"] == pytest.approx(exact["inside_90"], abs=0.05)
    assert scores["chi2"] == pytest.approx(exact["chi2"], abs=0.12)


def test_linear_twin_by_particles() -> None:
    """Particles share ancestors, so more of them are needed for as much."""
    twin, particles = twins.linear(6, 256), 256
    found = twin.run(tds, particles, Seeds(0, range(6 * particles)), particles=particles, levels=60)
    scores, exact = twin.scores(twin.samples(found)), twin.scores(twin.reference)
    assert scores["mean_error"] < 0.2 and 0.85 < scores["variance"] < 1.1
    assert scores["inside_90"] == pytest.approx(exact["inside_90"], abs=0.08)  # the truths are six
    assert scores["chi2"] == pytest.approx(exact["chi2"], abs=0.12)


def test_nonlinear_twin() -> None:
    """A long Hamiltonian run: the distance is within half of what chance leaves between two sets of draws."""
    twin, other = twins.nonlinear(6, DRAWS), twins.nonlinear(6, 2 * DRAWS)
    found = twin.run(daps_rto, DRAWS, Seeds(0, range(6 * DRAWS)), levels=25, inner=Inner(2, 6))
    scores = twin.scores(twin.samples(found))
    chance = twins.sliced(other.reference[:, :DRAWS], other.reference[:, DRAWS:])
    assert scores["distance"] < 1.5 * chance
    assert 0.85 < scores["variance"] < 1.15 and 0.9 < scores["chi2"] < 1.1


def test_mixture_twin() -> None:
    """Weights of two kinds: particles with weights find them; those without go astray by known amounts."""
    twin, share = twins.mixture(40, DRAWS)
    seeds = range(40 * DRAWS)

    def error(sampler: Callable[..., Guided], **how: Any) -> float:
        samples = twin.samples(twin.run(sampler, DRAWS, Seeds(0, seeds), **how))
        return float((twins.first_share(samples) - share[:, 0]).abs().mean())

    assert error(tds, particles=DRAWS, levels=40) < 0.05
    assert error(mmps, levels=60) < 0.12
    assert error(daps_rto, levels=30) < 0.2


def test_candidates_of_the_posterior_itself_are_left_as_they_are() -> None:
    """They explain the recording already: counting it twice would make them too narrow."""
    twin = twins.linear(TRUTHS, DRAWS)
    scores = twin.scores(twins.weighed(twin, twins.linear(TRUTHS, 25 * DRAWS).reference, 25))
    exact = twin.scores(twin.reference)
    assert scores["mean_error"] < 0.1 + 0.8 * math.sqrt(2 / DRAWS)
    assert 0.95 < scores["variance"] < 1.1
    assert scores["inside_90"] == pytest.approx(exact["inside_90"], abs=0.02)


@pytest.mark.parametrize("looks", [[0, 1, 2, 3], [0, 2, 4, 6], [0, 1, 2, 3, 4, 5]])
def test_candidates_that_missed_half_of_the_recording_come_near_the_posterior(looks: list[int]) -> None:
    """Less than half the error and the misfit, never too sure, more candidates nearer still."""
    twin = twins.linear(TRUTHS, DRAWS)
    before = twin.scores(twins.half_heard(twin, looks, DRAWS))
    few, many = (twin.scores(twins.weighed(twin, twins.half_heard(twin, looks, n * DRAWS), n)) for n in (25, 100))
    assert few["mean_error"] < 0.5 * before["mean_error"]
    assert few["chi2"] < 0.5 * before["chi2"] and many["chi2"] < few["chi2"]
    assert many["mean_error"] < few["mean_error"] < before["mean_error"]
    assert few["variance"] > 1 and many["variance"] > 1
    assert few["inside_90"] == pytest.approx(0.9, abs=0.03)


def test_weights_keep_two_candidates_and_believe_nothing_that_is_not_finite() -> None:
    """Whatever the scale of the misfits; the likelihood itself where that leaves enough."""
    misfit = torch.tensor([[4000.0, 1000.0, 9000.0, 2500.0, 1800.0]], dtype=torch.float64)
    rows = weigh(torch.cat([misfit, 1e3 * misfit, 1e9 * misfit]), 100)
    assert rows.sum(1).tolist() == pytest.approx([1, 1, 1]) and rows.argmax(1).tolist() == [1, 1, 1]
    assert (1 / rows.square().sum(1)).tolist() == pytest.approx([2, 2, 2], rel=1e-3)
    near = torch.tensor([[301.0, 300.0, 302.0]], dtype=torch.float64)
    assert torch.allclose(weigh(near, 100), torch.softmax(-0.5 * near, 1))
    for odd in (math.nan, math.inf):
        weights = weigh(torch.cat([misfit, misfit.new_full((1, 1), odd)], 1), 100)
        assert float(weights[0, -1]) == 0 and torch.allclose(weights[:, :-1], rows[:1])
    assert weigh(torch.full((1, 4), math.nan), 9).tolist() == [[0.25] * 4]
    assert weigh(torch.tensor([[7.0]]), 9).tolist() == [[1]]


@pytest.mark.parametrize("name", ["dps", "diffpir", "red_diff", "daps", "lbfgs_tv"])
def test_baselines_fit_the_data_and_do_not_know_their_spread(name: str) -> None:
    """They come nearer to the truth than the prior's mean where the data see it; none is a posterior."""
    settings: dict[str, dict[str, Any]] = {
        "dps": {"levels": 200}, "red_diff": {"levels": 300}, "daps": {"levels": 40, "langevin": 30, "rate": 1e-3},
    }  # fmt: skip
    twin, draws = twins.linear(6, 16), 2 if name == "lbfgs_tv" else 16
    found = twin.run(SAMPLERS[name], draws, Seeds(0, range(6 * draws)), **settings.get(name, {}))
    samples, seen = twin.samples(found), slice(2, 14)
    error = (samples.mean(1) - twin.truth)[:, seen].square().mean()
    assert float(error) < 0.5 * float(twin.truth[:, seen].square().mean())
    assert bool(found.kept.all()) and found.calls["vjp"] > 0


def test_the_spectral_guess_is_what_makes_few_levels_exact() -> None:
    """With independent pixels of one variance instead, three levels leave the spread wrong."""
    twin = twins.linear(TRUTHS, DRAWS)
    found = twin.run(
        daps_rto, DRAWS, Seeds(0, range(DRAWS * TRUTHS)), levels=3, inner=Inner(1, 12), guess=ScalarGuess()
    )
    assert not 0.9 < twin.scores(twin.samples(found))["variance"] < 1.1
    assert isinstance(guess_of(twin.denoiser), SpectralGuess) and isinstance(guess_of(Denoiser()), ScalarGuess)


def test_noise_and_gain_are_inferred_where_they_are_unknown() -> None:
    """Told half or twice the noise, and recordings 1.3 times too loud, the sampler finds both, with their spread."""
    twin, draws = twins.linear(12, 2, seed=4), 24
    forward = Differentiable(
        lambda x: 10 + x.flatten(1) @ twins.blur().to(x.dtype).T
    )  # an offset tells loud from large
    y = (10 + twin.y).repeat_interleave(draws, 0)

    def found(told: float, loud: float, unknown: Unknown, levels: int) -> Guided:
        given = Problem(loud * y, forward, twin.denoiser, GaussianNoise(told), (1, *SIZE), unknown)
        return daps_rto(given, Seeds(0, range(len(y))), levels=levels)

    for told in (0.05, 0.2):
        noise = found(told, 1.0, Unknown(), 12).noise_scale
        assert noise is not None
        assert float((noise * told).log().mean()) == pytest.approx(math.log(0.1), abs=0.35)
    both = found(0.2, 1.3, Unknown(gain=0.3), 30)
    assert both.noise_scale is not None and both.gain is not None
    assert float(both.gain.mean()) == pytest.approx(1.3, abs=0.1)
    assert 0.03 < float(both.gain.view(12, draws).std(1).mean()) < 0.15
    assert float((both.noise_scale * 0.2 / 1.3).log().mean()) == pytest.approx(math.log(0.1), abs=0.7)
    with pytest.raises(UsageError, match="takes noise and gain as known"):
        mmps(Problem(y, forward, twin.denoiser, GaussianNoise(0.1), (1, *SIZE), Unknown()), Seeds(0, range(len(y))))
    with pytest.raises(UsageError, match="gain 0 must be a standard deviation"):
        Unknown(gain=0.0)


def test_chains_are_told_apart() -> None:
    """R-hat of chains of one law is 1, of shifted ones far from it; correlated states count less."""
    rng = np.random.default_rng(0)
    alike = rng.normal(size=(4, 400))
    assert split_rhat(alike) == pytest.approx(1, abs=0.01)
    assert split_rhat(alike + np.arange(4)[:, None]) > 1.3
    assert effective_size(alike) == pytest.approx(1600, rel=0.2)
    slow = np.zeros((4, 4000))
    for k in range(1, 4000):
        slow[:, k] = 0.9 * slow[:, k - 1] + rng.normal(size=4)
    assert effective_size(slow) == pytest.approx(16000 * 0.1 / 1.9, rel=0.25)
    with pytest.raises(UsageError, match="at least 4 states"):
        split_rhat(np.zeros((2, 3)))


def test_chains_of_the_linear_twin_are_judged() -> None:
    """Coupled loosely they forget their start; a tight coupling walks too slowly where the data do not see, and R-hat
    says so."""
    twin = twins.linear(1, 2)

    def rhat(rho_min: float, **how: Any) -> float:
        found = twin.run(pnpdm_rto, 4, Seeds(0, range(4)), rho_max=3.0, rho_min=rho_min, **how)
        assert found.chain is not None and found.chain.shape[1:] == (4, 1, 1, 32)
        return split_rhat(found.chain.mean((2, 3, 4)).T.numpy())

    assert rhat(0.5, iterations=220, burn_in=20) < 1.1
    assert rhat(0.05, iterations=80, burn_in=40) > 1.2
    with pytest.raises(UsageError, match="has not reached its floor"):
        twin.run(pnpdm_rto, 4, Seeds(0, range(4)), burn_in=10)


def test_particles_are_groups_of_one_recording() -> None:
    twin = twins.linear(2, 2)
    with pytest.raises(UsageError, match="not recordings of 3 particles"):
        twin.run(tds, 4, Seeds(0, range(8)), particles=3)
    with pytest.raises(UsageError, match="hold different recordings"):
        twin.run(tds, 2, Seeds(0, range(4)), particles=4)
    found = twin.run(tds, 6, Seeds(0, range(12)), particles=6, levels=5)
    assert found.weights is not None and found.weights.view(2, 6).sum(1) == pytest.approx([6, 6])


def test_samples_do_not_depend_on_their_neighbours_and_lost_ones_are_counted() -> None:
    """A recording that is not finite loses its own case alone, in every sampler."""
    y, plain, denoiser = four(1), Linear(twins.blur()), twins.prior()[0]
    broken = y.clone()
    broken[1] = math.nan
    few: dict[str, dict[str, Any]] = {
        "pnpdm_rto": {"iterations": 3, "burn_in": 1, "rho_max": 0.1}, "daps": {"langevin": 2}, "lbfgs_tv": {},
    }  # fmt: skip
    for name, sampler in SAMPLERS.items():
        if name == "tds":
            continue
        how = {**({} if name in ("pnpdm_rto", "lbfgs_tv") else {"levels": 4}), **few.get(name, {})}
        whole = sampler(problem(y, plain, denoiser), Seeds(0, range(4)), **how)
        alone = sampler(problem(y[2:3], plain, denoiser), Seeds(0, range(2, 3)), **how)
        torch.testing.assert_close(whole.maps[2], alone.maps[0], rtol=1e-5, atol=1e-6)
        found = sampler(problem(broken, plain, denoiser), Seeds(0, range(4)), **how)
        assert found.kept.tolist() == [True, False, True, True] and found.levels[-1].lost == 1, name
        assert bool(found.maps[1].isnan().all()) and bool(found.chi2[1].isnan())
        torch.testing.assert_close(found.maps[[0, 2, 3]], whole.maps[[0, 2, 3]], rtol=1e-5, atol=1e-6)
        with pytest.raises(LungwaveError, match="all 4 cases were lost at sigma"):
            sampler(problem(y * math.nan, plain, denoiser), Seeds(0, range(4)), **how)
    whole = daps_rto(problem(y, plain, denoiser), Seeds(0, range(4)), levels=4)
    assert whole.calls["denoiser"] == 16 and whole.calls["vjp"] > 0


class Wrong(Linear):
    """A forward model whose adjoint has the wrong sign."""

    def vjp(self, x, u):
        return -super().vjp(x, u)


def test_a_forward_model_is_tried_before_it_is_trusted() -> None:
    """Right ones pass to rounding; a wrong adjoint, a leak between cases and a bad range are named."""
    x = torch.randn(3, 1, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = check_forward(Differentiable(lambda v: v.flatten(1).sin() @ twins.blur().T), x)
    assert found["adjoint"] < 1e-12 and found["batch"] < 1e-12
    assert check_forward(Linear(twins.blur()), x)["slope"] < 1e-6
    with pytest.raises(LungwaveError, match="<J v, u> and <v, J' u> differ by"):
        check_forward(Wrong(twins.blur()), x)
    with pytest.raises(LungwaveError, match="a batch and its maps one by one differ"):
        check_forward(Differentiable(lambda v: v.flatten(1) - v.flatten(1).mean(0)), x)
    with pytest.raises(UsageError, match=r"the model is valid in 0-1"):
        check_forward(Linear(twins.blur(), (0.0, 1.0)), x)
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
    counted = Counted(Linear(twins.blur()))
    x = torch.zeros(10, 1, *SIZE, dtype=torch.float64)
    counted.vjp(x, counted(x))
    counted.jvp(x, x)
    assert (counted.forwards, counted.jvps, counted.vjps) == (10, 10, 10)
    assert counted.valid_range == (-math.inf, math.inf) and np.isinf(counted.valid_range[1])
