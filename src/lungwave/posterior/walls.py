"""The chest wall above a resolved lung: known, or estimated and its errors marginalised.

What an estimated wall makes wrong is learned as part of the noise, as is everything that the forward model leaves out
(``discrepancy``): from simulated lungs whose walls are known, recorded, and estimated as if they were not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.receive import echo_rms
from lungwave.config import Config
from lungwave.data.generate import received, simulate_case
from lungwave.phantom.aeration import map_columns
from lungwave.phantom.anatomy import Anatomy, rasterise
from lungwave.phantom.medium import TISSUES, Medium
from lungwave.phantom.resolved import first_rows, resolved
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.echoes import reader_of
from lungwave.posterior.lung import LungForward
from lungwave.posterior.resolved import ResolvedModel
from lungwave.progress import Progress
from lungwave.repro import stream

LAYERS = "skin", "fat", "muscle"  # that an average chest wall is made of
LUNGS = 100  # that tell what an estimated wall makes wrong


@dataclass(frozen=True)
class Wall:
    """Everything above the lung."""

    medium: Medium  # on the solver's grid; what it holds below the surface is ignored
    surface: Float[np.ndarray, " x"]  # [m] of the lung, in every column

    @classmethod
    def of(cls, anatomy: Anatomy, config: Config) -> Wall:
        """That of a drawn lung."""
        grid = config.grid
        medium = rasterise(anatomy, grid.spacing, grid.depth, grid.width)
        return cls(medium, anatomy.wall.surface(medium.x))

    @classmethod
    def estimated(cls, rf: Float[np.ndarray, "tx time el"], model: ResolvedModel) -> Wall:
        """One average tissue above the pleura that the model's detector sees; for recordings that say no more."""
        config = model.config
        grid, center = config.grid, config.probe.center_frequency
        found = model.detector.detect(reader_of(model.drawn, model.scan)(np.asarray(rf, np.float32)[None]))[0]
        thick = np.array([np.mean(getattr(config.wall, name)) for name in LAYERS])
        of = [(t.sound_speed, t.density, t.linear_attenuation(center)) for t in (TISSUES[name] for name in LAYERS)]
        shape = (round(grid.depth / grid.spacing), round(grid.width / grid.spacing))
        speed, density, loss = (np.full(shape, v, np.float32) for v in thick @ np.array(of) / thick.sum())
        x = (np.arange(shape[1]) - (shape[1] - 1) / 2) * grid.spacing
        medium = Medium(speed, density, loss, np.zeros(shape, np.float32), grid.spacing, (0.0, float(x[0])))
        return cls(medium, np.interp(x, map_columns(model.drawn.map), found))

    @cached_property
    def top(self) -> Float[np.ndarray, " x"]:
        """Upper edge [m] of the first row of the resolved map."""
        return (first_rows(self.surface, self.medium.spacing) - 0.5) * self.medium.spacing


def wall_errors(model: ResolvedModel, lungs: int = LUNGS, quiet: bool = False, known: bool = False) -> Discrepancy:
    """What the forward model makes wrong under estimated walls, or under ``known`` ones, over the RMS of the echoes.

    From ``lungs`` that neither the training nor anybody else has drawn: half a minute.
    """
    config = replace(model.drawn, seed=int(stream(model.drawn.seed, "walls", 0).integers(2**31)))
    simulator, found, loud = Simulator(config), [], []
    with Progress(lungs, "walls", quiet=quiet) as progress:
        for index in range(lungs):
            case = simulate_case(config, index, simulator)
            wall = Wall.of(case.anatomy, config) if known else Wall.estimated(received(case, config, simulator), model)
            forward = LungForward(model.config, wall.medium, wall.surface, model.scaling)
            nodes = torch.from_numpy(resolved(case.anatomy, config))[None]
            echoes = forward(model.scaling.to_network(nodes).double())[0].numpy()
            found.append(case.rf[:, : forward.samples] - echoes)
            loud.append(echo_rms(case.rf, model.scan, config.receive.echo_start))
            progress.advance()
    return Discrepancy.fit(np.stack(found), np.array(loud))
