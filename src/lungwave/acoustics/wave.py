"""Wave propagation in a lung: the only file that imports deepwave (doi 10.5281/zenodo.3829886).

The variable-density acoustic equations on a staggered grid, order 2-8 in space, leapfrog in time, with

* air as pressure release: the stiffness of a cell is K = K_tissue (1 - a) + K_min a for air fraction a, density kept.
  |R| = 1 at every order, no extra time steps, and dK/da is the same finite number at a = 0 and a = 1;
* time dispersion removed exactly to leading order by remapping frequencies of sources and traces
  (Koene, Robertsson, Broggini, Andersson 2018, doi 10.1093/gji/ggx486), so the step may sit near the CFL limit;
* attenuation as one relaxation mechanism, exact at the centre frequency, whose phase speed is the given sound speed.

deepwave is imported where it is called: it takes two seconds, and much of lungwave only reads what is written here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lungwave.types import MHZ, UsageError

AIR_SPEED = 10.0  # [m/s] floor of the wave speed in air: slow enough for |R| = 1.000, > 0 so that gradients stay finite
COURANT = {2: 1.0, 4: 0.857, 6: 0.805, 8: 0.777}  # stability limits of c dt sqrt(2) / dx, staggered leapfrog
SPEED_MARGIN = 1.22  # light air nodes (0.6 of tissue density) and scatter lower the limit by up to 18 % at order 8
MIN_POINTS_PER_WAVELENGTH = (
    8.0  # at the centre frequency in the slowest tissue; 2-cycle pulses reach twice that frequency
)
SOFT = 0.22  # share of air that makes a widened cell soft; chosen on resolved lungs (tests/posterior/test_lung.py)
HEAVY = 2.0  # most of the tissue's density in a widened cell of air
LIGHT = 650.0  # [kg/m3] least density of a widened cell, for the stable time step
NEPER = 20 / math.log(10)  # [dB] per neper


@dataclass(frozen=True)
class Fields:
    """Acoustic medium of a batch of shots, differentiable."""

    sound_speed: Float[Tensor, "shot z x"]  # [m/s] phase speed of the tissue
    density: Float[Tensor, "shot z x"]  # [kg/m3] of the tissue
    air: Float[Tensor, "shot z x"]  # air fraction 0-1, 1 = pressure release
    attenuation: Float[Tensor, "shot z x"] | None = None  # [dB/m] at 1 MHz, linear in frequency; None = lossless

    def map(self, change: Callable[[Tensor], Tensor]) -> Fields:
        """Apply ``change`` to every tensor."""
        lossy = None if self.attenuation is None else change(self.attenuation)
        return Fields(change(self.sound_speed), change(self.density), change(self.air), lossy)


@dataclass(frozen=True)
class Discretisation:
    """Grid and time step of a propagation; construction checks nothing, ``check`` does."""

    spacing: float  # [m]
    time_step: float  # [s]
    steps: int
    center_frequency: float  # [Hz]
    order: int = 8
    pml_cells: int = 20
    gradient_stride: int = 1  # steps between stored fields of the adjoint
    checkpoints: int | None = None  # segments recomputed in the backward pass; less memory, one more forward
    backend: str = "auto"  # "eager" differentiates twice where the compiled kernel cannot

    @property
    def speed_limit(self) -> float:
        """Largest wave speed this step is stable for [m/s]; fixed, so the step never depends on the sample."""
        return COURANT[self.order] * self.spacing / (self.time_step * math.sqrt(2)) * (1 - 1e-6)

    def check(self, slowest: float, fastest: float) -> None:
        """Raise UsageError, naming the cure, unless tissue speeds [m/s] are stable and resolved."""
        if self.time_step <= 0 or self.spacing <= 0 or self.steps < 1:
            raise UsageError(
                f"grid.spacing {self.spacing:g} m, time_step {self.time_step:g} s and steps {self.steps} "
                "must be positive"
            )
        if self.order not in COURANT:
            raise UsageError(f"grid.order is {self.order}; use 2, 4, 6 or 8")
        if self.steps % self.gradient_stride:
            raise UsageError(f"grid.gradient_stride {self.gradient_stride} must divide grid.steps {self.steps}")
        needed = SPEED_MARGIN * fastest
        if needed > self.speed_limit:
            largest = COURANT[self.order] * self.spacing / (needed * math.sqrt(2))
            raise UsageError(
                f"grid.time_step {self.time_step * 1e9:.4g} ns is unstable for {fastest:.0f} m/s on "
                f"{self.spacing * 1e6:.4g} um cells; use at most {largest * 1e9:.4g} ns"
            )
        ppw = slowest / (self.center_frequency * self.spacing)
        if ppw < MIN_POINTS_PER_WAVELENGTH:
            coarsest = slowest / (self.center_frequency * MIN_POINTS_PER_WAVELENGTH)
            raise UsageError(
                f"grid.spacing {self.spacing * 1e6:.4g} um gives {ppw:.1f} points per wavelength at "
                f"{self.center_frequency / MHZ:.4g} MHz and {slowest:.0f} m/s; use at most {coarsest * 1e6:.4g} um"
            )
        if self.time_step > 0.46 / (2 * self.center_frequency):
            raise UsageError(
                f"grid.time_step {self.time_step * 1e9:.4g} ns cannot sample a pulse of {self.center_frequency:g} Hz"
            )


def correct_wavelets(wavelets: Float[Tensor, "*shape time"], time_step: float) -> Float[Tensor, "*shape time"]:
    """Pre-distort source time series for the leapfrog's time dispersion (fixed per survey: compute once, reuse)."""
    from deepwave.time_dispersion import correct_source

    return correct_source(wavelets, time_step)


