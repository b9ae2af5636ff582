"""From noise to maps: noise levels, samplers as pure functions of a denoiser, guidance, and a seed for every sample.

Everything is written for ``x = x0 + sigma * noise`` and the one contract ``D(x, sigma, cond) -> x0``; D takes any
floating type and runs its network in the network's own. The probability-flow ODE is ``dx/dsigma = (x - D) / sigma``
(Karras et al. 2022, arXiv:2206.00364, section 2), and over a step ``h = ln(sigma / sigma_next)`` its exact solution is
``e^-h x + int_0^h e^(u - h) D du`` (Lu et al. 2022, arXiv:2211.01095, section 4.1, with alpha = 1). Every sampler below
is a way to guess D inside a step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from lungwave.models.unet import Condition
from lungwave.repro import stream
from lungwave.types import LungwaveError, UsageError

Denoise: TypeAlias = Callable[[Tensor, Tensor, Condition | None], Tensor]  # x, sigma of each sample, condition -> x0
Levels: TypeAlias = Float[Tensor, " level"]  # strictly falling noise levels; the last may be zero
State: TypeAlias = Float[Tensor, "n ..."]  # maps in network units, one row a sample


@runtime_checkable
class Randomness(Protocol):
    """Where a sampler's noise comes from."""

    def normal_like(self, x: Tensor) -> Tensor:
        """Standard normal noise of the shape, type and device of ``x``."""


@dataclass(frozen=True)
class Step:
    """What a callback sees after each call of the denoiser that starts a step; it must not change anything."""

    index: int  # of the step, from 0
    sigma: float  # noise level at which the denoiser was called
    sigma_next: float  # level at the end of the step
    x: Tensor  # noisy maps at ``sigma``
    denoised: Tensor  # D(x, sigma)


Callback: TypeAlias = Callable[[Step], None]
Sampler: TypeAlias = Callable[..., Tensor]  # (denoiser, noise, sigmas, cond, *, randomness, callback) -> maps


# ---------------------------------------------------------------------------------------------------- noise levels


def karras(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Levels:
    """Evenly spaced in ``sigma^(1/rho)`` (Karras et al. 2022, eq. 5), then zero."""
    _check_range(steps, sigma_min, sigma_max)
    root = torch.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps, dtype=torch.float64)
    return torch.cat([root**rho, root.new_zeros(1)])


