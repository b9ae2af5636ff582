"""A chest as a continuous, grid-free description, drawn from (config, index), and its picture on any grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lungwave.config import Config
from lungwave.phantom.alveoli import Cells, Columns, Disc, build_cells, draw_seeds, paint_cells, paint_disc
from lungwave.phantom.medium import JITTER_CLIP, TISSUES, Medium, speckle
from lungwave.phantom.pathology import Pathology, category_of, draw_pathology
from lungwave.phantom.wall import LAYERS, Pneumothorax, Wall, draw_wall
from lungwave.repro import stream
from lungwave.types import MM, Mask, UsageError

# The surface of air between two nodes. A node is air from AIR_DEPTH[0] cells outside an airspace on. Its stiffness is 0
# whatever its density, so the density is free to say where the surface lies: on a face between a tissue node and an air
# node the solver takes the mean density, and a surface theta cells from the tissue node wants theta times the tissue's
# density there, hence (2 theta - 1) in the air node. Bounded below, because light faces would need a smaller time step.
# Thresholds chosen on the convergence of Voronoi lungs (docs/results/crosscheck.md).
AIR_DEPTH = (-0.35, -0.25, -0.15, -0.05, 0.05, 0.15)  # [cell] depth of a node inside an airspace, from this value on
AIR_REACH = 0.5  # [cell] the same at the lung surface, where no septum has to survive between two airspaces
AIR_DENSITY = (1.6, 1.4, 1.2, 1.0, 0.8, 0.6)  # of the tissue's, theta = 1 - depth at the middle of each step
# Material of a node: the six layers of the wall, lung septa, and what lies in them.
MATERIALS = (*LAYERS, "septa", "filling", "strand", "bone")
LAYER_TISSUES = ("skin", "fat", "muscle", "connective", "fluid", "visceral pleura")
SEPTA, FILLING, STRAND, BONE = range(len(LAYERS), len(MATERIALS))


@dataclass(frozen=True)
class Anatomy:
    """One chest. Equal anatomies give equal media and aeration maps on every grid."""

    category: str
    base_id: int  # cases of one base share wall and alveolar seeds; splits never part them
    wall: Wall
    pathology: Pathology
    cells: Cells
    open: Bool[np.ndarray, " cell"]  # alveolus holds air
    narrowing: Float[np.ndarray, " cell"]  # [m] layer of filling inside the septum of an open alveolus
    cysts: tuple[Disc, ...]
    properties: Float[np.ndarray, "4 material"]  # sound speed [m/s], density, attenuation [dB/m/MHz], scatter (std)
    texture_seed: int
    texture_pitch: float  # [m]
    half_width: float  # [m] the anatomy is drawn for |x| up to here
    bottom: float  # [m] and to this depth
    parameters: dict[str, Any] = field(default_factory=dict)  # every drawn number, flat and JSON-able


def draw(config: Config, index: int) -> Anatomy:
    """Draw case ``index``. A pure function: streams are keyed by name and by case or base index.

    Wall, rib, alveolar seeds and texture belong to the base; category, severity, lesions, effusion and pneumothorax to
    the case. Raises UsageError for a negative index.
    """
    if index < 0:
        raise UsageError(f"case index is {index}; give 0 or more")
    base = index % config.lung.bases if config.lung.bases > 0 else index
    category = category_of(config, index)
    case = stream(config.seed, "phantom/case", index)
    effusion, pneumothorax = _draw_pleural_space(config, case)
    pathology = draw_pathology(
        config, stream(config.seed, f"phantom/lung/{category}", index), category, effusion or 0.0
    )
    thickened = _draw_thickening(config, case, category)
    has_rib = bool(stream(config.seed, "phantom/rib", base).uniform() < config.lung.rib_probability)
    wall = draw_wall(
        config,
        stream(config.seed, "phantom/wall", base),
        effusion=effusion,
        thickened=thickened,
        irregular=1.5 if category == "fibrosis" else 1.0,
        rib=has_rib,
        pneumothorax=pneumothorax,
    )
    half_width, bottom = extent(config)
    rng = stream(config.seed, "phantom/alveoli", base)
    spacing, ducts = float(rng.uniform(*config.lung.spacing)), float(rng.uniform(*config.lung.duct_fraction))
    margin = 4 * config.lung.spacing[1]
    seeds = draw_seeds(
        rng,
        spacing,
        config.lung.disorder,
        ducts,
        -1.0 * MM,
        bottom - config.wall.pleura_depth[0] + margin,
        half_width + margin,
    )
    cells, seed_of = build_cells(seeds, wall.surface, wall.depth)
    depth = cells.z - wall.surface(cells.x)
    probability = pathology.probability(depth, cells.x)
    # A duct opens as a whole: every member reads chance and probability of the one that names the group.
    leader = _leaders(cells.group, seed_of)
    opened = seeds.chance[cells.group] < probability[leader]
    # Partly filled alveoli lose up to 0.3 spacings of their radius, about 60 %.
    partly = seeds.filled[0, cells.group] < pathology.narrowed(depth, cells.x)[leader]
    narrowing = np.where(partly, 0.3 * spacing * seeds.filled[1, cells.group], 0.0)
    texture = stream(config.seed, "phantom/texture", base)
    properties = _draw_properties(config, texture, pathology)
    cysts = pathology.discs(wall.surface(np.array([x for _, x, _ in pathology.cysts], float)))
    anatomy = Anatomy(
        category, base, wall, pathology, cells, opened, narrowing, cysts, properties,
        int(texture.integers(2**62)), config.wall.texture, half_width, bottom,
    )  # fmt: skip
    anatomy.parameters.update(_describe(anatomy, config, index, spacing, ducts))
    return anatomy


def extent(config: Config) -> tuple[float, float]:
    """Half width and depth [m] that an anatomy covers: every event's window, and the map with its filter's reach."""
    walk = max(0, config.probe.array_elements - config.probe.elements) * config.probe.pitch / 2
    reach = 3.5 * config.map.sigma_smooth
    half = max(config.grid.width / 2 + walk, config.map.columns * config.map.pixel / 2 + reach)
    bottom = max(config.grid.depth, config.wall.pleura_depth[1] + config.map.rows * config.map.pixel + reach)
    return half + 0.5 * MM, bottom + 0.5 * MM


def _draw_pleural_space(config: Config, rng: np.random.Generator) -> tuple[float | None, Pneumothorax | None]:
    chance = rng.uniform(size=2)
    effusion, thickness = float(rng.uniform(*config.wall.effusion)), float(rng.uniform(*config.wall.pneumothorax))
    side, edge = int(rng.choice([-1, 1])), float(rng.uniform(-0.5, 0.5)) * config.map.columns * config.map.pixel
    air = Pneumothorax(edge, side, thickness, taper=min(2.0 * MM, 4 * thickness))
    return (
        effusion if chance[0] < config.lung.effusion_probability else None,
        air if chance[1] < config.lung.pneumothorax_probability else None,
    )


def _draw_thickening(config: Config, rng: np.random.Generator, category: str) -> float | None:
    """Visceral pleura of disease [m]: always thick in fibrosis, in 3 of 10 cases of the other diseases."""
    thick, chance = float(rng.uniform(*config.wall.thickened)), rng.uniform()
    share = {"healthy": 0.0, "fibrosis": 1.0}.get(category, 0.3)
    return thick if chance < share else None


def _leaders(group: Int[np.ndarray, " cell"], seed_of: Int[np.ndarray, " cell"]) -> Int[np.ndarray, " cell"]:
    """Cell whose seed names the group of each cell, or the group's first cell where that seed is not in the lung."""
    first = np.full(int(max(group.max(initial=0), seed_of.max(initial=0))) + 1, -1)
    first[group[::-1]] = np.arange(len(group))[::-1]
    named = np.full(len(first), -1)
    named[seed_of] = np.arange(len(seed_of))
    return np.where(named[group] >= 0, named[group], first[group])


