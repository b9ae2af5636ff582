"""From aligned channel data to images on the map: a temporal network on every trace, attention over the array.

Delay-and-sum assumes that sound was scattered once. In a lung it goes back and forth between alveoli, and what arrives
late knows about the lung above. Here nothing is delayed by a straight ray: every trace is read by itself, and each
column of the map attends to the traces of all transmits and elements by what they hold and by where they were received
(attention pooling; Lee et al. 2019, arXiv:1810.00825).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.models.precond import Denoiser
from lungwave.models.unet import Condition, Size, from_patches, group_norm
from lungwave.types import UsageError

STRIDE = 8  # samples of a trace that make one time of its features
PLACE = 4  # numbers that say where an element is, seen from a column, and which transmit it was


@dataclass(frozen=True)
class EncoderConfig:
    """Everything that decides the encoder."""

    size: Size = (64, 64)  # of the map [pixel]
    patch: Size = (4, 4)  # pixels of the map that the features of one place become
    samples: int = 128  # of an aligned trace
    rows: float = 6.5  # times of the features (of ``STRIDE`` samples) that the map's depth spans
    first: float = 1.5  # the same, from the start of the trace to the pleura
    channels: int = 32  # of the features of a trace
    heads: int = 4
    images: int = 4  # images of the map's size that come out
    dropout: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        object.__setattr__(self, "patch", tuple(self.patch))
        if self.samples % STRIDE or self.channels % self.heads or self.channels % 4:
            raise UsageError(
                f"{self.samples} samples and {self.channels} channels must be divisible by {STRIDE} and by "
                f"{self.heads} heads; choose others"
            )
        if self.size[0] % self.patch[0] or self.size[1] % self.patch[1]:
            raise UsageError(f"maps of {self.size[0]} x {self.size[1]} are not made of patches {self.patch}")

    @property
    def grid(self) -> Size:
        """Patches (z, x) of the map."""
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]


class TraceEncoder(nn.Module):
    """Traces (n, tx, el, time), aligned at the pleura -> images (n, images, z, x).

    ``places`` (tx, el, 2) holds the lateral position of each element [half widths of the map] and the sine of the
    transmit's angle; columns see elements relative to themselves, so that nothing depends on where the array begins.
    """

    places: Tensor

    def __init__(self, config: EncoderConfig, places: Float[Tensor, "tx el 2"]) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("places", places.float())
        width = config.channels
        half = width // 2
        self.temporal = nn.Sequential(
            nn.Conv2d(1, half, (3, 7), (1, 2), (1, 3)), group_norm(half), nn.SiLU(),
            nn.Conv2d(half, width, (3, 5), (1, 2), (1, 2)), group_norm(width), nn.SiLU(),
            nn.Conv2d(width, width, (1, 5), (1, 2), (0, 2)), group_norm(width), nn.SiLU(),
        )  # fmt: skip
        self.key = nn.Linear(width, config.heads)
        self.where = nn.Sequential(nn.Linear(PLACE, width), nn.SiLU(), nn.Linear(width, config.heads))
        self.value = nn.Linear(width, width)
        area = config.patch[0] * config.patch[1]
        self.late = nn.Linear(width, width)
        self.out = nn.Sequential(
            nn.Conv2d(width, width, 3, 1, 1), nn.SiLU(), nn.Dropout(config.dropout),
            nn.Conv2d(width, area * config.images, 1),
        )  # fmt: skip

    def forward(self, traces: Float[Tensor, "n tx el time"]) -> Float[Tensor, "n image z x"]:
        """Images that are aligned with the map."""
        config = self.config
        n, events, elements, _ = traces.shape
        found = self.temporal(traces.reshape(n * events, 1, elements, -1))  # (n tx, c, el, time)
        tokens = found.reshape(n, events, -1, elements, found.shape[-1]).permute(0, 4, 1, 3, 2)  # (n, time, tx, el, c)
        tokens = tokens.reshape(n, found.shape[-1], events * elements, -1)
        score = self.key(tokens)[:, :, None] + self._place_score()[None, None]  # (n, time, column, token, head)
        weight = score.softmax(3)
        value = self.value(tokens).unflatten(3, (config.heads, -1))
        pooled = torch.einsum("ntqkh,ntkhd->nqhdt", weight, value).flatten(2, 3)  # (n, column, c, time)
        image = self._at_rows(pooled).permute(0, 2, 3, 1)  # (n, c, row, column)
        whole = self.late(tokens.mean((1, 2)))
        return from_patches(self.out(image + whole[:, :, None, None]), config.patch)

    def _place_score(self) -> Float[Tensor, "column token head"]:
        """What each column thinks of each element by its place."""
        count = self.config.grid[1]
        column = (torch.arange(count, device=self.places.device) + 0.5) * (2 / count) - 1
        element, sine = self.places.flatten(0, 1).unbind(1)
        off = element - column[:, None]
        seen = torch.stack([off, off.square(), off.abs(), sine.expand_as(off)], -1)
        return self.where(seen.to(self.key.weight.dtype))

    def _at_rows(self, pooled: Float[Tensor, "n column c time"]) -> Float[Tensor, "n column c row"]:
        """Linear interpolation at the times at which sound comes back from the rows of patches, straight there and
        back."""
        rows = self.config.grid[0]
        at = self.config.first + (torch.arange(rows, device=pooled.device) + 0.5) * (self.config.rows / rows) - 0.5
        at = at.clamp(0, pooled.shape[-1] - 1)
        low = at.floor().long().clamp(max=pooled.shape[-1] - 2)
        part = (at - low).to(pooled.dtype)
        return pooled[..., low] * (1 - part) + pooled[..., low + 1] * part


def as_images(cond: Condition, encoder: TraceEncoder | None, images: bool = True) -> Condition:
    """The condition with its traces turned into images by the encoder; ``images=False`` leaves out those it had.

    Without an encoder traces are left out; where the first number of the vector is 0, the encoder is silent.
    """
    if cond.traces is None:
        return cond
    image = cond.image if images else None
    if encoder is not None:
        made = encoder(cond.traces)
        if cond.vector is not None:
            made = made * cond.vector[:, :1, None, None]
        image = made if image is None else torch.cat([image, made], 1)
    return replace(cond, image=image, traces=None)


class Conditional(Denoiser):
    """A denoiser that is told of the echoes: images of its condition, and those that the encoder makes of traces.

    The first number of the condition's vector is 1 where a sample has a condition and 0 where it was dropped; there
    the encoder is silent, so that the same network draws from the prior. ``images=False`` leaves out the images of the
    condition, and no encoder its traces, to learn what each is worth.
    """

    def __init__(self, denoiser: Denoiser, encoder: TraceEncoder | None = None, images: bool = True) -> None:
        super().__init__()
        self.denoiser, self.encoder, self.images = denoiser, encoder, images

    def encode(self, cond: Condition | None) -> Condition | None:
        """The condition with traces turned into images; do it once before sampling."""
        return None if cond is None else as_images(cond, self.encoder, self.images)

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map, given the echoes; ``x`` may hold several maps for each condition, one set after the other."""
        known = self.encode(cond)
        count = 0 if known is None or known.vector is None else len(known.vector)
        if known is not None and count not in (0, len(x)):
            known = known.take(torch.arange(len(x), device=x.device) % count)
        return self.denoiser(x, sigma, known)

    def start(
        self, noise: Float[Tensor, "n c z x"], sigma: float, cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """That of the denoiser."""
        return self.denoiser.start(noise, sigma, cond)

    def error_scale(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """That of the denoiser."""
        return self.denoiser.error_scale(sigma)
