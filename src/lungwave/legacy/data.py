"""Images for the old commands: kept whole by default, as the original showed them behind a flag, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from lungwave.data.mapset import MapSet, read_maps
from lungwave.legacy.flags import Flags
from lungwave.models.unet import Size
from lungwave.types import UsageError


@dataclass(frozen=True)
class Images:
    """Images of one size, and what was done to them."""

    maps: MapSet
    said: str
    folded: bool = True  # False: one channel is shown three times, as the original does
    view: str = "whole"  # whole, scaled, cropped

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def size(self) -> Size:
        """Rows and columns."""
        return self.maps.size

    @property
    def channels(self) -> int:
        """Channels that the network sees."""
        return self.maps.channels if self.folded else 3

    def batch(self, rows: Integer[np.ndarray, " n"]) -> Float[Tensor, "n c z x"]:
        """Images at ``rows``, in [-1, 1]."""
        values = torch.from_numpy(self.maps.fraction(rows)) * 2 - 1
        return values if self.folded else values.expand(-1, 3, -1, -1).contiguous()

    def labels(self, rows: Integer[np.ndarray, " n"]) -> Int[Tensor, " n"]:
        """Class numbers of the images at ``rows``."""
        return torch.from_numpy(self.maps.labels[rows])


def read_images(flags: Flags, side: int) -> Images:
    """Images of ``--data_dir``; ``side`` is the original's ``image_size``. UsageError says what to do instead."""
    if not flags.data_dir:
        raise UsageError("--data_dir is missing; give the folder of the images")
    labels: bool = flags.class_cond
    cropped = read_maps(flags.data_dir, labels=labels, openai_size=side) if flags.openai_crop else None
    view, said = "cropped", f"short side made {side}, centre {side} x {side} cut out (--openai_crop True)"
    if cropped is not None:
        maps = cropped if flags.openai_rgb else _fold(cropped)
    else:
        maps, view, said = _whole(flags, side, labels)
    if labels and (len(maps.classes) == 0 or bool((maps.labels < 0).any())):
        raise UsageError(f"{flags.data_dir}: --class_cond True, but not every image has a class; name it CLASS_NUMBER")
    tripled = flags.openai_rgb and maps.channels == 1
    if flags.openai_rgb and maps.channels not in (1, 3):
        raise UsageError(f"{flags.data_dir}: images have {maps.channels} channels; --openai_rgb True needs 1 or 3")
    rows, columns = maps.size
    count = "3 channels (--openai_rgb True)" if flags.openai_rgb else channels_said(maps.channels)
    said = f"data: {len(maps)} images, {rows} x {columns}, {count}: {said}"
    notes = [] if cropped is not None else [f"note: {note}" for note in maps.notes]
    return Images(maps, "\n".join([said, *notes]), folded=not tripled, view=view)


def _whole(flags: Flags, side: int, labels: bool) -> tuple[MapSet, str, str]:
    try:
        maps = read_maps(flags.data_dir, labels=labels)
    except UsageError as error:
        if " sizes: " not in str(error):
            raise
        raise UsageError(f"{error}, or scale and cut them as the original does: --openai_crop True") from error
    rows, columns = maps.size
    if maps.size == (side, side):
        return maps, "whole", "kept whole"
    if rows == columns and maps.channels == 3 and Path(flags.data_dir).is_dir():
        return read_maps(flags.data_dir, labels=labels, openai_size=side), "scaled", f"scaled from {rows} x {columns}"
    factor = side / min(rows, columns)
    change = "" if factor == 1 else f"enlarge {factor:.3g}x and " if factor > 1 else f"reduce {1 / factor:.3g}x and "
    return maps, "whole", f"kept whole; --openai_crop True would {change}cut out the centre {side} x {side}"


def _fold(maps: MapSet) -> MapSet:
    """One channel where all three are equal; the sets that the original read as RGB may be gray."""
    if not all((maps.maps[i] == maps.maps[i, :1]).all() for i in range(len(maps))):
        return maps
    return MapSet(maps.maps[:, :1], maps.names, maps.labels, maps.classes, maps.groups, maps.notes)


def channels_said(count: int) -> str:
    """1 channel, 3 channels."""
    return f"{count} channel{'s' * (count > 1)}"