def _draw_properties(config: Config, rng: np.random.Generator, pathology: Pathology) -> Float[np.ndarray, "4 material"]:
    tissues = [TISSUES[name] for name in (*LAYER_TISSUES, pathology.matrix, pathology.filling, "connective", "bone")]
    frequency = config.probe.center_frequency
    table = np.array([(t.sound_speed, t.density, t.linear_attenuation(frequency)) for t in tissues]).T
    factor = (
        1.0
        + np.clip(rng.standard_normal(table.shape), -JITTER_CLIP, JITTER_CLIP) * np.array(config.wall.jitter)[:, None]
    )
    factor[:, BONE] = 1.0  # the time step counts on it
    scatter = rng.uniform(*config.wall.scatter, len(tissues))
    still = [t in (TISSUES["fluid"], TISSUES["bone"]) for t in tissues]
    return np.concatenate([table * factor, np.where(still, 0.0, scatter)[None]])


def _describe(anatomy: Anatomy, config: Config, index: int, spacing: float, ducts: float) -> dict[str, Any]:
    wall, lung = anatomy.wall, anatomy.pathology
    found: dict[str, Any] = {
        "seed": config.seed,
        "index": index,
        "category": anatomy.category,
        "base_id": anatomy.base_id,
    }
    found |= {f"wall.{name}": value for name, value in wall.thickness.items()}
    found |= {
        "wall.pleura_depth": wall.depth,
        "wall.waviness": wall.deep.amplitude,
        "wall.rough": wall.pleura.roughness,
        "wall.fat_strands": wall.fat_strands.fraction,
        "wall.muscle_strands": wall.muscle_strands.fraction,
        "wall.effusion": wall.thickness["fluid"] if lung.compressed > 0 else 0.0,
        "rib": wall.rib is not None,
        "rib.x": wall.rib.x if wall.rib else None,
        "rib.half_width": wall.rib.half_width if wall.rib else None,
        "pneumothorax": wall.pneumothorax is not None,
        "pneumothorax.edge": wall.pneumothorax.edge if wall.pneumothorax else None,
        "pneumothorax.side": wall.pneumothorax.side if wall.pneumothorax else None,
        "pneumothorax.thickness": wall.pneumothorax.thickness if wall.pneumothorax else None,
        "lung.spacing": spacing,
        "lung.duct_fraction": ducts,
        "lung.open_share": lung.open_share,
        "lung.spread": lung.spread,
        "lung.septum": lung.septum,
        "lung.narrow": lung.narrow,
        "lung.wedges": len(lung.wedges),
        "lung.cysts": len(lung.cysts),
        "lesion.x": lung.consolidation.x if lung.consolidation else None,
        "lesion.half_width": lung.consolidation.half_width if lung.consolidation else None,
        "lesion.depth": lung.consolidation.depth if lung.consolidation else None,
        "lesion.air": lung.consolidation.air if lung.consolidation else None,
    }
    for k, wedge in enumerate(lung.wedges):
        found |= {f"wedge.{k}.{name}": getattr(wedge, name) for name in ("x", "width", "depth", "taper", "factor")}
    for k, cyst in enumerate(lung.cysts):
        found |= {f"cyst.{k}.{name}": value for name, value in zip(("depth", "x", "radius"), cyst, strict=True)}
    for row, quantity in enumerate(("sound_speed", "density", "attenuation", "scatter")):
        found |= {f"{quantity}.{name}": float(v) for name, v in zip(MATERIALS, anatomy.properties[row], strict=True)}
    return found


