"""The discrete Gaussian diffusion of OpenAI's checkpoints: reverse steps, losses, bits per dimension, samplers.

Papers: DDPM, Ho et al. 2020 (arXiv:2006.11239); DDIM, Song et al. 2021 (arXiv:2010.02502); iDDPM, Nichol & Dhariwal
2021 (arXiv:2102.09672). Index t = 0 is the first, least noisy step. Data lie in [-1, 1]. A model is any callable
``model(x, time, cond)`` that returns as many channels as x, or twice as many when it also predicts the variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict, Unpack

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.models.noising import Noising, at
from lungwave.types import UsageError

Model: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]
# Where normal numbers come from: one generator, one per sample (then a sample does not depend on its batch), or a
# function of a tensor that returns noise of its shape.
Randomness: TypeAlias = torch.Generator | Sequence[torch.Generator] | Callable[[Tensor], Tensor]

HALF_BIN = 1 / 255  # of 8-bit data in [-1, 1]
SMALLEST = 1e-12  # probability of a pixel value, so that one impossible pixel does not make a bound infinite


class Options(TypedDict, total=False):
    """How the model is asked, the same for every sampler."""

    cond: Any  # third argument of the model; None = unconditional
    clip_denoised: bool  # clamp the predicted clean image to [-1, 1]; default True
    denoised_fn: Callable[[Tensor], Tensor] | None  # applied to the predicted clean image, before clamping


class Reverse(NamedTuple):
    """The model's p(x_{t-1} | x_t)."""

    mean: Float[Tensor, "n c *size"]
    log_variance: Float[Tensor, "n c *size"]
    x0: Float[Tensor, "n c *size"]  # predicted clean image

    @property
    def variance(self) -> Tensor:
        """Of each pixel."""
        return self.log_variance.exp()


class Step(NamedTuple):
    """One move of a sampler."""

    x: Float[Tensor, "n c *size"]  # the state it arrived at
    x0: Float[Tensor, "n c *size"]  # the clean image it aimed at


def normal(like: Float[Tensor, "n c *size"], source: Randomness) -> Float[Tensor, "n c *size"]:
    """Standard normal numbers of the shape of ``like``."""
    if isinstance(source, torch.Generator):
        return torch.randn(like.shape, generator=source, device=source.device, dtype=like.dtype).to(like.device)
    if callable(source):
        return source(like)
    if len(source) != len(like):
        raise UsageError(f"{len(source)} generators for {len(like)} samples; give one per sample")
    return torch.stack([normal(sample[None], generator)[0] for sample, generator in zip(like, source, strict=True)])