def exponential(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Levels:
    """Evenly spaced in ``ln sigma``, then zero."""
    _check_range(steps, sigma_min, sigma_max)
    log = torch.linspace(math.log(sigma_max), math.log(sigma_min), steps, dtype=torch.float64)
    return torch.cat([log.exp(), log.new_zeros(1)])


def vp_linear(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> Levels:
    """Evenly spaced in the time of the linear-beta diffusion, then zero.

    ``sigma(t)^2 = exp(19.9 t^2 / 2 + 0.1 t) - 1`` (Song et al. 2021, arXiv:2011.13456; Karras et al. 2022, table 1).
    """
    _check_range(steps, sigma_min, sigma_max)
    slope, start = 19.9, 0.1
    last, early = ((math.sqrt(start**2 + 2 * slope * math.log1p(s**2)) - start) / slope for s in (sigma_max, sigma_min))
    time = torch.linspace(last, early, steps, dtype=torch.float64)
    return torch.cat([torch.expm1(slope * time**2 / 2 + start * time).sqrt(), time.new_zeros(1)])


def respaced(table: Float[Tensor, " t"] | Float[np.ndarray, " t"], steps: int | None = None) -> Levels:
    """``steps`` evenly spaced entries of a process's table of sigmas, rising or falling, largest first, then zero.

    Both ends are kept; None keeps every entry.
    """
    found = torch.as_tensor(table, dtype=torch.float64).sort(descending=True).values
    steps = len(found) if steps is None else steps
    if not 1 <= steps <= len(found):
        raise UsageError(f"{steps} steps out of a table of {len(found)} noise levels; choose 1 to {len(found)}")
    index = torch.linspace(0, len(found) - 1, steps, dtype=torch.float64).round().long()
    return torch.cat([found[index], found.new_zeros(1)])


SCHEDULES: dict[str, Callable[..., Levels]] = {"karras": karras, "exponential": exponential, "vp_linear": vp_linear}


def _check_range(steps: int, sigma_min: float, sigma_max: float) -> None:
    if steps < 1:
        raise UsageError(f"{steps} sampling steps; at least 1 is needed")
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(f"noise levels from {sigma_max:g} down to {sigma_min:g}; sigma_max > sigma_min > 0 is needed")


def _steps(sigmas: Levels) -> list[tuple[float, float]]:
    """Noise level before and after each step."""
    found = sigmas.tolist()
    if len(found) < 2 or any(not math.inf > s > t >= 0 for s, t in pairwise(found)):
        raise UsageError(f"noise levels {found[:4]} ... must fall strictly, be finite and end at zero or above")
    return list(pairwise(found))


# ------------------------------------------------------------------------------------------------------ randomness


class Seeds:
    """A random stream for each sample, so that sample k is the same in any batch, on any device and in any rank."""

    def __init__(self, root: int, indices: Sequence[int], name: str = "sample") -> None:
        self.indices = list(indices)
        self._streams = [stream(root, name, index) for index in self.indices]

    def normal(self, shape: tuple[int, ...]) -> Float[Tensor, "n ..."]:
        """The next standard normal draw of ``shape`` for each sample, in float64 on the CPU."""
        return torch.from_numpy(np.stack([s.standard_normal(shape) for s in self._streams]))

    def normal_like(self, x: State) -> State:
        """The next standard normal draw for each row of ``x``."""
        return self.normal(tuple(x.shape[1:])).to(x)

    def uniform_like(self, x: State) -> State:
        """The next draw from -1/2 to 1/2 for each row of ``x``."""
        return torch.from_numpy(np.stack([s.random(tuple(x.shape[1:])) for s in self._streams]) - 0.5).to(x)

    def signs_like(self, x: State) -> State:
        """The next draw of +1 and -1 for each row of ``x``."""
        drawn = [s.integers(0, 2, tuple(x.shape[1:])) for s in self._streams]
        return torch.from_numpy(2.0 * np.stack(drawn) - 1.0).to(x)


def _fresh(randomness: Randomness | None, x: Tensor) -> Tensor:
    if randomness is None:
        raise UsageError("this sampler adds noise in every step; give randomness=Seeds(seed, indices)")
    return randomness.normal_like(x)


# -------------------------------------------------------------------------------------------------------- samplers
# Each takes unit noise, scales it to the first level and returns maps at the last. To start from maps instead, pass
# noise = x / sigmas[0]. The state keeps the type of ``noise``: float64 unless the caller has a reason.


def _denoise(denoiser: Denoise, x: Tensor, sigma: float, cond: Condition | None) -> Tensor:
    return denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), cond).to(x.dtype)


def ddim(
    denoiser: Denoise, noise: State, sigmas: Levels, cond: Condition | None = None, *,
    eta: float = 0.0, randomness: Randomness | None = None, callback: Callback | None = None,
) -> State:  # fmt: skip
    """DDIM (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16); ``eta`` 0 = Euler's rule in sigma, 1 = ``ancestral``.

    First order, one call a step. Dividing eq. 16 by the signal's scale gives ``fresh = eta t sqrt(1 - t^2 / s^2)``.
    """
    if not 0 <= eta <= 1:
        raise UsageError(f"eta {eta:g} must lie between 0 (no fresh noise) and 1 (as DDPM)")
    x = noise * sigmas[0].item()
    for i, (s, t) in enumerate(_steps(sigmas)):
        denoised = _denoise(denoiser, x, s, cond)
        _tell(callback, i, s, t, x, denoised)
        fresh = eta * t * math.sqrt(1 - (t / s) ** 2)
        x = denoised + math.sqrt(t**2 - fresh**2) / s * (x - denoised)
        if fresh:
            x = x + fresh * _fresh(randomness, x)
    return x


def ancestral(
    denoiser: Denoise, noise: State, sigmas: Levels, cond: Condition | None = None, *,
    large: bool = False, randomness: Randomness | None = None, callback: Callback | None = None,
) -> State:  # fmt: skip
    """DDPM (Ho et al. 2020, arXiv:2006.11239, algorithm 2): draw from the posterior of the next level given x0 = D.

    ``large`` takes the variance beta of the forward step instead of the posterior's (section 3.2 there); both are
    divided by the signal's scale, ``1 / (1 + t^2)``. One call a step.
    """
    x = noise * sigmas[0].item()
    for i, (s, t) in enumerate(_steps(sigmas)):
        denoised = _denoise(denoiser, x, s, cond)
        _tell(callback, i, s, t, x, denoised)
        x = denoised + (t / s) ** 2 * (x - denoised)
        if t:
            variance = (s**2 - t**2) * ((1 + t**2) / (1 + s**2) if large else (t / s) ** 2)
            x = x + math.sqrt(variance) * _fresh(randomness, x)
    return x


