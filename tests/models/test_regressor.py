"""One contract of networks that answer with one map, and widths that make them equally large."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lungwave.models.fno import FNOConfig, FNORegressor
from lungwave.models.regressor import MeanMap, UNetRegressor, fit_width, parameters_of
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.types import UsageError

SIZE = (8, 12)
WEIGHT, BIAS = torch.linspace(-1, 1, SIZE[0] * 2).reshape(SIZE[0], 2), torch.tensor([0.25, -0.5])
PLACES = torch.stack(torch.meshgrid(torch.zeros(3), torch.linspace(-1, 1, 8), indexing="ij"), -1).flip(2)


def unet(channels: int = 8, images: int = 3) -> UNetRegressor:
    network = UNetConfig(0, 1, channels, (1, 2), 1, strides=((2, 2),), heads=2, image_channels=images, vector=4)
    return UNetRegressor(WEIGHT, BIAS, UNet(network))


def operator(width: int) -> FNORegressor:
    return FNORegressor(WEIGHT, BIAS, FNOConfig(SIZE, 64, width=width), PLACES)


def test_a_network_says_what_its_map_shows() -> None:
    torch.manual_seed(0)
    made = unet()
    cond = Condition(image=torch.randn(2, 3, *SIZE), vector=torch.randn(2, 4))
    assert not made(cond).map.any()  # before training
    nn.init.normal_(made.net.out[2].weight)
    found = made(cond)
    torch.testing.assert_close(found.bands, found.map[:, 0].mean(2) @ WEIGHT + BIAS)
    assert found.map[0].sub(found.map[1]).abs().max() > 1e-3  # it listens


def test_the_mean_map_never_listens() -> None:
    mean = torch.randn(SIZE)
    found = MeanMap(WEIGHT, BIAS, mean)(Condition(vector=torch.randn(3, 4)))
    torch.testing.assert_close(found.map, mean.expand(3, 1, *SIZE))
    assert parameters_of(MeanMap(WEIGHT, BIAS, mean)) == 0


def test_a_network_that_expects_a_noisy_map_is_no_regressor() -> None:
    with pytest.raises(UsageError, match="0 channels in"):
        UNetRegressor(WEIGHT, BIAS, UNet(UNetConfig(1, 1, 8, (1, 2), 1, image_channels=2)))


@pytest.mark.parametrize(("make", "step", "wanted"), [(operator, 1, 20_000), (operator, 1, 300_000), (unet, 2, 50_000)])
def test_networks_are_made_equally_large(make, step: int, wanted: int) -> None:
    width = fit_width(make, wanted, step)
    sizes = {w: abs(parameters_of(make(w)) - wanted) for w in (width - step, width, width + step) if w > 0}
    assert sizes[width] == min(sizes.values()) <= 0.1 * wanted
    assert width % step == 0


def test_a_number_that_no_width_comes_near_is_refused() -> None:
    with pytest.raises(UsageError, match="nearest are"):
        fit_width(operator, 150)
    with pytest.raises(UsageError, match="width above"):
        fit_width(lambda width: nn.Linear(1, width), 10**6)
