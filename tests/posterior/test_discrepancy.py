"""Model error as noise: the covariance that made the pairs comes back, and a posterior that knows of it is honest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungwave.posterior.discrepancy import CorrelatedNoise, Discrepancy
from lungwave.posterior.likelihood import GaussianNoise, Linear
from lungwave.types import UsageError

SHAPE = (2, 3, 4)
SIZE = 24


def covariance(seed: int = 0) -> np.ndarray:
    """Smooth along the recording, louder at its end."""
    at = np.arange(SIZE)
    loud = 0.5 + at / SIZE
    return np.outer(loud, loud) * np.exp(-0.5 * ((at[:, None] - at) / 3) ** 2) + 1e-3 * np.eye(SIZE)


def known() -> Discrepancy:
    return Discrepancy(covariance(), SHAPE, 0.0, np.empty((0, *SHAPE)))


def drawn(count: int, seed: int) -> np.ndarray:
    root = np.linalg.cholesky(covariance())
    return (np.random.default_rng(seed).standard_normal((count, SIZE)) @ root.T).reshape(count, *SHAPE)


def test_whitened_noise_is_white_and_whitening_is_its_own_adjoint() -> None:
    noise = known().noise(0.2)
    found = noise.whiten(torch.from_numpy(drawn(4000, 1)) + 0.2 * torch.randn(4000, *SHAPE, dtype=torch.float64))
    found = found.flatten(1)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(SIZE), atol=0.12)
    u, v = torch.randn(2, 1, *SHAPE, dtype=torch.float64)
    assert float((noise.whiten(u) * v).sum()) == pytest.approx(float((u * noise.whiten(v)).sum()), rel=1e-10)


def test_drawing_undoes_whitening() -> None:
    noise = known().noise(0.2)
    normal = torch.randn(3, *SHAPE, dtype=torch.float64)
    np.testing.assert_allclose(noise.whiten(noise.draw(normal)), normal, atol=1e-9)


def test_independent_noise_is_the_special_case() -> None:
    both = GaussianNoise(0.3), CorrelatedNoise.of(0.09 * torch.eye(SIZE, dtype=torch.float64), SHAPE)
    residual = torch.randn(5, *SHAPE, dtype=torch.float64)
    for name in ("whiten", "log_prob", "chi2"):
        one, other = (getattr(noise, name)(residual) for noise in both)
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_many_pairs_give_the_covariance_and_few_are_shrunk_as_far_as_helps() -> None:
    many, few = (Discrepancy.fit(drawn(count, 2)) for count in (4000, 24))
    assert many.shrinkage <= 0.05
    np.testing.assert_allclose(many.covariance, covariance(), atol=0.12)
    assert np.linalg.eigvalsh(few.covariance).min() > 0  # 24 pairs of 24 numbers
    independent = np.random.default_rng(6).standard_normal((40, *SHAPE))
    assert Discrepancy.fit(independent).shrinkage >= 0.75  # correlations of 40 pairs are chance


def test_each_pair_is_told_in_its_own_unit() -> None:
    scales = np.random.default_rng(3).uniform(0.1, 10, 500)
    pairs = drawn(500, 4)
    told = Discrepancy.fit(pairs * scales[:, None, None, None], scales)
    np.testing.assert_allclose(told.covariance, Discrepancy.fit(pairs).covariance)


def test_a_posterior_that_knows_of_the_model_error_covers_and_one_that_does_not_is_too_sure() -> None:
    """Linear Gaussian twin in closed form: the recording is made by another operator than the one believed in."""
    generator = np.random.default_rng(5)
    believed = generator.standard_normal((SIZE, 6)) / 2
    rest = 0.5 * generator.standard_normal((SIZE, 10)) / 2  # of numbers that the map does not hold
    pairs = generator.standard_normal((2000, 10)) @ rest.T
    truth = generator.standard_normal((400, 6))
    y = (
        truth @ believed.T
        + generator.standard_normal((400, 10)) @ rest.T
        + 0.1 * generator.standard_normal((400, SIZE))
    )
    forward = Linear(torch.from_numpy(believed))
    zs = []
    for noise in (Discrepancy.fit(pairs).noise(0.1), GaussianNoise(0.1)):
        eye = torch.eye(6, dtype=torch.float64).reshape(6, 1, 1, 6)
        columns = noise.whiten(forward(eye)).numpy().T  # whitened operator
        precision = np.eye(6) + columns.T @ columns
        mean = np.linalg.solve(precision, columns.T @ noise.whiten(torch.from_numpy(y)).numpy().T).T
        zs.append((truth - mean) / np.sqrt(np.diagonal(np.linalg.inv(precision))))
    inside = [float((np.abs(z) < 1.645).mean()) for z in zs]
    assert 0.87 < inside[0] < 0.93
    assert inside[1] < 0.6


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Discrepancy.fit(drawn(5, 0)), "5 pairs are too few"),
        (lambda: Discrepancy.fit(np.full((30, *SHAPE), np.nan)), "not finite"),
        (lambda: CorrelatedNoise.of(torch.eye(3), SHAPE), "covariance of \\(3, 3\\)"),
        (lambda: CorrelatedNoise.of(torch.eye(SIZE), SHAPE, 0.0), "temperature 0"),
        (lambda: CorrelatedNoise.of(-torch.eye(SIZE), SHAPE), "must be positive"),
        (
            lambda: known().noise(1.0).whiten(torch.zeros(2, 5)),
            "noise of shape",
        ),
    ],
)
def test_what_cannot_be_noise_is_refused(make, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