def propagate(
    medium: Fields,
    volume_rate: Float[Tensor, "shot source time"],
    source_nodes: Int[Tensor, "shot source 2"],
    receiver_nodes: Int[Tensor, "shot receiver 2"],
    grid: Discretisation,
) -> Float[Tensor, "shot receiver time"]:
    """Uncorrected pressure at receiver nodes [Pa], sample n at n dt.

    ``volume_rate`` [1/s] is the injected volume per unit volume and time at (n + 1/2) dt; nodes are (row, column).
    All shots run in one call. Differentiable in every field of ``medium``.

    Raises:
        UsageError: a node lies outside the grid, or the medium needs a smaller time step.
    """
    import deepwave

    rows, columns = medium.air.shape[-2:]
    for name, nodes in (("source", source_nodes), ("receiver", receiver_nodes)):
        inside = (nodes >= 0).all() and (nodes[..., 0] < rows).all() and (nodes[..., 1] < columns).all()
        if not inside:
            raise UsageError(
                f"a {name} node lies outside the {rows} x {columns} grid; widen grid.width or shorten the array"
            )
    density = medium.density.contiguous()
    speed, quality = relaxed(medium, grid.center_frequency)
    options: dict[str, Any] = {
        "accuracy": grid.order,
        "pml_width": grid.pml_cells,
        "pml_freq": grid.center_frequency,
        "max_vel": grid.speed_limit,
        "courant_number": COURANT[grid.order],
        "model_gradient_sampling_interval": grid.gradient_stride,
        "checkpoint_segments": grid.checkpoints,
        "check_output_finite": False,
        "backend": grid.backend,
        "receiver_locations_p": receiver_nodes,
    }
    with warnings.catch_warnings():
        # Air cells are meant to be slow: they carry no wave, so six cells a wavelength is not asked of them.
        warnings.filterwarnings("ignore", message=".*cells per wavelength.*")
        warnings.filterwarnings("ignore", message=".*wavelength.*", category=UserWarning)
        try:
            if quality is None:
                out = deepwave.acoustic(
                    speed,
                    density,
                    grid.spacing,
                    grid.time_step,
                    source_amplitudes_volume_rate=volume_rate,
                    source_locations_volume_rate=source_nodes,
                    **options,
                )
            else:
                stiffness = density * speed.square()
                shot = torch.arange(len(stiffness), device=stiffness.device)[:, None]
                at_source = stiffness[shot, source_nodes[..., 0], source_nodes[..., 1]]
                out = deepwave.viscoacoustic(
                    speed,
                    density,
                    quality,
                    grid.spacing,
                    grid.time_step,
                    source_amplitudes_pressure_rate=volume_rate * at_source[..., None],
                    source_locations_pressure_rate=source_nodes,
                    q_freq=grid.center_frequency,
                    **options,
                )
        except deepwave.DeepwaveValueError as error:
            raise UsageError(f"the propagator refused the medium: {error}") from error
    if out.info.step_ratio != 1:
        raise UsageError(
            f"grid.time_step {grid.time_step * 1e9:.4g} ns is unstable for this medium (the propagator would take "
            f"{out.info.step_ratio} steps); use {grid.time_step / out.info.step_ratio * 1e9:.4g} ns "
            "or less density contrast"
        )
    return out.receiver_amplitudes_p


