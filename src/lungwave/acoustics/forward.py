"""The forward model: a lung in, RF channel data out, with its exact derivative products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.acoustics.probe import Scan, pulse, sequence
from lungwave.acoustics.receive import dead_time_window, receive_matrix
from lungwave.acoustics.wave import (
    Discretisation,
    Fields,
    correct_traces,
    correct_wavelets,
    propagate,
    twice_differentiable,
)
from lungwave.config import Config
from lungwave.phantom.medium import Medium, max_sound_speed, min_sound_speed
from lungwave.types import UsageError

REFERENCE = (1540.0, 1000.0)  # [m/s], [kg/m3] in which a fully driven aperture emits a plane wave of 1 Pa
BACKING_ROWS = 4  # rows of probe above the elements


@dataclass
class Cost:
    """What a simulator has done so far."""

    forward: int = 0  # shots propagated
    adjoint: int = 0  # shots propagated backward
    cell_updates: float = 0.0


class Simulator:
    """RF of a configuration's probe over lungs, batched over cases and transmits.

    RF is in pascal received per pascal transmitted. ``shots_per_call`` bounds memory: more shots are split.
    ``frequency`` [Hz] is the one that the grid is made for, the probe's centre unless only lower ones are listened to.
    """

    def __init__(
        self,
        config: Config,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        shots_per_call: int = 48,
        checkpoints: int | None = None,
        frequency: float | None = None,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.scan: Scan = sequence(config)
        grid, probe = config.grid, config.probe
        self.rows, self.columns = round(grid.depth / grid.spacing), round(grid.width / grid.spacing)
        self.shots_per_call = shots_per_call
        self.discretisation = Discretisation(
            grid.spacing,
            grid.time_step,
            grid.steps,
            frequency or probe.center_frequency,
            grid.order,
            grid.pml_cells,
            grid.gradient_stride,
            checkpoints,
        )
        self.discretisation.check(min_sound_speed(config), max_sound_speed(config))
        if not 0 <= probe.face_reflection < 0.9:
            raise UsageError(
                f"probe.face_reflection is {probe.face_reflection:g}; give a pressure reflection 0 <= r < 0.9"
            )
        self.cost = Cost()
        weights = self._footprint()
        wavelets = correct_wavelets(self._wavelets(), grid.time_step)
        self._sources = torch.einsum("ec,set->sct", weights, wavelets).to(self.device)  # (tx, column, time)
        self._listen = (weights / weights.sum(1, keepdim=True)).to(self.device)  # (el, column): mean over the element
        self._receive = torch.as_tensor(
            receive_matrix(grid.steps, grid.time_step, probe.center_frequency, config.receive),
            dtype=dtype,
            device=device,
        )
        self.samples = len(self._receive)
        self._window = torch.as_tensor(
            np.ascontiguousarray(dead_time_window(self.scan, self.samples, config.receive.dead_time)),
            dtype=dtype,
            device=device,
        )

    def _footprint(self) -> Float[Tensor, "el column"]:
        """Share of each grid column that an element covers; elements end inside cells."""
        scan, grid = self.scan, self.config.grid
        width = scan.element_width or grid.spacing
        aperture = scan.event_elements(0)[:, 0]
        centre = aperture - (aperture.mean() if scan.rx_elements is not None else 0.0)
        columns = (np.arange(self.columns) - (self.columns - 1) / 2) * grid.spacing
        low = np.maximum(centre[:, None] - width / 2, columns - grid.spacing / 2)
        high = np.minimum(centre[:, None] + width / 2, columns + grid.spacing / 2)
        share = np.clip(high - low, 0, None) / grid.spacing
        reach = np.abs(centre).max() + width / 2
        if reach > self.columns * grid.spacing / 2 * (1 + 1e-9):
            raise UsageError(
                f"the aperture reaches {reach * 1e3:.3g} mm from its centre, the grid only "
                f"{self.columns * grid.spacing * 500:.3g} mm; set grid.width to at least {2 * reach * 1e3:.3g} mm"
            )
        self._active = slice(int(np.argmax(share.sum(0) > 0)), self.columns - int(np.argmax(share.sum(0)[::-1] > 0)))
        return torch.as_tensor(share[:, self._active], dtype=self.dtype)

    def _wavelets(self) -> Float[Tensor, "tx el time"]:
        """Volume rate [1/s] of each element: p = rho c dx s / 2 is what a driven row of cells emits."""
        scan, grid, probe = self.scan, self.config.grid, self.config.probe
        times = (np.arange(grid.steps) + 0.5) * grid.time_step
        series = (
            pulse(times - scan.delays[..., None], probe.center_frequency, probe.cycles) * scan.apodization[..., None]
        )
        return torch.as_tensor(series * 2 / (REFERENCE[0] * REFERENCE[1] * grid.spacing), dtype=self.dtype)

    def event_column(self, event: int, medium_width: int) -> int:
        """First column of the window of one event in a medium of ``medium_width`` columns centred on x = 0."""
        shift = 0.0
        if self.scan.rx_elements is not None:
            shift = float(self.scan.event_elements(event)[:, 0].mean())
        first = round((medium_width - self.columns) / 2 + shift / self.config.grid.spacing)
        if first < 0 or first + self.columns > medium_width:
            needed = self.columns * self.config.grid.spacing + 2 * abs(shift)
            raise UsageError(
                f"event {event} looks beyond the medium of {medium_width} columns; "
                f"make the medium at least {needed * 1e3:.4g} mm wide (Simulator.medium_width)"
            )
        return first

    @property
    def medium_width(self) -> float:
        """Width of the medium that all events together look at [m]."""
        shift = 0.0
        if self.scan.rx_elements is not None:
            shift = float(np.abs(self.scan.elements[self.scan.rx_elements, 0].mean(1)).max())
        return (self.columns + 2 * int(np.ceil(shift / self.config.grid.spacing))) * self.config.grid.spacing

    def stack(self, media: Medium | Sequence[Medium]) -> Fields:
        """Media of a batch of cases as tensors; attenuation only if the configuration wants it.

        Raises:
            UsageError: another spacing than the grid's, or shapes that differ.
        """
        media = [media] if isinstance(media, Medium) else list(media)
        if not media:
            raise UsageError("no medium given; simulate at least one case")
        for medium in media:
            if abs(medium.spacing / self.config.grid.spacing - 1) > 1e-6:
                raise UsageError(
                    f"the medium has {medium.spacing * 1e6:.4g} um cells, the grid "
                    f"{self.config.grid.spacing * 1e6:.4g} um; rasterise the anatomy at grid.spacing"
                )
            if medium.air.shape != media[0].air.shape or medium.air.shape[0] != self.rows:
                raise UsageError(f"media must be {self.rows} rows deep and equally wide, got {medium.air.shape}")

        def batch(name: str) -> Tensor:
            return torch.stack([torch.as_tensor(getattr(m, name), dtype=self.dtype) for m in media]).to(self.device)

        return Fields(
            batch("sound_speed"),
            batch("density"),
            batch("air"),
            batch("attenuation") if self.config.grid.attenuation else None,
        )

    def channels(
        self, medium: Fields | Medium | Sequence[Medium], events: Iterable[int] | None = None
    ) -> Float[Tensor, "case tx time el"]:
        """Noise-free RF of every case and transmit event (or of ``events``), differentiable in the medium's fields."""
        return self._run(self._fields(medium), self.chosen(events), self.discretisation)

    def vjp(
        self, medium: Fields | Medium | Sequence[Medium], cotangent: Float[Tensor, "case tx time el"]
    ) -> tuple[Float[Tensor, "case tx time el"], Fields]:
        """RF, and the gradient of <cotangent, RF> with respect to every field (the adjoint applied to ``cotangent``).

        Memory is bounded by ``shots_per_call`` and ``checkpoints``: each chunk is adjoined before the next is run.
        """
        leaves = self._leaves(medium)
        rf = self._empty(leaves, self.scan.transmits)
        for case, place, part in self._parts(leaves, self.chosen(None)):
            part.backward(cotangent[case, place][None])
            rf[case, place] = part[0].detach()
        self.cost.adjoint += len(rf) * self.scan.transmits
        return rf, leaves.map(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)

    def pullback(
        self, medium: Fields | Medium | Sequence[Medium], events: Iterable[int] | None = None
    ) -> tuple[Float[Tensor, "case tx time el"], Callable[[Tensor], Fields]]:
        """RF (of ``events``), and what ``vjp`` gives for any cotangent: one propagation, run once and kept for all.

        Memory is not bounded as in ``vjp``: every case and event is held, ``grid.steps / grid.gradient_stride`` times
        the grid each, as long as the function is.
        """
        leaves, chosen = self._leaves(medium), self.chosen(events)
        parts = list(self._parts(leaves, chosen))
        rf = self._empty(leaves, len(chosen))
        for case, place, part in parts:
            rf[case, place] = part[0].detach()

        def pull(cotangent: Float[Tensor, "case tx time el"]) -> Fields:
            for leaf in vars(leaves).values():
                if leaf is not None:
                    leaf.grad = None
            for case, place, part in parts:
                part.backward(cotangent[case, place][None], retain_graph=True)
            self.cost.adjoint += len(rf) * len(chosen)
            return leaves.map(lambda leaf: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone())

        return rf, pull

    def _leaves(self, medium: Fields | Medium | Sequence[Medium]) -> Fields:
        return self._fields(medium).map(lambda field: field.detach().clone().requires_grad_())

    def _empty(self, leaves: Fields, events: int) -> Float[Tensor, "case tx time el"]:
        shape = len(leaves.air), events, self.samples, self._listen.shape[0]
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _parts(
        self, leaves: Fields, events: Sequence[int]
    ) -> Iterator[tuple[int, slice, Float[Tensor, "1 _ time el"]]]:
        """RF of each case and chunk of events, with its graph, and where the chunk stands among the events."""
        for case in range(len(leaves.air)):
            for start in range(0, len(events), self.shots_per_call):
                place = slice(start, start + self.shots_per_call)
                with torch.enable_grad():  # the cut as well: untracked, it would leave the gradient at zero
                    one = leaves.map(partial(torch.narrow, dim=0, start=case, length=1))
                    part = self._run(one, events[place], self.discretisation)
                yield case, place, part

    def jvp(
        self, medium: Fields | Medium | Sequence[Medium], tangent: Fields
    ) -> tuple[Float[Tensor, "case tx time el"], Float[Tensor, "case tx time el"]]:
        """RF, and its derivative along ``tangent`` (Born RF), by differentiating the vector-Jacobian product."""
        base = self._fields(medium)
        names = [
            f.name for f in fields(base) if getattr(base, f.name) is not None and getattr(tangent, f.name) is not None
        ]
        leaves = {name: getattr(base, name).detach().clone().requires_grad_() for name in names}
        probed = replace(base, **leaves)
        primal, born = [], []
        for events in _chunks(range(self.scan.transmits), self.shots_per_call):
            rf = self._run(probed, events, twice_differentiable(self.discretisation, probed))
            dual = torch.zeros_like(rf, requires_grad=True)
            adjoint = torch.autograd.grad(rf, list(leaves.values()), dual, create_graph=True)
            born.append(torch.autograd.grad(adjoint, dual, [getattr(tangent, name) for name in names])[0].detach())
            primal.append(rf.detach())
        return torch.cat(primal, 1), torch.cat(born, 1)

    def valid_range(self, medium: Fields) -> None:
        """Raise UsageError where a field leaves the range this time step and grid were checked for."""
        low, high = min_sound_speed(self.config), max_sound_speed(self.config)
        for name, least, most, unit in (
            ("sound_speed", low, high, "m/s"),
            ("density", 500.0, 2500.0, "kg/m3"),
            ("air", 0.0, 1.0, "(fraction)"),
        ):
            field = getattr(medium, name)
            if not torch.isfinite(field).all():
                raise UsageError(f"{name} holds NaN or infinity; the propagator takes finite fields only")
            smallest, largest = float(field.min()), float(field.max())
            slack = 1e-4 * most
            if smallest < least - slack or largest > most + slack:
                raise UsageError(
                    f"{name} spans {smallest:g} to {largest:g} {unit}, valid is {least:g} to {most:g}; clip it first"
                )

    def _fields(self, medium: Fields | Medium | Sequence[Medium]) -> Fields:
        stacked = medium if isinstance(medium, Fields) else self.stack(medium)
        self.valid_range(stacked)
        return stacked

    def chosen(self, events: Iterable[int] | None) -> list[int]:
        """The events, all for None. UsageError for those that the scan lacks."""
        chosen = list(range(self.scan.transmits) if events is None else events)
        if not chosen or min(chosen) < 0 or max(chosen) >= self.scan.transmits:
            raise UsageError(f"events {chosen} are not within 0..{self.scan.transmits - 1}")
        return chosen

    def _run(self, medium: Fields, events: Sequence[int], grid: Discretisation) -> Float[Tensor, "case tx time el"]:
        cases = len(medium.air)
        shots = [(case, event) for case in range(cases) for event in events]
        traces = torch.cat([self._shoot(medium, part, grid) for part in _chunks(shots, self.shots_per_call)])
        traces = traces.view(cases, len(events), *traces.shape[1:])
        rf = torch.einsum("ot,cset->csoe", self._receive, correct_traces(traces, grid.time_step))
        return rf * self._window[list(events)]

    def _shoot(
        self, medium: Fields, shots: Sequence[tuple[int, int]], grid: Discretisation
    ) -> Float[Tensor, "shot el time"]:
        """One batched propagation; element traces at the solver's rate."""
        width = medium.air.shape[-1]
        windows = [(case, self.event_column(event, width)) for case, event in shots]
        local = medium.map(lambda f: torch.stack([f[case, :, first : first + self.columns] for case, first in windows]))
        local = self._with_backing(local)
        top = BACKING_ROWS if self.config.probe.face_reflection else 0
        across = torch.arange(self._active.start, self._active.stop, device=self.device)
        nodes = torch.stack([torch.full_like(across, top), across], -1).expand(len(shots), -1, -1)
        sources = self._sources[[event for _, event in shots]]
        pressure = propagate(local, sources, nodes, nodes, grid)
        cells = (local.air.shape[1] + 2 * grid.pml_cells) * (local.air.shape[2] + 2 * grid.pml_cells)
        self.cost.forward += len(shots)
        self.cost.cell_updates += float(cells) * grid.steps * len(shots)
        return torch.einsum("ec,sct->set", self._listen, pressure)

    def _with_backing(self, medium: Fields) -> Fields:
        """Rows of probe above the elements whose impedance gives the face its reflection (A-lines)."""
        reflection = self.config.probe.face_reflection
        if not reflection:
            return medium
        ratio = (1 + reflection) / (1 - reflection)
        # The elements' row lies on the face itself: half its volume is probe, so the face stays at z = 0 on any grid.
        half = (1 + ratio) / 2
        harmonic = 2 * ratio / (1 + ratio)

        def extend(field: Tensor, row: float, backing: float) -> Tensor:
            top = field[:, :1]
            return torch.cat([(top * backing).expand(-1, BACKING_ROWS, -1), top * row, field[:, 1:]], 1)

        loss = medium.attenuation
        return Fields(
            extend(medium.sound_speed, (harmonic / half) ** 0.5, 1.0),
            extend(medium.density, half, ratio),
            extend(medium.air, 1.0, 0.0),
            None if loss is None else extend(loss, 1.0, 1.0),
        )


def _chunks(items: Sequence, size: int) -> list[list]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
