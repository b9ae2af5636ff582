"""Augmentation that obeys the lung's physics and does not leak: the network is told what was done to each map.

Non-leaky augmentation (Karras et al. 2020, arXiv 2006.06676; for diffusion models Karras et al. 2022, arXiv 2206.00364,
appendix F.2): every change comes with a label that is fed to the network, all zeros where nothing was done. Sampling
with zeros draws from the law of the untouched maps, so the changes teach without appearing in samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.types import UsageError

SHIFT, GAIN = 0, 1  # places in the label
LABELS = 2  # width of the label
DRAWS = 5  # random numbers a map


@dataclass(frozen=True)
class Augment:
    """Lateral flip, lateral shift and gain of aeration maps. Never a depth flip: the pleura is on top.

    **Flip**, with probability 1/2 and without a label: a lung drawn by the phantom and its mirror image are equally
    likely, so flipped maps are maps of the same law and there is nothing to leak. ``flip=False`` for maps of one side
    of the body, where that does not hold.

    **Shift** by whole columns, so that nothing is interpolated. What comes in at the edge is the map mirrored about its
    outermost column. Wrapping around instead would put lungs side by side that never touched, with a jump of aeration
    at a sharp vertical seam; mirroring keeps aeration continuous and its local statistics right. Still no lung is
    symmetric about a line, hence the label.

    **Gain** raises aeration to a power 2^g: a whole lung is emptied or filled evenly, while pure tissue (0) and pure
    air (1) stay what they are and nothing leaves 0-1. A factor would fade all-air cells of resolved maps to grey and
    need clipping upwards. It moves the mean, hence the label.
    """

    probability: float = 0.15  # of a shift, and of a gain, for each map by itself
    flip: bool = True
    shift: float = 0.125  # largest shift as a share of the width
    gain: float = 0.5  # largest |g|

    def __post_init__(self) -> None:
        for name, most in (("probability", 1.0), ("shift", 0.5), ("gain", 3.0)):
            if not 0 <= getattr(self, name) <= most:
                raise UsageError(f"augmentation {name} {getattr(self, name):g} must lie between 0 and {most:g}")

    def __call__(
        self, maps: Float[Tensor, "n c z x"], generator: torch.Generator
    ) -> tuple[Float[Tensor, "n c z x"], Float[Tensor, "n k"]]:
        """(maps, labels) of maps that are fractions 0-1; the input is left alone.

        Each map takes ``DRAWS`` numbers of ``generator``, whatever happens to it: a batch cut in two and augmented in
        turn gives the same maps. Raises UsageError for values outside 0-1, which no power of them could stay in.
        """
        if len(maps) and not (float(maps.min()) >= 0.0 and float(maps.max()) <= 1.0):
            raise UsageError(
                f"maps run from {float(maps.min()):g} to {float(maps.max()):g}; augment fractions 0-1, before scaling"
            )
        chance = torch.rand(len(maps), DRAWS, generator=generator, dtype=torch.float64, device=generator.device)
        flipped, shifted, how_far, gained, how_much = chance.to(maps.device).unbind(1)
        labels = torch.zeros(len(maps), LABELS, dtype=maps.dtype, device=maps.device)
        reach = int(self.shift * maps.shape[3])
        step = torch.floor(how_far * (2 * reach + 1)).clamp(max=2 * reach) - reach  # every whole step equally likely
        step = torch.where(shifted < self.probability, step, 0.0)
        if reach:
            labels[:, SHIFT] = (step / reach).to(maps.dtype)
        mirrored = (flipped < 0.5) & self.flip
        moved = _columns(maps, step.long(), mirrored)
        power = torch.where(gained < self.probability, (2 * how_much - 1) * self.gain, 0.0)
        if self.gain:
            labels[:, GAIN] = (power / self.gain).to(maps.dtype)
        exponent = torch.exp2(power).to(maps.dtype)[:, None, None, None]
        return torch.where(exponent == 1, moved, moved**exponent), labels


def _columns(maps: Float[Tensor, "n c z x"], step: Tensor, mirrored: Tensor) -> Float[Tensor, "n c z x"]:
    """Maps moved right by ``step`` columns, mirrored about the outermost columns, after flipping those ``mirrored``."""
    width = maps.shape[3]
    column = torch.arange(width, device=maps.device) - step[:, None]
    period = max(2 * (width - 1), 1)
    column = column.remainder(period)
    column = torch.where(column < width, column, period - column)
    column = torch.where(mirrored[:, None], width - 1 - column, column)
    return maps.gather(3, column[:, None, None, :].expand_as(maps))
