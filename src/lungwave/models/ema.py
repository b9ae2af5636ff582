"""Running averages of the weights: power-function and exponential, and averages reconstructed after training.

Karras et al. 2024 (EDM2, arXiv:2312.02696), section 3 and appendix C. A power-function average forgets the start of the
training however long it ran, and averages of any length follow from a few stored ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.types import UsageError

Keep = Callable[[int], float]  # step (1 = the first) -> share of the average that stays

SIGMA_RELS = (0.05, 0.10)  # lengths that are averaged during training (EDM2, section 3.2)
NARROWEST, WIDEST = 1e-4, 0.28  # of sigma_rel; an average over all of the training alike has 1 / sqrt(12)


def gamma_of(sigma_rel: float) -> float:
    """Exponent gamma of the power function whose relative width is ``sigma_rel``.

    ``sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))`` (EDM2, appendix C), a cubic with one root above 0.
    """
    if not NARROWEST < sigma_rel < WIDEST:
        raise UsageError(f"sigma_rel {sigma_rel:g} of a weight average must lie between {NARROWEST} and {WIDEST}")
    inverse = sigma_rel**-2
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def power(sigma_rel: float) -> Keep:
    """Power-function average, ``beta = (1 - 1 / step)^(gamma + 1)`` (EDM2, eq. 2); the first step replaces all."""
    exponent = gamma_of(sigma_rel) + 1
    return lambda step: (1 - 1 / step) ** exponent


def exponential(rate: float) -> Keep:
    """The classical average; after n steps it still holds ``rate^n`` of the random start."""
    return lambda step: rate


def power_averages(sigma_rels: Sequence[float] = SIGMA_RELS) -> dict[str, Keep]:
    """Power-function averages by the names that snapshots give them."""
    return {f"power-{sigma_rel:.3f}": power(sigma_rel) for sigma_rel in sigma_rels}


class Averages:
    """Named running averages of a module's parameters; buffers are taken as they are."""

    def __init__(self, module: nn.Module, keeps: Mapping[str, Keep]) -> None:
        self.module, self.keeps = module, dict(keeps)
        self.weights = {
            name: {key: value.detach().clone() for key, value in module.named_parameters()} for name in keeps
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the weights after optimiser step ``step`` (1 = the first) in."""
        new = [value.detach() for value in self.module.parameters()]
        for name, keep in self.keeps.items():
            torch._foreach_lerp_(list(self.weights[name].values()), new, 1 - keep(step))

    @contextmanager
    def applied(self, name: str | None) -> Iterator[nn.Module]:
        """The module with the average ``name`` in place of its weights, in evaluation mode; None = its own weights."""
        own = {key: value.data for key, value in self.module.named_parameters()}
        training = self.module.training
        try:
            if name is not None:
                for key, value in self.module.named_parameters():
                    value.data = self.weights[name][key]
            yield self.module.eval()
        finally:
            for key, value in self.module.named_parameters():
                value.data = own[key]
            self.module.train(training)

    def state(self) -> dict[str, Tensor]:
        """All averages as flat names ``average/parameter``."""
        return {f"{name}/{key}": value for name, kept in self.weights.items() for key, value in kept.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        for name, kept in self.weights.items():
            for key, value in kept.items():
                value.copy_(state[f"{name}/{key}"])


def inner_product(end_a: float, gamma_a: float, end_b: float, gamma_b: float) -> float:
    """Inner product of two profiles ``(gamma + 1) t^gamma / end^(gamma + 1)``, t <= end (EDM2, appendix C)."""
    shorter = min(end_a, end_b)
    decay = (shorter / end_a) ** (gamma_a + 1) * (shorter / end_b) ** (gamma_b + 1) / shorter
    return (gamma_a + 1) * (gamma_b + 1) / (gamma_a + gamma_b + 1) * decay


def posthoc_coefficients(
    ends: Float[np.ndarray, " snapshot"], sigma_rels: Float[np.ndarray, " snapshot"], end: float, sigma_rel: float
) -> Float[np.ndarray, " snapshot"]:
    """Factors of stored averages whose sum comes nearest to the average of ``sigma_rel`` at ``end``.

    Least squares over the averaging profiles (EDM2, section 3.2 and appendix C). ``ends`` [step] are the steps at
    which the averages were stored. Differs from the paper: the factors sum to one exactly, so that weights that never
    moved are reproduced whatever the snapshots are.
    """
    gammas = np.array([gamma_of(float(value)) for value in sigma_rels])
    target, count = gamma_of(sigma_rel), len(ends)
    products = np.array([[inner_product(a, g, b, h) for b, h in zip(ends, gammas, strict=True)]
                         for a, g in zip(ends, gammas, strict=True)])  # fmt: skip
    wanted = np.array([inner_product(a, g, end, target) for a, g in zip(ends, gammas, strict=True)])
    # Profiles are normalised to length one before solving: an early snapshot is as long as a late one is short.
    length = np.sqrt(np.diag(products))
    system = np.zeros((count + 1, count + 1))  # stationary points of the Lagrange function
    system[:count, :count] = products / np.outer(length, length)
    system[:count, count] = system[count, :count] = 1 / length * length.min()
    right = np.append(wanted / length, length.min())
    solution = np.linalg.lstsq(system, right, rcond=1e-10)[0]
    factors = solution[:count] / length
    return factors / factors.sum()
