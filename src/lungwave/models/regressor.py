"""Networks that give one map for a recording, where a diffusion model gives a distribution: what it must beat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.models.encoder import TraceEncoder, as_images
from lungwave.models.unet import Condition, UNet
from lungwave.types import UsageError

WIDEST = 4096  # that ``fit_width`` looks at
CLOSE = 0.1  # of a number of parameters that counts as the same


@dataclass(frozen=True)
class Prediction:
    """The one answer to a recording, in network units (``precond.Scaling``)."""

    map: Float[Tensor, "n 1 z x"]
    bands: Float[Tensor, "n out"]  # percent aeration of every depth band, then of the whole


class Regressor(nn.Module):
    """``R(condition) -> Prediction``, differentiable; the first axis of everything is the sample.

    ``weight`` and ``bias`` read the bands off the row means of a map, both in network units.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Float[Tensor, "z out"], bias: Float[Tensor, " out"]) -> None:
        super().__init__()
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def read(self, maps: Float[Tensor, "n 1 z x"]) -> Float[Tensor, "n out"]:
        """Percent aeration of every band and of the whole, as a map shows it."""
        return maps[:, 0].mean(2) @ self.weight + self.bias

    def forward(self, cond: Condition) -> Prediction:
        """Map and bands of every sample."""
        raise NotImplementedError


class MeanMap(Regressor):
    """The mean of the training maps, whatever the echoes say."""

    mean: Tensor

    def __init__(self, weight: Float[Tensor, "z out"], bias: Float[Tensor, " out"], mean: Float[Tensor, "z x"]) -> None:
        super().__init__(weight, bias)
        self.register_buffer("mean", mean.float())

    def forward(self, cond: Condition) -> Prediction:
        """The same for every sample."""
        assert cond.vector is not None
        maps = self.mean.expand(len(cond.vector), 1, *self.mean.shape)
        return Prediction(maps, self.read(maps))


class UNetRegressor(Regressor):
    """The network of the diffusion model without its noisy map: images, traces and numbers in, the map out.

    It differs from the diffusion model in the loss alone. ``net`` takes no channels beside the conditioning images.
    """

    def __init__(
        self,
        weight: Float[Tensor, "z out"],
        bias: Float[Tensor, " out"],
        net: UNet,
        encoder: TraceEncoder | None = None,
        images: bool = True,
    ) -> None:
        super().__init__(weight, bias)
        if net.config.in_channels or net.config.out_channels != 1:
            raise UsageError(
                f"a regressor's network has 0 channels in beside its images and 1 out, "
                f"not {net.config.in_channels} and {net.config.out_channels}"
            )
        self.net, self.encoder, self.images = net, encoder, images

    def forward(self, cond: Condition) -> Prediction:
        """The map, and the bands that it shows."""
        told = as_images(cond, self.encoder, self.images)
        assert told.image is not None
        nothing = told.image[:, :0]
        maps = self.net(nothing, nothing.new_zeros(len(nothing)), replace(told, label=None)).float()
        return Prediction(maps, self.read(maps))


def parameters_of(network: nn.Module) -> int:
    """How many numbers a network learns."""
    return sum(value.numel() for value in network.parameters())


def fit_width(make: Callable[[int], nn.Module], parameters: int, step: int = 1) -> int:
    """The width, a multiple of ``step``, whose network ``make(width)`` has the nearest number of ``parameters``.

    Networks are compared at the same number of parameters; they are made without storage here. UsageError where even
    the nearest differs by more than a tenth.
    """

    def count(width: int) -> int:
        with torch.device("meta"):
            return parameters_of(make(width))

    low, high = 0, 1  # in steps: too small, large enough
    while count(high * step) < parameters:
        low, high = high, 2 * high
        if high * step > WIDEST:
            raise UsageError(f"{parameters} parameters need a width above {WIDEST}; give fewer")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < parameters else (low, middle)
    found = {width: count(width) for width in (low * step, high * step) if width}
    best = min(found, key=lambda width: abs(found[width] - parameters))
    if abs(found[best] - parameters) > CLOSE * parameters:
        near = " and ".join(f"{number} at width {width}" for width, number in found.items())
        raise UsageError(f"no width gives {parameters} parameters within {CLOSE:.0%}, nearest are {near}; give another")
    return best