def relaxed(
    medium: Fields, center_frequency: float
) -> tuple[Float[Tensor, "shot z x"], Float[Tensor, "shot z x"] | None]:
    """Wave speed with air [m/s] and quality factor: ``sound_speed`` becomes the phase speed at the centre frequency.

    Q = pi f / (alpha c), alpha in neper per metre at f; one mechanism, peak at the centre frequency.
    """
    tissue = medium.sound_speed.square()
    quality = None
    if medium.attenuation is not None:
        from deepwave.attenuation import response

        alpha = medium.attenuation * (center_frequency / MHZ / NEPER)  # [Np/m] at the centre frequency
        quality = math.pi * center_frequency / (alpha.clamp_min(1e-6) * medium.sound_speed)
        modulus = response(quality, torch.tensor([center_frequency], device=quality.device), q_freq=center_frequency)[
            ..., 0
        ]
        tissue = (medium.sound_speed * modulus.rsqrt().real).square()
    squared = tissue * (1 - medium.air) + AIR_SPEED**2 * medium.air
    return squared.sqrt().contiguous(), quality


def coarsened(medium: Fields, factor: int) -> Fields:
    """The medium that long waves see, on cells ``factor`` times as wide; lossless, differentiable.

    Density and compressibility of the tissue are averaged. A node is soft from ``SOFT`` of air around it on, and its
    density then puts the surface of the air where a flat one would lie: theta cells below the node above needs
    2 theta - 1 of the tissue's. Rows begin at the first one, columns are gathered from the left edge.

    Raises UsageError where the columns make no whole cells.
    """
    if medium.air.shape[2] % factor:
        raise UsageError(f"{medium.air.shape[2]} columns make no whole cells {factor} times as wide")
    hat = 1 - torch.arange(1 - factor, factor).abs() / factor
    weight = (hat[:, None] / factor**2).expand(-1, factor)[None, None]
    rows = -(-medium.air.shape[1] // factor)

    def mean(field: Tensor) -> Tensor:
        whole = pad(field[:, None], (0, 0, factor - 1, rows * factor - field.shape[1]), mode="replicate")
        return conv2d(whole, weight.to(field), stride=factor)[:, 0]

    tissue, around = (1 - medium.air).clamp(min=0).square() + 1e-4, mean(medium.air).clamp(0, 1)
    density = mean(medium.density * tissue) / mean(tissue)
    below = torch.where(  # depth of a flat surface below the node, in wide cells, as if nodes of air were cells of it
        around < 0.5, 1 - (2 * around).clamp(min=1e-9).sqrt(), (2 * (1 - around)).clamp(min=1e-9).sqrt() - 1
    )
    air = (around / SOFT).clamp(max=1)
    factors = 1 + air * ((1 + 2 * below + 1 / factor).clamp(max=HEAVY) - 1)  # these begin half a narrow cell too high
    speed = mean(medium.sound_speed.square().reciprocal()).rsqrt()
    return Fields(speed, (density * factors).clamp(min=LIGHT), air)


def correct_traces(traces: Float[Tensor, "*shape time"], time_step: float) -> Float[Tensor, "*shape time"]:
    """Move recorded frequencies back to where physics puts them (pairs with ``correct_wavelets``); differentiable."""
    from deepwave.time_dispersion import correct_receivers

    return correct_receivers(traces, time_step)


def twice_differentiable(grid: Discretisation, medium: Fields) -> Discretisation:
    """The discretisation whose backward pass can itself be differentiated, as a Jacobian-vector product needs.

    The compiled lossless kernel can. The relaxation kernel cannot; there the eager backend does it, about 20x slower.
    """
    lossless = medium.attenuation is None
    return replace(grid, gradient_stride=1, checkpoints=None, backend="auto" if lossless else "eager")
