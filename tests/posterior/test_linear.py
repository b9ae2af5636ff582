"""Laws of ridge regression and of split-conformal intervals."""

from __future__ import annotations

import numpy as np

from lungwave.posterior.linear import conformal_quantiles, fit_spread, folds_of, ridge, ridge_by_groups, spread


def test_vanishing_penalty_finds_the_truth_and_a_large_one_the_mean() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 5)) * [1, 10, 0.1, 3, 1] + 4
    weight = rng.standard_normal((5, 2))
    y = x @ weight + 1.5
    assert np.allclose(ridge(x, y, 1e-9)(x), y, atol=1e-6)
    assert np.allclose(ridge(x, y, 1e12)(x), y.mean(0), atol=1e-6)


def test_left_out_groups_expose_what_copies_hide() -> None:
    """Fifty features of noise, each case four times: only group folds see that nothing can be learned."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((60, 50)), rng.uniform(size=(60, 1))
    copies, targets = np.repeat(x, 4, 0), np.repeat(y, 4, 0)
    groups = np.repeat(np.arange(60), 4)
    found = ridge_by_groups(copies, targets, groups)
    leaky = ridge_by_groups(copies, targets, np.arange(240)).left_out
    honest = found.left_out
    by_chance = np.abs(y - y.mean()).mean()
    assert np.abs(honest - targets).mean() > 0.9 * by_chance
    assert np.abs(leaky - targets).mean() < 0.6 * by_chance
    assert found.whole(x).shape == (60, 1)
    for k, model in enumerate(found.folds):
        mine = folds_of(groups) == k
        np.testing.assert_allclose(model(copies[mine]), honest[mine])


def test_spread_follows_the_error_it_was_shown() -> None:
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (4000, 1))
    error = 0.1 * np.exp(x) * np.abs(rng.standard_normal((4000, 1)))
    model = fit_spread(x, error, penalty=1.0)
    ratio = spread(model, np.array([[1.0]])) / spread(model, np.array([[-1.0]]))
    assert 4 < ratio[0, 0] < 9  # e^2 = 7.4, less the floor


def test_conformal_covers_new_cases_whatever_the_distribution() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(300):
        scores = rng.exponential(size=(120, 1)) ** 3
        limit = conformal_quantiles(scores[:100], (0.9,))[0]
        covered.append((scores[100:] <= limit).mean())
    # Law: 0.9 <= expected coverage <= 0.9 + 1 / (n + 1); 6000 new scores leave 0.004 of noise, and more between draws.
    assert 0.893 < np.mean(covered) < 0.919


def test_too_few_scores_promise_nothing() -> None:
    assert np.isinf(conformal_quantiles(np.ones((8, 2)), (0.9,))).all()
    assert np.isfinite(conformal_quantiles(np.ones((9, 2)), (0.9,))).all()
