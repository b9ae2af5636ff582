"""Easier problems first: the filter, forward models behind it, and what part of a recording is weighed by."""

from __future__ import annotations

import math

import pytest
import torch

from lungwave.posterior.continuation import ROLL_OFF, Filtered, LowPass
from lungwave.posterior.discrepancy import CorrelatedNoise
from lungwave.posterior.likelihood import Differentiable, check_forward
from lungwave.types import UsageError

RATE, EDGE, SAMPLES = 6.0e6, 1.2e6, 240


def tone(frequency: float) -> torch.Tensor:
    """Whole periods of a cosine on every one of 3 channels of 2 events."""
    time = torch.arange(SAMPLES, dtype=torch.float64) / RATE
    return torch.cos(2 * math.pi * frequency * time).view(1, 1, -1, 1).expand(1, 2, -1, 3)


def test_low_tones_pass_and_high_ones_do_not() -> None:
    low = LowPass(EDGE, RATE)
    torch.testing.assert_close(low(tone(0.3e6)), tone(0.3e6))
    torch.testing.assert_close(low(tone(EDGE)), tone(EDGE))
    middle = EDGE * (1 + ROLL_OFF / 2)
    torch.testing.assert_close(low(tone(middle)), 0.5 * tone(middle))
    assert float(low(tone(EDGE * (1 + ROLL_OFF) + 1e5)).abs().max()) < 1e-12


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES + 1])
def test_the_filter_is_its_own_adjoint(samples: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 1, samples, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    low = LowPass(EDGE, RATE)
    torch.testing.assert_close((low(a) * b).sum(), (a * low(b)).sum(), rtol=1e-12, atol=1e-12)


def test_a_filtered_model_keeps_the_contract() -> None:
    def echoes(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x).reshape(len(x), 1, -1, 4).cumsum(2)

    model = Filtered(Differentiable(echoes, (-3.0, 3.0)), LowPass(EDGE, RATE))
    maps = torch.rand(3, 1, 30, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 0.5
    found = check_forward(model, maps)
    assert found["adjoint"] < 1e-12 and model.valid_range == (-3.0, 3.0)
    assert float((model(maps) - echoes(maps)).abs().max()) > 1e-3  # something was cut off


@pytest.mark.parametrize("edge", [0.0, -1.0, RATE / 2, math.nan])
def test_an_edge_that_is_none(edge: float) -> None:
    with pytest.raises(UsageError, match=r"an edge of .* Hz; give one from 0 to half of 6e\+06 Hz"):
        LowPass(edge, RATE)


def test_some_events_weigh_what_they_say_alone() -> None:
    """Their noise has their own covariance: never surer of them than the whole recording is."""
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    whole = CorrelatedNoise.of(root @ root.T + torch.eye(24), (3, 4, 2))
    some = whole.marginal([2, 0])
    assert some.shape == (2, 4, 2)
    covariance = whole.covariance.reshape(3, 8, 3, 8)
    for i, a in enumerate((2, 0)):
        for j, b in enumerate((2, 0)):
            block = some.covariance.reshape(2, 8, 2, 8)[i, :, j]
            torch.testing.assert_close(block, covariance[a, :, b], rtol=1e-9, atol=1e-9)
    residual = torch.randn(5, 3, 4, 2, generator=generator, dtype=torch.float64)
    alone = some.whiten(residual[:, [2, 0]]).flatten(1).square().sum(1)
    assert bool((alone <= whole.whiten(residual).flatten(1).square().sum(1)).all())