def paint_air(anatomy: Anatomy, where: Columns, dilation: float, upward: float | None = None) -> Mask:
    """Airspaces of the lung on a column raster, grown by ``dilation`` [m], at the lung surface by ``upward``; without
    pneumothorax."""
    roof = Columns(
        where.x, where.first, where.roof - (dilation if upward is None else upward), where.spacing, where.rows
    )
    inset = anatomy.pathology.septum / 2 + anatomy.narrowing - dilation
    air = paint_cells(anatomy.cells, anatomy.open, inset, roof)
    for cyst in anatomy.cysts:
        air &= ~paint_disc(cyst, cyst.radius + cyst.wall - dilation, where)
    for cyst in anatomy.cysts:
        air |= paint_disc(cyst, cyst.radius + dilation, roof)
    return air


@dataclass(frozen=True)
class Grid:
    """Nodes of a solver's grid and the wall's interfaces above them."""

    z: Float[np.ndarray, " z"]  # [m]
    x: Float[np.ndarray, " x"]  # [m]
    faces: Float[np.ndarray, "6 x"]  # [m] ``Wall.interfaces``
    where: Columns


def grid_of(anatomy: Anatomy, spacing: float, depth: float, width: float, x_center: float = 0.0) -> Grid:
    """Nodes that cover ``depth`` by ``width`` [m]: node (0, 0) at z = 0, x = x_center - (nx - 1) / 2 * spacing.

    Raises UsageError where the grid is empty or leaves the drawn anatomy.
    """
    rows, columns = round(depth / spacing), round(width / spacing)
    if rows < 2 or columns < 2:
        raise UsageError(
            f"grid of {rows} x {columns} cells ({depth:g} x {width:g} m at {spacing:g} m); give at least 2 x 2"
        )
    x = x_center + (np.arange(columns) - (columns - 1) / 2) * spacing
    z = np.arange(rows) * spacing
    if max(-x[0], x[-1]) > anatomy.half_width or z[-1] > anatomy.bottom:
        raise UsageError(
            f"grid reaches x {x[0] / MM:.1f}..{x[-1] / MM:.1f} mm and depth {z[-1] / MM:.1f} mm, the anatomy +-"
            f"{anatomy.half_width / MM:.1f} mm and {anatomy.bottom / MM:.1f} mm; draw it with a config of that grid"
        )
    faces = anatomy.wall.interfaces(x)
    return Grid(z, x, faces, Columns(x, np.zeros(columns), faces[-1], spacing, rows))