def edm(
    denoiser: Denoise, noise: State, sigmas: Levels, cond: Condition | None = None, *,
    churn: float = 40.0, churn_min: float = 0.05, churn_max: float = 50.0, inflate: float = 1.0,
    randomness: Randomness | None = None, callback: Callback | None = None,
) -> State:  # fmt: skip
    """Stochastic sampler of Karras et al. 2022, algorithm 2: a little noise is added, then Heun's rule takes more away.

    ``churn, churn_min, churn_max, inflate`` are S_churn, S_min, S_max and S_noise there (table 5: the values for
    ImageNet-64, with ``inflate`` 1.003 for a network that removes slightly too much). Second order, two calls a step.
    """
    steps = _steps(sigmas)
    x = noise * sigmas[0].item()
    for i, (s, t) in enumerate(steps):
        more = min(churn / len(steps), math.sqrt(2) - 1) if churn_min <= s <= churn_max else 0.0
        if more:
            x = x + inflate * s * math.sqrt((1 + more) ** 2 - 1) * _fresh(randomness, x)
            s = s * (1 + more)
        denoised = _denoise(denoiser, x, s, cond)
        _tell(callback, i, s, t, x, denoised)
        slope = (x - denoised) / s
        if t:
            ahead = x + (t - s) * slope
            slope = (slope + (ahead - _denoise(denoiser, ahead, t, cond)) / t) / 2
            x = x + (t - s) * slope
        else:
            x = denoised  # Euler's rule to sigma = 0
    return x


def dpmpp(
    denoiser: Denoise, noise: State, sigmas: Levels, cond: Condition | None = None, *,
    order: int = 2, eta: float = 0.0, randomness: Randomness | None = None, callback: Callback | None = None,
) -> State:  # fmt: skip
    """DPM-Solver++ multistep (Lu et al. 2022, arXiv:2211.01095, algorithm 2), one call a step, no call thrown away.

    ``order`` D's of the past are continued as a polynomial in ``ln sigma``; ``eta`` > 0 solves the reverse SDE (section
    4 there) with that share of its noise. Order 3 integrates the polynomial of degree 2 exactly; the form in common use
    halves its last term, which leaves order 2. The first steps have lower orders, which does no harm where sigma_max is
    far above the data (start lower: ``unipc``).
    """
    x = noise * sigmas[0].item()
    past: list[tuple[float, Tensor]] = []
    for i, (s, t) in enumerate(_steps(sigmas)):
        denoised = _denoise(denoiser, x, s, cond)
        _tell(callback, i, s, t, x, denoised)
        past = [(s, denoised), *past[: order - 1]]
        x = _exponential_step(x, s, t, past, eta)
        if eta and t:
            x = x + t * math.sqrt(-math.expm1(-2 * eta * math.log(s / t))) * _fresh(randomness, x)
    return x


def unipc(
    denoiser: Denoise, noise: State, sigmas: Levels, cond: Condition | None = None, *,
    order: int = 3, randomness: Randomness | None = None, callback: Callback | None = None,
) -> State:  # fmt: skip
    """UniPC (Zhao et al. 2023, arXiv:2302.04867, algorithms 5-8, B2): ``dpmpp``, each step corrected by the next call.

    The corrector raises the order by one and costs nothing, as the D of the predicted point is needed anyway.
    """
    steps = _steps(sigmas)
    x = noise * sigmas[0].item()
    past = [(steps[0][0], _denoise(denoiser, x, steps[0][0], cond))]
    for i, (s, t) in enumerate(steps):
        _tell(callback, i, s, t, x, past[0][1])
        predicted = _exponential_step(x, s, t, past)
        if i == len(steps) - 1:
            return predicted
        ahead = (t, _denoise(denoiser, predicted, t, cond))
        x = _exponential_step(x, s, t, [*past, ahead])
        past = [ahead, *past[: order - 1]]
    return x


