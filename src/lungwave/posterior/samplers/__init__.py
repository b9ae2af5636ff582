"""Samplers of p(map | recording) that ask the forward model: one file each, one signature for all.

``sampler(problem, randomness, **settings) -> Guided``. The first four sample the posterior, to an error that the page
"Is my posterior right?" shows; the others are the literature's baselines, in their own form.
"""

from __future__ import annotations

from collections.abc import Callable

from lungwave.posterior.samplers.daps import daps
from lungwave.posterior.samplers.daps_rto import daps_rto
from lungwave.posterior.samplers.diffpir import diffpir
from lungwave.posterior.samplers.dps import dps
from lungwave.posterior.samplers.inner import Inner
from lungwave.posterior.samplers.lbfgs_tv import lbfgs_tv
from lungwave.posterior.samplers.mmps import mmps, sda
from lungwave.posterior.samplers.pnpdm_rto import pnpdm_rto
from lungwave.posterior.samplers.problem import Guided, Level, Problem, Unknown
from lungwave.posterior.samplers.red_diff import red_diff
from lungwave.posterior.samplers.tds import tds

SAMPLERS: dict[str, Callable[..., Guided]] = {
    "daps_rto": daps_rto,
    "mmps": mmps,
    "pnpdm_rto": pnpdm_rto,
    "tds": tds,
    "sda": sda,
    "dps": dps,
    "diffpir": diffpir,
    "red_diff": red_diff,
    "daps": daps,
    "lbfgs_tv": lbfgs_tv,
}

__all__ = ["SAMPLERS", "Guided", "Inner", "Level", "Problem", "Unknown", *SAMPLERS]