def rasterise(anatomy: Anatomy, spacing: float, depth: float, width: float, x_center: float = 0.0) -> Medium:
    """The medium on the grid of ``spacing`` [m] that covers ``depth`` by ``width`` [m] around ``x_center``.

    A node is air where its signed distance to an airspace is <= 0.35 * spacing; the density of air nodes places the
    surface between nodes. Where layers of the wall meet inside a cell, it holds their volume average. Raises
    UsageError as ``grid_of`` does.
    """
    grid = grid_of(anatomy, spacing, depth, width, x_center)
    level = air_level(anatomy, grid)
    speed, density, attenuation, scatter = tissue(anatomy, grid)
    contrast = np.where(level > 0, np.float32(0), scatter)
    contrast *= speckle(anatomy.texture_seed, anatomy.texture_pitch, grid.z, grid.x)
    return Medium(
        sound_speed=speed,
        density=density * (1 + contrast) * np.array((1.0, *AIR_DENSITY), np.float32)[level],
        attenuation=attenuation,
        air=(level > 0).astype(np.float32),
        spacing=spacing,
        origin=(0.0, float(grid.x[0])),
    )


def air_level(anatomy: Anatomy, grid: Grid) -> Int[np.ndarray, "z x"]:
    """How many of ``AIR_DEPTH`` each node reaches inside an airspace; 0 = tissue."""
    level = np.zeros((grid.where.rows, len(grid.x)), np.int8)
    for depth in AIR_DEPTH:
        dilation = -depth * grid.where.spacing
        upward = max(dilation, AIR_REACH * grid.where.spacing) if depth == AIR_DEPTH[0] else dilation
        air = paint_air(anatomy, grid.where, dilation, upward)
        if anatomy.wall.pneumothorax is not None:
            gap, top = anatomy.wall.pneumothorax(grid.x), grid.faces[3]
            air |= (gap > 0) & (grid.z[:, None] >= top - dilation) & (grid.z[:, None] <= top + gap + dilation)
        level += air
    return level