heun: Sampler = partial(edm, churn=0.0)
SAMPLERS: dict[str, Sampler] = {
    "heun": heun,  # the default: order 2, 2 n - 1 calls for n steps
    "euler": partial(ddim, eta=0.0),  # order 1, as all that follow n calls
    "ddim": ddim,  # eta of one's own
    "ancestral": ancestral,  # hundreds of steps
    "edm": edm,  # 2 n - 1 calls, hundreds of steps; corrects errors of the network
    "dpmpp_2m": partial(dpmpp, order=2),  # 15-20 steps
    "dpmpp_3m": partial(dpmpp, order=3),  # 10-20 steps
    "dpmpp_2m_sde": partial(dpmpp, order=2, eta=1.0),
    "dpmpp_3m_sde": partial(dpmpp, order=3, eta=1.0),
    "unipc": partial(unipc, order=3),  # 5-15 steps
    "unipc_2": partial(unipc, order=2),  # steadier under strong guidance
}


def _tell(callback: Callback | None, index: int, s: float, t: float, x: Tensor, denoised: Tensor) -> None:
    if callback is not None:
        callback(Step(index, s, t, x, denoised))


def _exponential_step(x: Tensor, s: float, t: float, known: list[tuple[float, Tensor]], eta: float = 0.0) -> Tensor:
    """Exact step from level s to t for the D that interpolates ``known`` (sigma, D), the first of them at s.

    With tau in 0..1 along the step and z = (1 + eta) h, the weight of D is ``z e^(z (tau - 1))``. Between two known D's
    the slope has the weight c_0 / 2 of DPM-Solver++(2M) and of UniPC's B2 instead of c_1: the same to leading order.
    """
    if t == 0:
        return known[0][1]
    h = math.log(s / t)
    moments = _moments((1 + eta) * h, len(known))
    nodes = np.array([math.log(s / sigma) / h for sigma, _ in known[1:]])
    if len(nodes) == 1:
        weights = moments[:1] / (2 * nodes)
    else:
        weights = np.linalg.solve(nodes ** np.arange(1, len(known))[:, None], moments[1:])
    x = math.exp(-(1 + eta) * h) * x + moments[0] * known[0][1]
    for weight, (_, denoised) in zip(weights.tolist(), known[1:], strict=True):
        x = x + weight * (denoised - known[0][1])
    return x


def _moments(z: float, count: int) -> np.ndarray:
    """``c_k = int_0^1 z e^(z (tau - 1)) tau^k dtau`` for k < count."""
    if z < 1:  # the recursion below would cancel: c_k = k! sum_j (-1)^j z^(j + 1) / (k + j + 1)!
        terms = [[(-1) ** j * z ** (j + 1) / math.perm(k + j + 1, j + 1) for j in range(18)] for k in range(count)]
        return np.array([math.fsum(term) for term in terms])
    found = [-math.expm1(-z)]
    for k in range(1, count):
        found.append(1 - k / z * found[-1])
    return np.array(found)


# ------------------------------------------------------------------------------------------- denoisers of denoisers


class Counted(nn.Module):
    """A denoiser that counts its calls and the samples in them."""

    def __init__(self, denoiser: Denoise) -> None:
        super().__init__()
        self.denoiser, self.calls, self.samples = denoiser, 0, 0

    def forward(self, x: State, sigma: Float[Tensor, " n"], cond: Condition | None = None) -> State:
        """What the denoiser says."""
        self.calls, self.samples = self.calls + 1, self.samples + len(x)
        return self.denoiser(x, sigma, cond)

    def start(self, noise: State, sigma: float, cond: Condition | None = None) -> State:
        """Where the denoiser starts."""
        return start(self.denoiser, noise, sigma, cond)


class _Guided(nn.Module):
    """See ``guided``."""

    def __init__(self, denoiser: Denoise, weaker: Denoise | None, scale: float, interval: tuple[float, float]) -> None:
        super().__init__()
        self.denoiser, self.weaker, self.scale, self.interval = denoiser, weaker, scale, interval

    def forward(self, x: State, sigma: Float[Tensor, " n"], cond: Condition | None = None) -> State:
        """The guided guess; outside the interval the weaker denoiser is not called."""
        strong = self.denoiser(x, sigma, cond)
        inside = (sigma > self.interval[0]) & (sigma <= self.interval[1])
        if not inside.any():
            return strong
        weak = self.denoiser(x, sigma, None) if self.weaker is None else self.weaker(x, sigma, cond)
        return torch.where(inside.view(-1, *[1] * (x.ndim - 1)), weak + self.scale * (strong - weak), strong)

    def start(self, noise: State, sigma: float, cond: Condition | None = None) -> State:
        """Where the guided denoiser starts."""
        return start(self.denoiser, noise, sigma, cond)


