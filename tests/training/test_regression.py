"""The loss of regressors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungwave.models.regressor import MeanMap
from lungwave.models.unet import Condition
from lungwave.training.regression import Regression, absolute_and_square
from lungwave.training.source import Batch, Draws
from lungwave.types import UsageError


def test_the_loss_is_the_mean_of_the_error_and_of_its_square() -> None:
    found, truth = torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]), torch.tensor([[[1.5, 0.0]], [[-3.0, 1.0]]])
    torch.testing.assert_close(absolute_and_square(found, truth), torch.tensor([2.5 / 2 + 4.25 / 2, 4 / 2 + 10 / 2]))


def test_map_and_bands_count_as_said() -> None:
    """A map that is 1 too high everywhere: its error is 1 + 1, that of bands of weight 2 a row is 4 + 16."""
    truth = torch.rand(3, 1, 2, 5)
    model = MeanMap(torch.full((2, 1), 2.0), torch.tensor([0.3]), torch.zeros(2, 5))
    clean = torch.full_like(truth, -1.0)
    batch = Batch(clean, Condition(vector=torch.ones(3, 1)), Draws(0, np.arange(3)))
    for weight in (0.0, 0.5):
        found = Regression(weight).losses(model, batch)
        torch.testing.assert_close(found["map"], torch.full((3,), 2.0))
        torch.testing.assert_close(found["bands"], torch.full((3,), 4.0 + 16.0))
        torch.testing.assert_close(found["loss"], torch.full((3,), 2.0 + weight * 20.0))


def test_a_regression_without_echoes_and_with_a_negative_weight_is_refused() -> None:
    model = MeanMap(torch.ones(2, 1), torch.zeros(1), torch.zeros(2, 5))
    with pytest.raises(UsageError, match="echoes"):
        Regression().losses(model, Batch(torch.zeros(1, 1, 2, 5), None, Draws(0, np.arange(1))))
    with pytest.raises(UsageError, match="bands"):
        Regression(-1.0)
