"""Lung aeration maps, with their uncertainty, from the raw echoes of an ultrasound probe.

The public names load when they are first used, so that ``import lungwave`` costs next to nothing:
``preset`` and ``Config`` fix a run; ``draw``, ``rasterise`` and ``truth`` make a lung; ``Simulator`` makes its echoes;
``Recording`` and ``reconstruct`` turn RF into an aeration map.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lungwave.acoustics.forward import Simulator as Simulator
    from lungwave.acoustics.probe import Recording as Recording
    from lungwave.acoustics.probe import Scan as Scan
    from lungwave.config import Config as Config
    from lungwave.config import preset as preset
    from lungwave.phantom.aeration import truth as truth
    from lungwave.phantom.aeration import truth_spacing as truth_spacing
    from lungwave.phantom.anatomy import draw as draw
    from lungwave.phantom.anatomy import rasterise as rasterise
    from lungwave.posterior.reconstruct import reconstruct as reconstruct
    from lungwave.types import LungwaveError as LungwaveError
    from lungwave.types import UsageError as UsageError

__version__ = "0.1.0"

_HOME = {
    "Config": "config",
    "LungwaveError": "types",
    "Recording": "acoustics.probe",
    "Scan": "acoustics.probe",
    "Simulator": "acoustics.forward",
    "UsageError": "types",
    "draw": "phantom.anatomy",
    "preset": "config",
    "rasterise": "phantom.anatomy",
    "reconstruct": "posterior.reconstruct",
    "truth": "phantom.aeration",
    "truth_spacing": "phantom.aeration",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lungwave' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"lungwave.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