@dataclass(frozen=True)
class Gaussian(Noising):
    """A discrete diffusion and how a model reverses it. It holds settings and tables only, never a model."""

    predicts: Literal["eps", "x0"] = "eps"
    variance: Literal["fixed_large", "fixed_small", "learned_range"] = "fixed_large"
    loss: Literal["mse", "rescaled_mse", "kl", "rescaled_kl"] = "rescaled_mse"

    # ---- the model's reverse process ----

    def p_mean_variance(
        self,
        model: Model,
        x: Float[Tensor, "n c *size"],
        t: Int[Tensor, " n"],
        cond: Any = None,
        clip_denoised: bool = True,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> Reverse:
        """The model's p(x_{t-1} | x_t), from one call of it; ``Options`` explains the last three arguments."""
        return self._reverse(self._ask(model, x, t, cond), x, t, clip_denoised, denoised_fn)

    def _ask(self, model: Model, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        output = model(x, self.model_time(t), cond).to(x.dtype)
        channels = x.shape[1] * (2 if self.variance == "learned_range" else 1)
        if output.shape != (len(x), channels, *x.shape[2:]):
            raise UsageError(
                f"the network turns {tuple(x.shape)} into {tuple(output.shape)}, but variance '{self.variance}' needs "
                f"{channels} channels; learned sigma doubles them, fixed variances do not"
            )
        return output

    def _reverse(
        self,
        output: Tensor,
        x: Tensor,
        t: Tensor,
        clip_denoised: bool,
        denoised_fn: Callable[[Tensor], Tensor] | None = None,
    ) -> Reverse:
        """Read a network's output: its first half is the mean's parameter, its second the variance's, if learned."""
        if self.variance == "learned_range":
            output, v = output.chunk(2, dim=1)
            low, high = at(self.posterior_tables[2], t, x), at(np.log(self.betas), t, x)
            log_variance = low + (v + 1) / 2 * (high - low)  # iDDPM eq. 15, v from -1 to 1
        else:
            # "large" is beta, but at the first step the posterior's, since beta would blur the decoder
            small = self.posterior_tables[2]
            table = np.append(small[0], np.log(self.betas[1:])) if self.variance == "fixed_large" else small
            log_variance = at(table, t, x).expand_as(x)
        x0 = output if self.predicts == "x0" else self.x0_from_eps(x, t, output)
        if denoised_fn is not None:
            x0 = denoised_fn(x0)
        if clip_denoised:
            x0 = x0.clamp(-1, 1)
        return Reverse(self.q_posterior(x0, x, t)[0], log_variance, x0)

    # ---- losses and the variational bound ----

    def training_losses(
        self,
        model: Model,
        x0: Float[Tensor, "n c *size"],
        t: Int[Tensor, " n"],
        noise: Float[Tensor, "n c *size"],
        cond: Any = None,
    ) -> dict[str, Float[Tensor, " n"]]:
        """Loss of each sample under ``loss``, and its parts ``mse`` and ``vb`` where it has them.

        mse is DDPM eq. 14; with a learned variance the bound of the detached mean is added, iDDPM eq. 16 (times
        length / 1000 when rescaled). kl is the bound's term at t in bits per dimension (times length when rescaled).
        """
        x_t = self.q_sample(x0, t, noise)
        output = self._ask(model, x_t, t, cond)
        if self.loss in ("kl", "rescaled_kl"):
            vb = self._vb_term(x0, x_t, t, self._reverse(output, x_t, t, clip_denoised=False))
            return {"loss": vb * self.length if self.loss == "rescaled_kl" else vb}
        mean, *v = output.split(x0.shape[1], dim=1)
        mse = _mean((mean - (x0 if self.predicts == "x0" else noise)) ** 2)
        if not v:
            return {"loss": mse, "mse": mse}
        frozen = torch.cat([mean.detach(), *v], dim=1)  # the bound teaches the variance only
        vb = self._vb_term(x0, x_t, t, self._reverse(frozen, x_t, t, clip_denoised=False))
        if self.loss == "rescaled_mse":
            vb = vb * (self.length / 1000)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _vb_term(self, x0: Tensor, x_t: Tensor, t: Tensor, p: Reverse) -> Tensor:
        """Term t of the bound, bits per dimension: KL(q || p) between steps, the 8-bit decoder at t = 0; DDPM eq. 5."""
        divergence = _kl(*self.q_posterior(x0, x_t, t), p.mean, p.log_variance)
        decoder = -eight_bit_log_likelihood(x0, p.mean, p.log_variance / 2)
        return torch.where(t == 0, _mean(decoder), _mean(divergence)) / math.log(2)

    def prior_bpd(self, x0: Float[Tensor, "n c *size"]) -> Float[Tensor, " n"]:
        """Bits per dimension between the noisiest state and pure noise; no model can lower it."""
        last = self.alpha_bar[-1]
        zero = torch.zeros_like(x0)
        return _mean(_kl(math.sqrt(last) * x0, zero + math.log1p(-last), zero, zero)) / math.log(2)

    @torch.no_grad()
    def bits_per_dim(
        self,
        model: Model,
        x0: Float[Tensor, "n c *size"],
        generator: Randomness,
        cond: Any = None,
        clip_denoised: bool = True,
    ) -> dict[str, Float[Tensor, "n ..."]]:
        """The whole variational bound of 8-bit images scaled to [-1, 1]; one call of the model per step.

        Returns:
            ``total_bpd`` and ``prior_bpd`` per sample; ``vb`` [bits per dimension], ``xstart_mse`` (clean image) and
            ``mse`` (noise) per sample and step, column t = step t.
        """
        columns: dict[str, list[Tensor]] = {"vb": [], "xstart_mse": [], "mse": []}
        for t in self._countdown(x0):
            noise = normal(x0, generator)
            x_t = self.q_sample(x0, t, noise)
            p = self.p_mean_variance(model, x_t, t, cond, clip_denoised)
            columns["vb"].append(self._vb_term(x0, x_t, t, p))
            columns["xstart_mse"].append(_mean((p.x0 - x0) ** 2))
            columns["mse"].append(_mean((self.eps_from_x0(x_t, t, p.x0) - noise) ** 2))
        terms = {name: torch.stack(column[::-1], dim=1) for name, column in columns.items()}
        prior = self.prior_bpd(x0)
        return {**terms, "prior_bpd": prior, "total_bpd": terms["vb"].sum(dim=1) + prior}

    # ---- samplers: single steps are differentiable, loops are not ----

    def p_sample(
        self,
        model: Model,
        x: Float[Tensor, "n c *size"],
        t: Int[Tensor, " n"],
        generator: Randomness,
        **options: Unpack[Options],
    ) -> Step:
        """x_{t-1} drawn from the model; the last step (t = 0) adds no noise. DDPM algorithm 2."""
        p = self.p_mean_variance(model, x, t, **options)
        spread = torch.exp(p.log_variance / 2) * (t > 0).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return Step(p.mean + spread * normal(x, generator), p.x0)

    def ddim_sample(
        self,
        model: Model,
        x: Float[Tensor, "n c *size"],
        t: Int[Tensor, " n"],
        eta: float = 0.0,
        generator: Randomness | None = None,
        **options: Unpack[Options],
    ) -> Step:
        """x_{t-1} by DDIM eq. 12: deterministic at ``eta`` 0 (no generator needed), as random as DDPM at 1."""
        if not 0 <= eta <= 1:
            raise UsageError(f"DDIM's eta is {eta:g}; give 0 (deterministic) to 1 (ancestral)")
        x0 = self.p_mean_variance(model, x, t, **options).x0
        after, before = self.alpha_bar, self.alpha_bar_before
        sigma = eta * np.sqrt((1 - before) / (1 - after) * (1 - after / before))  # DDIM eq. 16; 0 at t = 0
        eps = self.eps_from_x0(x, t, x0)
        x = at(np.sqrt(before), t, x) * x0 + at(np.sqrt(1 - before - sigma**2), t, x) * eps
        if eta == 0:
            return Step(x, x0)
        if generator is None:
            raise UsageError(f"DDIM with eta {eta:g} draws noise; give a generator, or use eta 0")
        return Step(x + at(sigma, t, x) * normal(x, generator), x0)

    def ddim_reverse_sample(
        self, model: Model, x: Float[Tensor, "n c *size"], t: Int[Tensor, " n"], **options: Unpack[Options]
    ) -> Step:
        """x_{t+1} from x_t: a deterministic DDIM step run towards noise; pure noise lies beyond the last step."""
        x0 = self.p_mean_variance(model, x, t, **options).x0
        after = np.append(self.alpha_bar[1:], 0.0)
        return Step(at(np.sqrt(after), t, x) * x0 + at(np.sqrt(1 - after), t, x) * self.eps_from_x0(x, t, x0), x0)

    def p_sample_progressive(
        self, model: Model, noise: Float[Tensor, "n c *size"], generator: Randomness, **options: Unpack[Options]
    ) -> Iterator[Step]:
        """Every step from ``noise`` to an image, ``length`` calls of the model."""
        return self._descend(noise, lambda x, t: self.p_sample(model, x, t, generator, **options))

    def p_sample_loop(
        self, model: Model, noise: Float[Tensor, "n c *size"], generator: Randomness, **options: Unpack[Options]
    ) -> Float[Tensor, "n c *size"]:
        """The image that ``p_sample_progressive`` ends at."""
        return _last(self.p_sample_progressive(model, noise, generator, **options))

    def ddim_progressive(
        self,
        model: Model,
        noise: Float[Tensor, "n c *size"],
        eta: float = 0.0,
        generator: Randomness | None = None,
        **options: Unpack[Options],
    ) -> Iterator[Step]:
        """Every DDIM step from ``noise`` to an image."""
        return self._descend(noise, lambda x, t: self.ddim_sample(model, x, t, eta, generator, **options))

    def ddim_loop(
        self,
        model: Model,
        noise: Float[Tensor, "n c *size"],
        eta: float = 0.0,
        generator: Randomness | None = None,
        **options: Unpack[Options],
    ) -> Float[Tensor, "n c *size"]:
        """The image that ``ddim_progressive`` ends at."""
        return _last(self.ddim_progressive(model, noise, eta, generator, **options))

    def ddim_encode(
        self, model: Model, x0: Float[Tensor, "n c *size"], **options: Unpack[Options]
    ) -> Float[Tensor, "n c *size"]:
        """The noise from which ``ddim_loop`` returns to ``x0``, up to an error that falls with the step size.

        The image enters at the first step with the noise that the model sees in it, then climbs to the last.
        """
        with torch.no_grad():
            ups = self._countdown(x0)[::-1]
            aim = self.p_mean_variance(model, x0, ups[0], **options).x0
            x = self.q_sample(x0, ups[0], self.eps_from_x0(x0, ups[0], aim))
            for t in ups[:-1]:
                x = self.ddim_reverse_sample(model, x, t, **options).x
        return x

    def _descend(self, x: Tensor, step: Callable[[Tensor, Tensor], Step]) -> Iterator[Step]:
        for t in self._countdown(x):
            with torch.no_grad():
                state = step(x, t)
            yield state
            x = state.x

    def _countdown(self, x: Tensor) -> list[Tensor]:
        """Step indices for the batch of ``x``, last step first."""
        return list(torch.arange(self.length, device=x.device).flip(0)[:, None].expand(-1, len(x)))


def eight_bit_log_likelihood(
    x0: Float[Tensor, "n c *size"], mean: Float[Tensor, "n c *size"], log_std: Float[Tensor, "n c *size"]
) -> Float[Tensor, "n c *size"]:
    """Log probability [nats] of 8-bit values scaled to [-1, 1] under a Gaussian; the end bins are open, DDPM eq. 13.

    The normal distribution function is exact here; OpenAI's code uses a tanh approximation of it.
    """
    distance, scale = x0 - mean, torch.exp(-log_std)
    flip = torch.where(distance > 0, -1.0, 1.0)  # measure from the nearer tail, where float32 still resolves it
    low = torch.where(x0 < HALF_BIN - 1, -math.inf, scale * (distance - HALF_BIN))
    high = torch.where(x0 > 1 - HALF_BIN, math.inf, scale * (distance + HALF_BIN))
    inside = flip * (torch.special.ndtr(flip * high) - torch.special.ndtr(flip * low))
    return inside.clamp(min=SMALLEST).log()


def _kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL divergence [nats] of two normal distributions, pixel by pixel."""
    ratio = log_variance - other_log_variance
    return 0.5 * (torch.expm1(ratio) - ratio + (mean - other_mean) ** 2 * torch.exp(-other_log_variance))


def _mean(value: Tensor) -> Tensor:
    """Mean over everything but the batch."""
    return value.flatten(1).mean(dim=1)


def _last(states: Iterator[Step]) -> Tensor:
    for state in states:  # noqa: B007 only the last one is wanted
        pass
    return state.x
