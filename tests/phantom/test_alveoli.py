"""Laws of the alveolar field: painting is exact Voronoi geometry, ducts are open inside, seeds are blue noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from lungwave.config import preset
from lungwave.phantom.alveoli import (
    Cells,
    Columns,
    Disc,
    build_cells,
    draw_seeds,
    paint_cells,
    paint_disc,
    paint_intervals,
)
from lungwave.repro import stream
from lungwave.types import MM, UM

SPACING = 0.35 * MM


def _cells(ducts: float = 0.3) -> Cells:
    seeds = draw_seeds(stream(3, "seeds"), SPACING, 0.35, ducts, -1 * MM, 6 * MM, 4 * MM)
    return build_cells(seeds, lambda x: 4 * MM + 0.1 * MM * np.sin(x / MM), 4 * MM)[0]


def _columns(spacing: float = 37 * UM) -> Columns:
    x = np.arange(-2.5 * MM, 2.5 * MM, spacing)
    return Columns(x, np.full(len(x), 4.9 * MM), 4 * MM + 0.1 * MM * np.sin(x / MM), spacing, round(3.5 * MM / spacing))


def _signed_distance(cells: Cells, z: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brute force over all pairs of seeds: (owner, distance inside the nearest wall that no duct removes)."""
    square = (z[:, None] - cells.z) ** 2 + (x[:, None] - cells.x) ** 2
    owner = square.argmin(1)
    inside = np.empty(len(z))
    for i, a in enumerate(owner):
        members = np.flatnonzero(cells.group == cells.group[a])
        others = np.flatnonzero(cells.group != cells.group[a])
        apart = np.hypot(cells.z[members, None] - cells.z[others], cells.x[members, None] - cells.x[others])
        bisector = (square[i, others][None, :] - square[i, members][:, None]) / (2 * apart)
        inside[i] = bisector.min(1).max()
    return owner, inside


@pytest.mark.parametrize("inset", [25 * UM, 0.0, -9 * UM], ids=["septum", "touching", "dilated"])
def test_painting_equals_brute_force_distance(inset: float) -> None:
    cells, where = _cells(), _columns()
    chosen = stream(0, "open").uniform(size=cells.group.max() + 1)[cells.group] < 0.6
    painted = paint_cells(cells, chosen, np.full(len(chosen), inset), where)
    rows, columns = np.meshgrid(np.arange(0, where.rows, 3), np.arange(0, len(where.x), 3), indexing="ij")
    z, x = where.first[columns.ravel()] + rows.ravel() * where.spacing, where.x[columns.ravel()]
    if inset >= 0:
        owner, inside = _signed_distance(cells, z, x)
        expected = chosen[owner] & (inside >= inset)
    else:  # a dilated cell reaches into its neighbours: ask every cell whether the node is near enough
        expected = np.zeros(len(z), bool)
        for g in np.unique(cells.group[chosen]):
            member = cells.group == g
            near = np.flatnonzero(
                np.hypot(z[:, None] - cells.z[member], x[:, None] - cells.x[member]).min(1) < 2 * SPACING
            )
            square = (z[near, None] - cells.z) ** 2 + (x[near, None] - cells.x) ** 2
            apart = np.hypot(cells.z[member, None] - cells.z[~member], cells.x[member, None] - cells.x[~member])
            bisector = (square[:, None, ~member] - square[:, member, None]) / (2 * apart)
            expected[near] |= bisector.min(2).max(1) >= inset
    assert np.array_equal(painted[rows.ravel(), columns.ravel()], expected)


def test_cells_without_septa_tile_the_lung() -> None:
    cells, where = _cells(), _columns()
    everything = paint_cells(cells, np.ones(len(cells.z), bool), np.zeros(len(cells.z)), where)
    assert everything.all()


def test_nothing_is_painted_above_the_roof() -> None:
    cells = _cells()
    x = np.arange(-2.5 * MM, 2.5 * MM, 20 * UM)
    roof = 4 * MM + 0.1 * MM * np.sin(x / MM)
    where = Columns(x, np.full(len(x), 3.5 * MM), roof, 20 * UM, 80)
    air = paint_cells(cells, np.ones(len(cells.z), bool), np.full(len(cells.z), 10 * UM), where)
    depth = where.first[None, :] + np.arange(80)[:, None] * 20 * UM - roof
    assert not air[depth < 0].any()
    assert air[(depth > 0) & (depth < 60 * UM)].mean() > 0.7  # subpleural alveoli touch the pleura


def test_ducts_have_no_septum_inside_and_the_wanted_share() -> None:
    seeds = draw_seeds(stream(1, "seeds"), SPACING, 0.35, 0.3, 0.0, 12 * MM, 6 * MM)
    _, sizes = np.unique(seeds.group, return_counts=True)
    assert sizes.max() <= 6
    assert sizes[sizes > 1].sum() / sizes.sum() == pytest.approx(0.3, abs=0.01)
    cells, where = _cells(0.3), _columns(15 * UM)
    group = np.bincount(cells.group).argmax()
    member = cells.group == group
    duct = paint_cells(cells, member, np.full(len(member), 30 * UM), where)
    alone = sum(
        paint_cells(cells, np.arange(len(member)) == i, np.full(len(member), 30 * UM), where).sum()
        for i in np.flatnonzero(member)
    )
    assert duct.sum() < alone  # members overlap: the septum between them is open


def test_disc_obeys_the_dilation_rule() -> None:
    """A node is air exactly where its distance to the airspace is at most a quarter of the spacing."""
    spacing, radius = 50 * UM, 0.4 * MM
    x = np.arange(-20, 21) * spacing + 7 * UM
    where = Columns(x, np.zeros(len(x)), np.zeros(len(x)), spacing, 60)
    disc = Disc(1.4 * MM, 0.1 * MM, radius, 0.0)
    painted = paint_disc(disc, radius + 0.25 * spacing, where)
    distance = np.hypot((np.arange(60) * spacing - disc.z)[:, None], (x - disc.x)[None, :]) - radius
    assert np.array_equal(painted, distance <= 0.25 * spacing)


def test_overlapping_intervals_paint_their_union() -> None:
    where = Columns(np.array([0.0, 1.0]), np.array([0.0, 0.5]), np.zeros(2), 1.0, 6)
    painted = paint_intervals(
        np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 9.0, 0.4]), np.array([3.0, 4.5, 9.9, 0.6]), where
    )
    assert painted.T.astype(int).tolist() == [[0, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0]]


def test_seeds_are_blue_noise_of_the_wanted_density() -> None:
    config = preset("tiny").lung
    seeds = draw_seeds(stream(2, "seeds"), SPACING, config.disorder, 0.0, 0.0, 20 * MM, 10 * MM)
    inner = (np.abs(seeds.x) < 9 * MM) & (seeds.depth > MM) & (seeds.depth < 19 * MM)
    density = inner.sum() / (18 * MM * 18 * MM)
    assert density == pytest.approx(2 / (np.sqrt(3) * SPACING**2), rel=0.03)
    counts, _, _ = np.histogram2d(seeds.depth[inner], seeds.x[inner], bins=9)
    assert counts.var() / counts.mean() < 0.5  # a Poisson process has 1
    nearest = cKDTree(np.stack([seeds.depth, seeds.x], 1)).query(np.stack([seeds.depth, seeds.x], 1)[inner], 2)[0][:, 1]
    poisson = np.sqrt(np.log(2) / (np.pi * density))
    assert np.median(nearest) > 1.2 * poisson
