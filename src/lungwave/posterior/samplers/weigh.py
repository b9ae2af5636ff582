"""Candidates of a learned posterior, weighed by how they explain the recording.

Sampling importance resampling (Rubin 1988, in Bayesian Statistics 3, p. 395) with tempered weights, as in adaptive
sequential Monte Carlo (Jasra et al. 2011, doi 10.1111/j.1467-9469.2010.00723.x): candidate k is taken with a
probability in proportion to ``L_k^b``. The power b rises from 0 towards 1 and stops where the weights would

- leave fewer than ``LEFT`` candidates, counted as ``1 / sum w^2``, or
- expect a misfit that noise alone explains (the discrepancy principle, Morozov 1966).

Deviation. Exact weights are ``p(x) L(x) / q(x)``, with densities that nobody knows. Candidates of a posterior that
heard everything explain the recording: the second rule leaves them as they are. Those of a network that made less of
the recording than there is do not, and the likelihood tells what it missed, as far as so few can be told apart.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

LEFT = 2.0  # candidates
SURE = 1.64  # standard deviations of chi2 above 1 that noise alone reaches in one recording of twenty
HALVINGS = 50


def weigh(misfit: Float[Tensor, "n k"], size: int) -> Float[Tensor, "n k"]:
    """Weights of the k candidates of n recordings; each row adds up to 1.

    ``misfit`` is each one's sum of the squared whitened residual, of a recording of ``size`` numbers; candidates whose
    misfit is not finite get none, unless no other is left.
    """
    good = misfit.isfinite()
    good = good | ~good.any(1, keepdim=True)
    known = torch.where(good, misfit.nan_to_num(0.0, 0.0), torch.zeros_like(misfit))
    above = known - torch.where(good, known, torch.full_like(known, math.inf)).amin(1, keepdim=True)
    explained = size * (1 + SURE * math.sqrt(2 / size))

    def weights(power: Float[Tensor, "n 1"]) -> Float[Tensor, "n k"]:
        found = torch.where(good, torch.exp(-0.5 * power * above), torch.zeros_like(above))
        return found / found.sum(1, keepdim=True)

    low, high = torch.zeros_like(misfit[:, :1]), torch.ones_like(misfit[:, :1])
    power = high
    for _ in range(HALVINGS):
        found = weights(power)
        enough = found.square().sum(1, keepdim=True) <= 1 / LEFT
        allowed = enough & ((found * known).sum(1, keepdim=True) >= explained)
        low, high = torch.where(allowed, power, low), torch.where(allowed, high, power)
        power = (low + high) / 2
    return weights(low)
