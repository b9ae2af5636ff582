"""Alveoli: blue-noise seeds, Voronoi airspaces with septa, ducts, and their exact painting on any grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import Delaunay

Surface = Callable[[np.ndarray], np.ndarray]
HEXAGON = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1))  # neighbours in axial coordinates


@dataclass(frozen=True)
class Seeds:
    """Centres of alveoli in the base anatomy, before the lung surface and disease are known."""

    depth: Float[np.ndarray, " seed"]  # [m] below the mean lung surface
    x: Float[np.ndarray, " seed"]  # [m]
    group: Int[np.ndarray, " seed"]  # alveoli of one duct share a number; there is no septum between them
    chance: Float[np.ndarray, " seed"]  # uniform; a group is open where the aeration probability exceeds it
    filled: Float[np.ndarray, "2 seed"]  # uniform; whether and how far a group is narrowed by what fills it in disease
    spacing: float  # [m] mean distance of neighbours


def draw_seeds(
    rng: np.random.Generator, spacing: float, disorder: float, ducts: float, top: float, bottom: float, half: float
) -> Seeds:
    """Hexagonal lattice of ``spacing`` [m], turned at random, each point displaced by ``disorder`` * spacing (std).

    Covers depths ``top`` to ``bottom`` and |x| <= ``half`` [m]. A share ``ducts`` of the points is joined with
    neighbours to ducts of 2 to 6 alveoli.
    """
    reach = int(np.ceil(np.hypot(max(-top, bottom), half) / (spacing * np.sqrt(3) / 2))) + 2
    reach_depth = (top + bottom) / 2
    q, r = np.meshgrid(np.arange(-2 * reach, 2 * reach + 1), np.arange(-reach, reach + 1))
    q = q - (r // 2)
    turn = rng.uniform(0, np.pi / 3)
    u, v = spacing * (q + r / 2), spacing * np.sqrt(3) / 2 * r
    z, x = np.cos(turn) * v + np.sin(turn) * u + reach_depth, np.cos(turn) * u - np.sin(turn) * v
    inside = (z >= top) & (z <= bottom) & (np.abs(x) <= half)
    axial = np.stack([q[inside], r[inside]], 1)
    z, x = z[inside], x[inside]
    shift = np.clip(rng.standard_normal((2, len(z))), -2.5, 2.5) * disorder * spacing
    return Seeds(
        z + shift[0],
        x + shift[1],
        _join_ducts(rng, axial, ducts),
        rng.uniform(size=len(z)),
        rng.uniform(size=(2, len(z))),
        spacing,
    )


def _join_ducts(rng: np.random.Generator, axial: np.ndarray, share: float) -> np.ndarray:
    """Group number of each lattice point: single points, or connected chains of 2 to 6."""
    count = len(axial)
    group = np.arange(count)
    index = {(int(q), int(r)): i for i, (q, r) in enumerate(axial)}
    free = np.ones(count, bool)
    joined = 0
    for start in rng.permutation(count):
        if joined >= share * count:
            break
        if not free[start]:
            continue
        members = [int(start)]
        size = int(rng.integers(2, 7))
        for step in rng.integers(0, 6, 3 * size):
            q, r = axial[members[-1]] + HEXAGON[step]
            near = index.get((int(q), int(r)))
            if near is not None and free[near] and near not in members:
                members.append(near)
            if len(members) == size:
                break
        if len(members) > 1:
            free[members] = False
            group[members] = start
            joined += len(members)
    return group


@dataclass(frozen=True)
class Cells:
    """Voronoi cells below the lung surface, each an intersection of half-planes: a column crosses it in one interval.

    Half-plane k of cell i keeps, at lateral position x, depths z <= edge + slope * x - margin * inset (``upper``) or
    z >= (``lower``); unused places hold +-infinity. A cell of a duct is bounded only by alveoli outside its duct, and
    the duct is the union of its cells.
    """

    z: Float[np.ndarray, " cell"]  # [m] seed
    x: Float[np.ndarray, " cell"]  # [m] seed
    group: Int[np.ndarray, " cell"]
    x_min: Float[np.ndarray, " cell"]  # [m] lateral extent
    x_max: Float[np.ndarray, " cell"]  # [m]
    lower: Float[np.ndarray, "3 cell low"]  # (edge [m], slope, margin) of half-planes that bound from above
    upper: Float[np.ndarray, "3 cell up"]


@dataclass(frozen=True)
class Disc:
    """A round airspace with a wall of its own: a cyst."""

    z: float  # [m]
    x: float  # [m]
    radius: float  # [m]
    wall: float  # [m]


@dataclass(frozen=True)
class Columns:
    """Where to paint: column j at ``x[j]``, its row i at ``first[j] + i * spacing``."""

    x: Float[np.ndarray, " x"]  # [m] evenly spaced
    first: Float[np.ndarray, " x"]  # [m] depth of row 0
    roof: Float[np.ndarray, " x"]  # [m] depth of the lung surface
    spacing: float  # [m] of the rows
    rows: int


def build_cells(seeds: Seeds, surface: Surface, mean_depth: float) -> tuple[Cells, Int[np.ndarray, " cell"]]:
    """Voronoi cells of the seeds below ``surface``, with the index of the seed of each.

    Seeds nearer than a quarter spacing to the surface are dropped and the uppermost ones mirrored in it, so that
    subpleural cells end at the pleura. Cells at the rim of the drawn region are unbounded and left out.
    """
    z, x = seeds.depth + mean_depth, seeds.x
    below = z - surface(x)
    kept = np.flatnonzero(below > 0.25 * seeds.spacing)
    near = kept[below[kept] < 2.0 * seeds.spacing]
    real = len(kept)
    points = np.stack([np.concatenate([z[kept], z[near] - 2 * below[near]]), np.concatenate([x[kept], x[near]])], 1)
    mesh = Delaunay(points)
    center = _circumcenters(points, mesh.simplices)
    extent = np.stack([np.full(len(points), np.inf), np.full(len(points), -np.inf)])
    for corner in range(3):
        np.minimum.at(extent[0], mesh.simplices[:, corner], center)
        np.maximum.at(extent[1], mesh.simplices[:, corner], center)
    rim = np.zeros(len(points), bool)
    rim[mesh.convex_hull.ravel()] = True
    cells = np.flatnonzero(~rim[:real])
    owner, other, extent = _bounds(mesh, seeds.group[kept], cells, real, extent)
    place = np.full(real, -1)
    place[cells] = np.arange(len(cells))
    lower, upper = _half_planes(points, owner, other, place, len(cells))
    built = Cells(
        points[cells, 0], points[cells, 1], seeds.group[kept][cells], extent[0, cells], extent[1, cells], lower, upper
    )
    return built, kept[cells]


def _circumcenters(points: np.ndarray, simplices: np.ndarray) -> np.ndarray:
    """Lateral position of the Voronoi vertices, one a triangle."""
    a, b, c = (points[simplices[:, k]] for k in range(3))
    ab, ac = b - a, c - a
    twice = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    return a[:, 1] + (ab[:, 0] * (ac**2).sum(1) - ac[:, 0] * (ab**2).sum(1)) / np.where(twice == 0, np.inf, twice)


def _bounds(
    mesh: Delaunay, group: np.ndarray, cells: np.ndarray, real: int, extent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (cell, bounding seed): Voronoi neighbours, and for a duct the neighbours of the whole duct."""
    start, neighbours = mesh.vertex_neighbor_vertices
    owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
    single = np.bincount(group, minlength=int(group.max(initial=0)) + 1)[group] == 1
    wanted = np.zeros(len(start) - 1, bool)
    wanted[cells] = single[cells]
    keep = wanted[owner] & (neighbours < real)
    owners, others = [owner[keep]], [neighbours[keep]]
    extent = extent.copy()
    in_ducts = np.flatnonzero(~single)
    in_ducts = in_ducts[np.argsort(group[in_ducts], kind="stable")]
    is_cell = np.zeros(real, bool)
    is_cell[cells] = True
    for members in np.split(in_ducts, np.flatnonzero(np.diff(group[in_ducts])) + 1) if len(in_ducts) else ():
        around = np.unique(np.concatenate([neighbours[start[m] : start[m + 1]] for m in members]))
        around = around[(around < real) & ~np.isin(around, members)]
        extent[0, members], extent[1, members] = extent[0, members].min(), extent[1, members].max()
        for m in members[is_cell[members]]:
            owners.append(np.full(len(around), m))
            others.append(around)
    return np.concatenate(owners), np.concatenate(others), extent


