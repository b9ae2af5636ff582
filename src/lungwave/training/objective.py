"""What a training minimises: tasks, and the denoising loss over all noise levels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.models.unet import Condition
from lungwave.training.source import Batch
from lungwave.types import UsageError

Weight = Literal["edm", "soft-min-snr"]
MOST_LEVELS = 64
FARTHEST = 20.0  # |ln sigma|; its square and fourth power still fit float32


class Task(ABC):
    """A loss; what it learns beside the network's weights is its state."""

    @abstractmethod
    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Values of each image of the batch: ``loss``, whose mean is minimised, and others for the log."""

    def facts(self) -> dict[str, Any]:
        """Settings that a resumed training must find unchanged, as JSON knows them."""
        return {}

    def observe(self, values: Mapping[str, Tensor]) -> None:
        """See what ``losses`` gave for the whole batch of all ranks, after the step."""
        return

    def state(self) -> dict[str, Tensor]:
        """What must be stored to go on."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state`` gave."""
        return


def squared_error(
    model: nn.Module,
    clean: Float[Tensor, "n c z x"],
    noise: Float[Tensor, "n c z x"],
    sigma: Float[Tensor, " n"],
    cond: Condition | None = None,
) -> Float[Tensor, " n"]:
    """Mean squared error of the denoised map, ``|D(x0 + sigma noise) - x0|^2``, per image [network units squared]."""
    noisy = clean + sigma[:, None, None, None] * noise
    return (model(noisy, sigma, cond).float() - clean).square().mean((1, 2, 3))


@dataclass(frozen=True)
class Denoising(Task):
    """Denoising loss over log-normal noise levels (Karras et al. 2022, arXiv:2206.00364, eq. 2 and table 1).

    ``edm`` weighs with ``1 / c_out^2`` of the model's parametrisation, so that the network's own output has unit
    weight at every noise level. ``soft-min-snr`` weighs with ``1 / (sigma^2 + sigma_data^2)`` (Crowson et al. 2024,
    arXiv:2401.11605, section 3.4), which gives less to low noise.
    """

    p_mean: float = -1.2  # mean of ln sigma
    p_std: float = 1.2  # standard deviation of ln sigma
    weight: Weight = "edm"
    levels: int = 1  # noise levels of each image in a step; its condition is made and encoded once for all of them

    def __post_init__(self) -> None:
        if not 1 <= self.levels <= MOST_LEVELS:
            raise UsageError(f"levels {self.levels} must lie between 1 and {MOST_LEVELS}")
        if not self.p_std > 0:
            raise UsageError(f"p_std {self.p_std:g} must be greater than 0")
        far = abs(self.p_mean) + 6 * self.p_std  # no training image of 10^8 lies farther out
        if not far <= FARTHEST:
            raise UsageError(
                f"p_mean {self.p_mean:g} with p_std {self.p_std:g} gives noise levels that float32 cannot hold; keep "
                f"|p_mean| + 6 p_std at {FARTHEST:g} or less"
            )

    def facts(self) -> dict[str, Any]:
        """The settings."""
        return {"name": "denoising", **asdict(self)}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``loss`` of each image, its mean over the levels; ``sigma``, the first of them.

        Several levels are one in each of as many equal shares of the distribution.
        """
        if self.levels == 1:
            clean, noise, quantile = batch.clean, batch.normal("noise"), batch.uniform("sigma")
        else:
            clean = batch.clean.repeat(self.levels, 1, 1, 1)
            noise = torch.cat([batch.normal(f"noise {k}") for k in range(self.levels)])
            first = batch.uniform("sigma").double()
            quantile = torch.cat([(first + k) / self.levels for k in range(self.levels)])
        sigma = (self.p_mean + self.p_std * torch.special.ndtri(quantile)).exp().float()
        error = squared_error(model, clean, noise, sigma, batch.cond)
        loss = (self.weights(model, sigma) * error).view(self.levels, -1).mean(0)
        return {"loss": loss, "sigma": sigma[: len(batch)]}

    def weights(self, model: nn.Module, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Weight of the squared error at each noise level."""
        wrapped: Any = model  # a Preconditioned or Wiener, or what torch.compile makes of one
        if self.weight == "soft-min-snr":
            return 1 / (sigma**2 + wrapped.sigma_data**2)
        return wrapped.error_scale(sigma) ** -2
