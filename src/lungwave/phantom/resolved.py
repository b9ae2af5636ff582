"""Resolved maps: what the solver's grid holds below the pleura, node by node, so that waves can be sent through it.

Channel 0 says what a node is: 0 = tissue, ``AIR`` to 1 = air, by the levels with which ``anatomy`` places the surface
of air between nodes. The gap between is wide, so that a map that is almost right says clearly which is which; in it
the stiffness of the forward model falls evenly, so that every node has a slope. Channel 1 says how fast the tissue
there carries sound, 0 = the slowest and 1 = the fastest that the configuration can draw. Maps are pleura-flattened:
row 0 is the first node that can be air, column by column, so that nothing of the wall is in them, and the grid's nodes
come back exactly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int

from lungwave.config import Config
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_REACH, Anatomy, air_level, grid_of, tissue
from lungwave.phantom.medium import max_sound_speed, min_sound_speed
from lungwave.types import MM, UsageError

LEVELS = len(AIR_DENSITY)  # of a node's depth in air
INSIDE = 4  # level from which on a node lies inside an airspace, not beside it
AIR = 0.7  # least value of a node that is air
CHANNELS = 2  # air, sound speed
REACH = 2.4 * MM  # [m] of lung in a resolved map: below, the echoes of aerated lungs tell next to nothing
WHOLE = 8  # rows come in multiples, so that a network's levels can halve them


def resolved_size(config: Config) -> tuple[int, int]:
    """Rows and columns of the resolved maps; UsageError where the grid ends above them."""
    grid = config.grid
    if grid.depth < config.wall.pleura_depth[1] + REACH:
        raise UsageError(
            f"grid.depth {grid.depth / MM:g} mm ends less than {REACH / MM:g} mm below the deepest pleura "
            f"({config.wall.pleura_depth[1] / MM:g} mm); deepen it"
        )
    return round(REACH / grid.spacing) // WHOLE * WHOLE, round(grid.width / grid.spacing)


def resolved_config(config: Config) -> Config:
    """The configuration whose maps lie on the solver's grid, as large as resolved ones."""
    rows, columns = resolved_size(config)
    return replace(config, map=replace(config.map, pixel=config.grid.spacing, rows=rows, columns=columns))


def shown_config(config: Config) -> Config:
    """The configuration whose macroscopic maps and depth bands end where resolved maps do.

    UsageError where a pixel is not made of whole cells of the solver's grid.
    """
    cells = config.map.pixel / config.grid.spacing
    if abs(cells - round(cells)) > 1e-6:
        raise UsageError(
            f"a pixel of {config.map.pixel:g} m is not whole cells of {config.grid.spacing:g} m; set map.pixel"
        )
    rows = resolved_size(config)[0] // round(cells)
    bands = tuple(edge for edge in config.map.bands if edge <= rows * config.map.pixel + 1e-9)
    return replace(config, map=replace(config.map, rows=rows, bands=bands))


def first_depth(anatomy: Anatomy, config: Config) -> Float[np.ndarray, " x"]:
    """Upper edge [m] of the first row of a lung's resolved map."""
    grid = grid_of(anatomy, config.grid.spacing, config.grid.depth, config.grid.width)
    return (first_rows(anatomy.wall.surface(grid.x), config.grid.spacing) - 0.5) * config.grid.spacing


def first_rows(surface: Float[np.ndarray, " x"], spacing: float) -> Int[np.ndarray, " x"]:
    """Row of the first node that can be air in every column: as far above the lung surface [m] as air is painted."""
    return np.ceil(surface / spacing - AIR_REACH - 1e-9).astype(np.int64)


def flatten(field: Float[np.ndarray, "z x"], first: Int[np.ndarray, " x"], rows: int) -> Float[np.ndarray, "row x"]:
    """Columns of a field of the grid from their first lung node on; the deepest node is repeated below the grid."""
    at = np.minimum(first[None] + np.arange(rows)[:, None], len(field) - 1)
    return np.take_along_axis(field, at, 0)


def resolved(anatomy: Anatomy, config: Config) -> Float[np.ndarray, "2 row x"]:
    """The resolved map of a lung, fractions 0-1, on the grid of ``config``."""
    grid, rows = grid_of(anatomy, config.grid.spacing, config.grid.depth, config.grid.width), resolved_size(config)[0]
    first = first_rows(anatomy.wall.surface(grid.x), config.grid.spacing)
    slow, fast = min_sound_speed(config), max_sound_speed(config)
    speed = np.clip((tissue(anatomy, grid)[0] - slow) / (fast - slow), 0, 1)
    return np.stack([flatten(air_value(air_level(anatomy, grid)), first, rows), flatten(speed, first, rows)])


def air_value(level: Int[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Value of channel 0 for a level of air, 0 = tissue to ``LEVELS``."""
    return np.where(level > 0, AIR + (1 - AIR) * (level - 1) / (LEVELS - 1), 0.0)


def airspace(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """1 where channel 0 says that a node lies inside an airspace, else 0; their mean is the percent aeration."""
    return (values > air_value(np.array([INSIDE - 1, INSIDE])).mean()).astype(float)