def start(denoiser: Denoise, noise: State, sigma: float, cond: Condition | None = None) -> State:
    """Noisy maps at the first noise level out of unit noise: by the denoiser's own ``start``, else noise alone.

    Noise alone is right where sigma is far above the data. Where it is not, samples lean to the mean of all maps: at
    sigma 40 a map of 64 x 64 whose mean is one standard deviation off still shows in its noise.
    """
    own = getattr(denoiser, "start", None)
    return sigma * noise if own is None else own(noise, sigma, cond)


def guided(
    denoiser: Denoise, weaker: Denoise | None, scale: float, interval: tuple[float, float] = (0.0, math.inf)
) -> Denoise:
    """``weaker + scale * (denoiser - weaker)`` where ``interval[0] < sigma <= interval[1]``, elsewhere ``denoiser``.

    A smaller or less trained network as ``weaker`` is autoguidance (Karras et al. 2024, arXiv:2406.02507); None is the
    same network without its condition, classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598). The interval
    is that of Kynkaanniemi et al. 2024 (arXiv:2404.07724). A scale of 1 gives ``denoiser`` itself.
    """
    if not (math.isfinite(scale) and 0 <= interval[0] < interval[1]):
        raise UsageError(f"guidance {scale:g} for sigma in {interval}; a finite scale and low < high are needed")
    return denoiser if scale == 1 else _Guided(denoiser, weaker, scale, interval)


@dataclass(frozen=True)
class Guidance:
    """How ``generate`` guides; see ``guided``."""

    weaker: Denoise | None  # None = the same network without its condition
    scale: float
    interval: tuple[float, float] = (0.0, math.inf)  # of sigma


# ------------------------------------------------------------------------------------------------------ many samples


@contextmanager
def resting(denoiser: Denoise) -> Iterator[None]:
    """A network without dropout, whatever mode it is in; afterwards it is in that mode again."""
    modules = list(denoiser.modules()) if isinstance(denoiser, nn.Module) else []
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module, mode in zip(modules, training, strict=True):
            module.training = mode


def state_type(device: torch.device | str) -> torch.dtype:
    """Type of the samplers' state: float64 where the device has it."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def generate(
    denoiser: Denoise, shape: tuple[int, ...], count: int, *, seed: int, first: int = 0,
    sampler: str | Sampler = "heun", steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80.0,
    schedule: str | Levels = "karras", batch: int = 64, cond: Condition | None = None,
    autoguide: Guidance | None = None, device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None, callback: Callback | None = None,
) -> Float32[Tensor, "count ..."]:  # fmt: skip
    """Samples ``first`` to ``first + count`` of the run ``seed``, in network units, on the CPU.

    ``shape`` is that of one sample (c, z, x); ``schedule`` names the noise levels or holds them; the rows of ``cond``
    belong to the ``count`` samples of this call; ``progress`` is told how many more are done. Sample k sees the same
    noise whatever ``first``, ``count``, ``batch`` and ``device`` are.

    Raises LungwaveError that names the first sample that is not finite.
    """
    if count < 1 or batch < 1:
        raise UsageError(f"{count} samples in batches of {batch}; both must be at least 1")
    run = _named(sampler, SAMPLERS, "sampler") if isinstance(sampler, str) else sampler
    if isinstance(schedule, str):
        schedule = _named(schedule, SCHEDULES, "schedule")(steps, sigma_min, sigma_max)
    if autoguide is not None:
        denoiser = guided(denoiser, autoguide.weaker, autoguide.scale, autoguide.interval)
    out, highest = torch.empty(count, *shape), schedule[0].item()
    with resting(denoiser), torch.no_grad():
        for begin in range(0, count, batch):
            stop = min(begin + batch, count)
            seeds = Seeds(seed, range(first + begin, first + stop))
            given = None if cond is None else cond.take(slice(begin, stop)).to(device)
            noise = start(denoiser, seeds.normal(shape).to(device, state_type(device)), highest, given) / highest
            out[begin:stop] = run(denoiser, noise, schedule, given, randomness=seeds, callback=callback)
            good = out[begin:stop].flatten(1).isfinite().all(1)
            if not good.all():
                bad = first + begin + int((~good).nonzero()[0])
                raise LungwaveError(f"sample {bad} is not finite; look at the model's losses, or lower sigma_max")
            if progress is not None:
                progress(stop - begin)
    return out


def _named(name: str, table: dict[str, Callable[..., Tensor]], what: str) -> Callable[..., Tensor]:
    if name not in table:
        raise UsageError(f"unknown {what} '{name}'; choose one of {', '.join(table)}")
    return table[name]
