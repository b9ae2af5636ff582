"""Regression of maps and bands: what a network learns that gives one answer to a recording."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lungwave.training.objective import Task
from lungwave.training.source import Batch
from lungwave.types import UsageError


def absolute_and_square(found: Float[Tensor, "n ..."], truth: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
    """L1 + L2, ``mean |e| + mean e^2``, of each sample."""
    error = (found.float() - truth).flatten(1)
    return error.abs().mean(1) + error.square().mean(1)


@dataclass(frozen=True)
class Regression(Task):
    """L1 + L2 on map and bands in network units: the loss of Luna (arXiv:2501.01157, by its public description).

    The true bands are those that the true map shows (``Regressor.read``), so that both sides of a network learn from
    the same truth. Luna's maps have L1 alone, or cross-entropy and structural similarity.
    """

    bands: float = 1.0  # weight of the bands beside the map

    def __post_init__(self) -> None:
        if not 0 <= self.bands < float("inf"):
            raise UsageError(f"weight of the bands {self.bands:g} must be 0 or greater")

    def facts(self) -> dict[str, Any]:
        """The settings."""
        return {"name": "regression", **asdict(self)}

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``loss`` of each image, and its two parts."""
        if batch.cond is None:
            raise UsageError("a regression needs echoes beside its maps; train it on cases")
        wrapped: Any = model  # a Regressor, or what torch.compile makes of one
        found = wrapped(batch.cond)
        of_map = absolute_and_square(found.map, batch.clean)
        of_bands = absolute_and_square(found.bands, wrapped.read(batch.clean))
        return {"loss": of_map + self.bands * of_bands, "map": of_map, "bands": of_bands}
