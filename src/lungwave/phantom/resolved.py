"""Resolved maps: what the solver's grid holds below the pleura, node by node, so that waves can be sent through it.

Channel 0 says how deep a node lies in air: 0 = tissue, then sixths, the levels by which ``anatomy`` places the surface
of air between nodes. Channel 1 says how fast the tissue there carries sound, 0 = the slowest and 1 = the fastest that
the configuration can draw. Maps are pleura-flattened: row 0 is the first node that can be air, column by column, so
that nothing of the wall is in them, and the grid's nodes come back exactly.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lungwave.config import Config
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_REACH, Anatomy, air_level, grid_of, tissue
from lungwave.phantom.medium import max_sound_speed, min_sound_speed

LEVELS = len(AIR_DENSITY)  # of a node's depth in air
CHANNELS = 2  # depth in air, sound speed
WHOLE = 16  # rows come in multiples, so that a network's levels can halve them


def resolved_size(config: Config) -> tuple[int, int]:
    """Rows and columns of the resolved maps: down to the grid's bottom under the shallowest pleura."""
    grid = config.grid
    rows = int((grid.depth - config.wall.pleura_depth[0]) / grid.spacing + 1e-9)
    return rows // WHOLE * WHOLE, round(grid.width / grid.spacing)


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
    return np.stack([flatten(air_level(anatomy, grid) / LEVELS, first, rows), flatten(speed, first, rows)])