def _half_planes(
    points: np.ndarray, owner: np.ndarray, other: np.ndarray, place: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Bisectors as bounds on z, padded to one width: (edge, slope, margin) for lower and for upper bounds."""
    away = points[other] - points[owner]
    away /= np.linalg.norm(away, axis=1, keepdims=True)
    away[:, 0] = np.where(np.abs(away[:, 0]) < 1e-9, 1e-9, away[:, 0])
    middle = (away * (points[owner] + points[other]) / 2).sum(1)
    line = np.stack([middle / away[:, 0], -away[:, 1] / away[:, 0], 1 / away[:, 0]])
    packed = []
    for side, empty in ((away[:, 0] < 0, -np.inf), (away[:, 0] > 0, np.inf)):
        cell = place[owner[side]]
        order = np.argsort(cell, kind="stable")
        cell = cell[order]
        used = np.bincount(cell, minlength=count)
        slot = np.arange(len(cell)) - np.repeat(np.cumsum(used) - used, used)
        block = np.zeros((3, count, int(used.max(initial=1))))
        block[0] = empty
        block[:, cell, slot] = line[:, side][:, order]
        packed.append(block)
    return packed[0], packed[1]


def paint_cells(
    cells: Cells, chosen: Bool[np.ndarray, " cell"], inset: Float[np.ndarray, " cell"], where: Columns
) -> Bool[np.ndarray, "z x"]:
    """Which nodes lie in the chosen cells, each shrunk by ``inset`` [m] from its bounds and cut off at the roof.

    A node is painted where its signed distance to the half-planes of the cell is <= -inset; a negative inset dilates.
    """
    pick = np.flatnonzero(chosen)
    step = where.x[1] - where.x[0]
    grow = np.maximum(0.0, -inset[pick])
    first = np.ceil((cells.x_min[pick] - grow - where.x[0]) / step - 1e-9).clip(0, len(where.x)).astype(np.int64)
    last = np.floor((cells.x_max[pick] + grow - where.x[0]) / step + 1e-9).clip(-1, len(where.x) - 1).astype(np.int64)
    width = np.maximum(0, last - first + 1)
    cell = np.repeat(pick, width)
    column = np.arange(len(cell)) - np.repeat(np.cumsum(width) - width, width) + np.repeat(first, width)
    x, shrink = where.x[column], inset[cell]
    top = where.roof[column]
    for edge, slope, margin in np.moveaxis(cells.lower, 2, 0):
        np.maximum(top, edge[cell] + slope[cell] * x - margin[cell] * shrink, out=top)
    bottom = np.full(len(cell), np.inf)
    for edge, slope, margin in np.moveaxis(cells.upper, 2, 0):
        np.minimum(bottom, edge[cell] + slope[cell] * x - margin[cell] * shrink, out=bottom)
    return paint_intervals(column, top, bottom, where)


def paint_disc(disc: Disc, radius: float, where: Columns) -> Bool[np.ndarray, "z x"]:
    """Which nodes below the roof lie within ``radius`` [m] of the disc's centre."""
    column = np.flatnonzero(np.abs(where.x - disc.x) < radius)
    half = np.sqrt(radius**2 - (where.x[column] - disc.x) ** 2)
    return paint_intervals(column, np.maximum(disc.z - half, where.roof[column]), disc.z + half, where)


def paint_intervals(
    column: Int[np.ndarray, " n"], top: Float[np.ndarray, " n"], bottom: Float[np.ndarray, " n"], where: Columns
) -> Bool[np.ndarray, "z x"]:
    """Nodes covered by at least one interval [top, bottom] of a column [m]."""
    begin = np.ceil((top - where.first[column]) / where.spacing).clip(0, where.rows).astype(np.int64)
    end = np.floor((bottom - where.first[column]) / where.spacing).clip(-1, where.rows - 1).astype(np.int64) + 1
    real = end > begin
    base = column[real] * (where.rows + 1)
    size = len(where.x) * (where.rows + 1)
    change = np.bincount(base + begin[real], minlength=size) - np.bincount(base + end[real], minlength=size)
    depth = np.cumsum(change.reshape(len(where.x), where.rows + 1)[:, :-1].astype(np.int16), axis=1)
    return (depth > 0).T
