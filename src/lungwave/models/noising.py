"""The forward process of a discrete diffusion: its tables, its noise levels, and noised images.

Equations: DDPM, Ho et al. 2020 (arXiv:2006.11239); iDDPM, Nichol & Dhariwal 2021 (arXiv:2102.09672).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.models.timesteps import Schedule, kept_steps, schedule_betas
from lungwave.types import UsageError

Process = TypeVar("Process", bound="Noising")


@dataclass(frozen=True)
class Noising:
    """q(x_t | x_0) at each step visited. Index t = 0 is the first, least noisy step; tables are float64."""

    steps: int = 1000  # T of training
    schedule: Schedule = "linear"
    respacing: str | Sequence[int] = ""  # steps to visit: "250", "10,15,20", "ddim50"; "" = all
    rescale_timesteps: bool = True  # the network's time runs to 1000 whatever ``steps`` is

    def __post_init__(self) -> None:
        if not isinstance(self.respacing, str):
            object.__setattr__(self, "respacing", ",".join(map(str, self.respacing)))
        if self.length < 2:
            raise UsageError(f"{self.length} of {self.steps} steps are too few to sample; keep 2 or more")
        _ = self.betas  # an impossible schedule is refused here, not at first use

    def respaced(self: Process, respacing: str | Sequence[int]) -> Process:
        """The same process visiting other steps; the network still sees the original times."""
        return replace(self, respacing=respacing)

    @property
    def length(self) -> int:
        """Number of steps visited."""
        return len(self.kept)

    # ---- tables ----

    @cached_property
    def kept(self) -> Int[np.ndarray, " length"]:
        """Original index of each step visited."""
        return kept_steps(self.steps, self.respacing)

    @cached_property
    def betas(self) -> Float[np.ndarray, " length"]:
        """Variance added by each step; respaced so that abar is unchanged where it is visited, iDDPM eq. 19."""
        betas = schedule_betas(self.schedule, self.steps)
        if not self.respacing:
            return betas
        alpha_bar = np.cumprod(1 - betas)[self.kept]
        return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])

    @cached_property
    def alpha_bar(self) -> Float[np.ndarray, " length"]:
        """Share of the signal's variance left after each step."""
        return np.cumprod(1 - self.betas)

    @cached_property
    def alpha_bar_before(self) -> Float[np.ndarray, " length"]:
        """The same before each step; 1 at the start."""
        return np.append(1.0, self.alpha_bar[:-1])

    @cached_property
    def sigmas(self) -> Float[np.ndarray, " length"]:
        """Noise over signal after each step, sqrt((1 - abar) / abar), increasing."""
        return np.sqrt((1 - self.alpha_bar) / self.alpha_bar)

    @cached_property
    def posterior_tables(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Weights of x0 and x_t in the mean of q(x_{t-1} | x_t, x0), then its log variance; DDPM eq. 7.

        The variance of the first step is 0; its logarithm repeats the second's.
        """
        noise, before = 1 - self.alpha_bar, 1 - self.alpha_bar_before
        variance = self.betas * before / noise
        variance[0] = variance[1]
        return (
            self.betas * np.sqrt(self.alpha_bar_before) / noise,
            before * np.sqrt(1 - self.betas) / noise,
            np.log(variance),
        )

    # ---- time and noise level ----

    def sigma(self, t: Float[Tensor, " n"] | Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Noise level at step ``t``; between steps its logarithm is interpolated, beyond the ends it stays."""
        return _between(np.log(self.sigmas), t).exp()

    def time(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Fractional step whose noise level is ``sigma``, the inverse of ``sigma``; clamped to the first and last step.

        The last steps of a cosine schedule are nearly pure noise (sigma 2e4), so samplers start lower.
        """
        table = torch.as_tensor(self.sigmas, dtype=sigma.dtype, device=sigma.device)
        sigma = sigma.clamp(table[0], table[-1]).contiguous()
        low = torch.searchsorted(table, sigma, right=True).clamp(1, self.length - 1) - 1
        logs = table.log()
        return low + (sigma.log() - logs[low]) / (logs[low + 1] - logs[low])

    def model_time(self, t: Float[Tensor, " n"] | Int[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What the network is told at step ``t``: the original index, times 1000 / steps if rescaled."""
        return _between(self.kept, t) * (1000 / self.steps if self.rescale_timesteps else 1)

    # ---- forward process ----

    def q_sample(
        self, x0: Float[Tensor, "n c *size"], t: Int[Tensor, " n"], noise: Float[Tensor, "n c *size"]
    ) -> Float[Tensor, "n c *size"]:
        """x_t of clean images and standard normal ``noise``; DDPM eq. 4."""
        return at(np.sqrt(self.alpha_bar), t, x0) * x0 + at(np.sqrt(1 - self.alpha_bar), t, x0) * noise

    def q_posterior(
        self, x0: Float[Tensor, "n c *size"], x_t: Float[Tensor, "n c *size"], t: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n c *size"], Float[Tensor, "n c *size"]]:
        """Mean and log variance of q(x_{t-1} | x_t, x0); DDPM eq. 7. At t = 0 the variance of t = 1 stands in for 0."""
        of_x0, of_xt, log_variance = (at(table, t, x_t) for table in self.posterior_tables)
        return of_x0 * x0 + of_xt * x_t, log_variance.expand_as(x_t)

    def x0_from_eps(
        self, x_t: Float[Tensor, "n c *size"], t: Int[Tensor, " n"], eps: Float[Tensor, "n c *size"]
    ) -> Float[Tensor, "n c *size"]:
        """Clean image that x_t holds if its noise is ``eps``; DDPM eq. 4 solved for x0."""
        return at(1 / np.sqrt(self.alpha_bar), t, x_t) * x_t - at(self.sigmas, t, x_t) * eps

    def eps_from_x0(
        self, x_t: Float[Tensor, "n c *size"], t: Int[Tensor, " n"], x0: Float[Tensor, "n c *size"]
    ) -> Float[Tensor, "n c *size"]:
        """Noise that x_t holds if its clean image is ``x0``."""
        return (at(1 / np.sqrt(self.alpha_bar), t, x_t) * x_t - x0) / at(self.sigmas, t, x_t)


def at(table: np.ndarray, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table at steps ``t``, shaped to multiply ``like``."""
    return torch.as_tensor(table, dtype=like.dtype, device=like.device)[t].reshape(-1, *[1] * (like.ndim - 1))


def _between(table: np.ndarray, t: Tensor) -> Tensor:
    """Linear interpolation in a table at fractional positions, clamped to its ends."""
    t = (t if t.is_floating_point() else t.to(torch.get_default_dtype())).clamp(0, len(table) - 1)
    values = torch.as_tensor(table, dtype=t.dtype, device=t.device)
    low = t.floor().clamp(max=len(table) - 2).long()
    return torch.lerp(values[low], values[low + 1], t - low)
