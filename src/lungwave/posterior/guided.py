"""A recording and the chest wall above it in, samples of the resolved lung out, led by the wave equation.

guided     from pure noise, on the prior of resolved lungs; its first levels may be held against an easier problem
           (``continuation``)
hybrid     half of the calls weigh candidates of the learned posterior by how they explain the echoes
           (``samplers.weigh``); the one that is taken is noised a little, then a level on the prior follows with as
           many Gauss-Newton steps as the other half pays for. With ``warm`` at one standard deviation of the prior all
           calls go to levels of one step each. Never on the learned posterior, which has heard the echoes already
refined    these samples, each drawn anew a few times by the same network, told of it and of what it leaves of the
           recording; a call is one propagation then
amortized  the learned samples as they are

The other samplers of ``samplers`` can stand in for ``guided``. Each sample has random streams of its own, so that any
part of them, on any worker, is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from lungwave.acoustics.receive import echo_rms
from lungwave.config import Config
from lungwave.phantom.resolved import airspace
from lungwave.posterior.continuation import Easier
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.likelihood import Noise
from lungwave.posterior.lung import LungForward
from lungwave.posterior.resolved import ResolvedModel
from lungwave.posterior.resolved_pairs import Guess
from lungwave.posterior.samplers import SAMPLERS, Guided, Inner, Level, Problem, Unknown
from lungwave.posterior.samplers.inner import SpectralGuess
from lungwave.posterior.samplers.problem import Run
from lungwave.posterior.samplers.weigh import weigh
from lungwave.posterior.walls import Wall
from lungwave.repro import stream
from lungwave.sample import Seeds, karras
from lungwave.types import UsageError

GUIDED, HYBRID, REFINED, AMORTIZED = "guided", "hybrid", "refined", "amortized"
INNER = Inner(newton=1, gradients=4)
CALLS_A_LEVEL = 1 + INNER.newton * INNER.gradients
# of the wave equation for each sample, unless others are asked for: gradients, and a candidate's propagation for one
CALLS = {GUIDED: 200, HYBRID: 50, REFINED: 3, AMORTIZED: 0}
WARM = 0.1  # network units of noise that a hybrid begins with
HOTTEST, COLDEST = 20.0, 0.05  # first and last noise level


@dataclass(frozen=True)
class Heard:
    """One recording, what is known of it, and what it is held against."""

    rf: Float[np.ndarray, "tx time el"]
    wall: Wall
    noise_std: float  # of the recording's white noise
    discrepancy: Discrepancy | None = None  # in place of the model's, which takes the wall as known

    def noise(self, model: ResolvedModel) -> Noise:
        """Of the recording and of what the forward model leaves out."""
        loud = echo_rms(self.rf, model.scan, model.config.receive.echo_start)
        return (self.discrepancy or model.discrepancy).noise(self.noise_std, loud)


def noise_std(rf: Float[np.ndarray, "tx time el"], model: ResolvedModel) -> float:
    """Standard deviation of the noise, measured while the receiver's switch is closed.

    UsageError where that is silence, as in recordings that were cut or simulated without noise.
    """
    scan, receive = model.scan, model.config.receive
    times = scan.start_times[:, None] + np.arange(rf.shape[1]) / scan.sampling_frequency
    found = float(np.sqrt(np.square(rf, dtype=np.float64)[times < receive.dead_time].mean()))
    if not found > 1e-6 * echo_rms(rf, scan, receive.echo_start):
        raise UsageError("the recording holds no noise before the first echoes; say its size with --noise-db")
    return found


def lead(
    model: ResolvedModel,
    heard: Heard,
    samples: range,
    *,
    method: str = HYBRID,
    calls: int | None = None,
    seed: int = 0,
    name: int = 0,
    unknown: Unknown | None = None,
    warm: float = WARM,
    first: Easier | None = None,
    callback: Callable[[Level], Any] | None = None,
    **how: Any,
) -> Guided:
    """Samples number ``samples`` of the recording ``name``, with ``calls`` of the wave equation for each.

    ``warm`` is the noise [network units] that a hybrid begins with, ``first`` what the first levels of ``guided`` are
    held against instead, ``how`` goes to the sampler. Raises UsageError for an unknown method, calls that make no
    level, or a recording that is not finite; LungwaveError where all samples were lost.
    """
    rf = np.asarray(heard.rf, np.float32)
    if not np.isfinite(rf).all():
        raise UsageError("the RF holds values that are not finite; repair the recording, or leave the frame out")
    if first is not None and method not in (GUIDED, "daps_rto"):
        raise UsageError(f"method '{method}' does not begin with an easier problem; leave first out, or take {GUIDED}")
    spent = CALLS.get(method, CALLS[GUIDED]) if calls is None else calls
    forward = LungForward(model.config, heard.wall.medium, heard.wall.surface, model.scaling)
    early = torch.from_numpy(rf[:, : forward.samples]).double()
    problem = Problem(
        early.expand(len(samples), *early.shape), forward, model.prior, heard.noise(model), model.shape, unknown
    )
    asked = _Asked(model, heard, problem, samples, seed, name)
    same: dict[str, Any] = {"callback": callback, "guess": SpectralGuess(model.inner), "sigma_min": COLDEST, **how}
    with torch.no_grad():
        if method == AMORTIZED:
            return Run(problem, asked.seeds()).finish(asked.learned(samples[0], len(samples)))
        if method == REFINED:
            return _refined(asked, spent)
        if method == HYBRID and warm <= WARM:
            return _weighed(asked, spent, {"sigma_max": warm, **same})
        if method in (GUIDED, HYBRID, "daps_rto"):
            same = {"levels": levels_of(spent), "inner": INNER, **same}
            if method == HYBRID:
                same |= {"start": asked.learned(samples[0], len(samples)), "sigma_max": warm}
            elif first is not None:
                return _eased(asked, first, {"sigma_max": HOTTEST, **same})
            return SAMPLERS["daps_rto"](problem, asked.seeds(), **same)
        if method not in SAMPLERS:
            known = ", ".join([GUIDED, HYBRID, REFINED, AMORTIZED, *SAMPLERS])
            raise UsageError(f"unknown method '{method}'; choose one of {known}")
        return SAMPLERS[method](problem, asked.seeds(), callback=callback, **how)


def macroscopic(
    values: Float[np.ndarray, "n row x"], config: Config
) -> tuple[Float[np.ndarray, "n down across"], Float[np.ndarray, "n out"]]:
    """Channel 0 of resolved maps (fraction 0-1) as aeration maps, and percent aeration of every band, then of the
    whole.

    ``config`` is that of ``shown_config``.
    """
    shape, block = config.map, round(config.map.pixel / config.grid.spacing)
    rows, columns = shape.rows * block, shape.columns * block
    left = (values.shape[2] - columns) // 2
    air = airspace(values)
    smooth = gaussian_filter(air, (0, *[shape.sigma_smooth / config.grid.spacing] * 2), mode="nearest")
    maps = smooth[:, :rows, left : left + columns].reshape(len(air), shape.rows, block, shape.columns, block)
    depth = (np.arange(values.shape[1]) + 0.5) * config.grid.spacing
    seen = air[:, :, left : left + columns].mean(2)
    spans = (*pairwise(shape.bands), (shape.bands[0], shape.bands[-1]))
    bands = [seen[:, (depth >= top) & (depth < bottom)].mean(1) for top, bottom in spans]
    return maps.mean((2, 4)), np.stack(bands, 1)


def levels_of(calls: int) -> int:
    """Noise levels that so many calls pay for. UsageError for less than one."""
    if calls < CALLS_A_LEVEL:
        raise UsageError(f"{calls} calls make no level of {CALLS_A_LEVEL}; give --budget {CALLS_A_LEVEL} or more")
    return calls // CALLS_A_LEVEL


@dataclass(frozen=True)
class _Asked:
    """Some samples of one recording."""

    model: ResolvedModel
    heard: Heard
    problem: Problem
    samples: range
    seed: int
    name: int

    def seeds(self) -> Seeds:
        """Random streams of these samples."""
        return Seeds(int(stream(self.seed, "guided", self.name).integers(2**31)), self.samples)

    def learned(self, first: int, count: int) -> Float[Tensor, "count c row x"]:
        """Samples of the learned posterior."""
        rf, top = np.asarray(self.heard.rf, np.float32)[None], self.heard.wall.top[None]
        return self.model.draw(rf, top, count, seed=self.seed, names=[self.name], first=first)[0].double()


def _eased(asked: _Asked, first: Easier, same: dict[str, Any]) -> Guided:
    """One ladder of noise levels; a share of them, the noisiest, is held against easier problems."""
    if not 0 < first.share < 1:
        raise UsageError(f"a share of {first.share:g} of the levels is eased; give one between 0 and 1")
    levels = same.pop("levels")
    sigma = karras(levels, same.pop("sigma_min"), same.pop("sigma_max"))[:-1].tolist()
    early = min(max(1, round(first.share * levels)), levels - 1)
    chance = stream(asked.seed, "easier", asked.name)
    parts = [*first.parts(asked.model, asked.heard.wall, asked.problem, early, chance)] if early else []
    seeds, maps, calls = asked.seeds(), None, Counter[str]()
    seen: tuple[Level, ...] = ()
    for problem, count in [*parts, (asked.problem, levels - early)]:
        ladder, sigma = _ladder(sigma[:count]), sigma[count:]
        found = SAMPLERS["daps_rto"](problem, seeds, start=maps, **ladder, **same)
        maps, seen = found.maps, (*seen, *found.levels)
        calls.update(found.calls)
    return replace(found, levels=seen, calls=dict(calls))


def _ladder(sigma: list[float]) -> dict[str, Any]:
    """Settings of a sampler for these noise levels; the only one has no last, any below it will do."""
    return {"levels": len(sigma), "sigma_max": sigma[0], "sigma_min": sigma[-1] if len(sigma) > 1 else sigma[0] / 2}


def _weighed(asked: _Asked, calls: int, same: dict[str, Any]) -> Guided:
    """Half of the calls choose where a sample begins, the others lead it."""
    count = max(1, min(calls // 2, calls - CALLS_A_LEVEL))  # of candidates; the only one is not looked at
    chosen, y = [], asked.problem.y[:1]
    tried = Run(replace(asked.problem, y=y.expand(count, *y.shape[1:])), Seeds(0, range(count)))
    for sample in asked.samples:
        maps, pick = asked.learned(sample * count, count), 0
        if count > 1:
            weights = weigh(tried.residual(maps).flatten(1).square().sum(1)[None], y.numel())
            uniform = stream(asked.seed, f"candidate/{asked.name}", sample).random()
            pick = min(int(torch.searchsorted(weights[0].cumsum(0), uniform)), count - 1)
        chosen.append(maps[pick])
    inner = replace(INNER, newton=levels_of(calls - count if count > 1 else calls))
    same = {"levels": 1, "inner": inner, "start": torch.stack(chosen), **same}
    found = SAMPLERS["daps_rto"](asked.problem, asked.seeds(), **same)
    return replace(found, calls={**found.calls, "forward": found.calls["forward"] + tried.forward.forwards})


def _refined(asked: _Asked, rounds: int) -> Guided:
    """Each sample drawn anew ``rounds`` times; a call is one propagation, no gradient is asked."""
    model, heard, samples = asked.model, asked.heard, asked.samples
    if not model.refines:
        raise UsageError("this model did not learn what to make of a guess; train one with --refine")
    run, maps = Run(asked.problem, asked.seeds()), asked.learned(samples[0], len(samples))
    for number in range(1, rounds + 1):
        echoes = run.forward(run.inside(maps))
        run.settle(1.0 / number, run.whiten(echoes - run.y), maps)
        guess = Guess(maps.float(), echoes.float().numpy())
        rf, top = (np.repeat(np.asarray(part)[None], len(maps), 0) for part in (heard.rf, heard.wall.top))
        key = int(stream(asked.seed, f"refined/{number}", asked.name).integers(2**31))
        maps = model.draw_each(rf.astype(np.float32), top, guess, seed=key, first=samples[0]).double()
    return run.finish(maps)