def tissue(anatomy: Anatomy, grid: Grid) -> Float[np.ndarray, "4 z x"]:
    """Sound speed, density, attenuation and scatter of every node; cells that layers share hold the volume average."""
    material = materials(anatomy, grid, strands=False)
    properties = anatomy.properties.astype(np.float32)
    nodes = properties[:, material]
    spacing, count = grid.where.spacing, len(LAYERS) + 1
    first, last = grid.faces.min() / spacing - 1, grid.faces.max() / spacing + 2
    band = slice(max(int(first), 0), min(int(last), len(grid.z)))
    upper = (grid.z[band] - spacing / 2).astype(np.float32)[:, None]
    above = np.clip((grid.faces.astype(np.float32)[:, None, :] - upper) / np.float32(spacing), 0, 1)  # (face, z, x)
    shared = ((above > 0) & (above < 1)).any(0) & (material[band] < count)
    none, all_ = np.zeros((1, int(shared.sum())), np.float32), np.ones((1, int(shared.sum())), np.float32)
    share = np.diff(np.concatenate([none, above[:, shared], all_]), axis=0)  # (layer, node); the last is lung tissue
    part = nodes[:, band]
    part[:, shared] = _mix(properties[:, :count], share)
    for rows, inside in _strands(anatomy, grid, material):
        part, touched = nodes[:, rows], inside > 0
        strand = np.broadcast_to(properties[:, [STRAND]], (4, int(touched.sum())))
        part[:, touched] = _mix(
            np.stack([part[:, touched], strand], 1), np.stack([1 - inside[touched], inside[touched]])
        )
    return nodes


def _mix(
    properties: Float[np.ndarray, "4 material *node"], share: Float[np.ndarray, "material node"]
) -> Float[np.ndarray, "4 node"]:
    """Volume average: density, attenuation and scatter add up, and compliance too, since one pressure acts on all."""
    speed, density, attenuation, scatter = (row if row.ndim == 2 else row[:, None] for row in properties)
    mixed = (density * share).sum(0)
    compliance = (share / (density * speed**2)).sum(0)
    return np.stack([1 / np.sqrt(compliance * mixed), mixed, (attenuation * share).sum(0), (scatter * share).sum(0)])


def _strands(
    anatomy: Anatomy, grid: Grid, material: Int[np.ndarray, "z x"]
) -> Iterator[tuple[slice, Float[np.ndarray, "z x"]]]:
    """Rows of fat and of muscle, and the share of each of their cells that strands fill (four points a cell)."""
    quarter = grid.where.spacing / 4
    for layer, strands in ((1, anatomy.wall.fat_strands), (2, anatomy.wall.muscle_strands)):
        here = material == layer
        rows = np.flatnonzero(here.any(1))
        if not len(rows):
            continue
        band = slice(int(rows[0]), int(rows[-1]) + 1)
        points = [(grid.z[band] + dz, grid.x + dx) for dz in (-quarter, quarter) for dx in (-quarter, quarter)]
        yield band, np.mean([strands.on_grid(z, x) for z, x in points], 0, dtype=np.float32) * here[band]


def materials(anatomy: Anatomy, grid: Grid, strands: bool = True) -> Int[np.ndarray, "z x"]:
    """Index into ``MATERIALS`` of every node; airspaces count as the septa around them."""
    rows, columns = grid.where.rows, len(grid.x)
    first = np.ceil(grid.faces / grid.where.spacing).clip(0, rows).astype(np.int64)
    steps = np.bincount((first * columns + np.arange(columns)).ravel(), minlength=(rows + 1) * columns)
    material = np.cumsum(steps.reshape(rows + 1, columns)[:-1].astype(np.int8), axis=0, dtype=np.int8)
    for band, inside in _strands(anatomy, grid, material) if strands else ():
        material[band][inside >= 0.5] = STRAND
    if anatomy.wall.rib is not None:
        bone = anatomy.wall.rib.on_grid(grid.z, grid.x)
        material[bone & ((material < LAYERS.index("fascia")) | (material == STRAND))] = BONE
    if anatomy.pathology.filling != anatomy.pathology.matrix:
        filled = ~anatomy.open | (anatomy.narrowing > 0)
        septum = np.full(len(filled), anatomy.pathology.septum / 2)
        material[paint_cells(anatomy.cells, filled, septum, grid.where)] = FILLING
    return material
