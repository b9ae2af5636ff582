"""What this machine can do with lungwave, and what is wrong with it: each finding with its cure."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.config import preset
from lungwave.data.generate import seconds_per_case
from lungwave.models.checkpoint import ABOUT, WEIGHTS, load_model, plain
from lungwave.models.unet import UNetConfig, describe
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.posterior.reconstruct import DEFAULT, load_any_model
from lungwave.posterior.resolved import load_resolved
from lungwave.prior.build import fitted
from lungwave.repro import sha256, versions
from lungwave.shipped import PRIOR, RESOLVED, SHIPPED
from lungwave.types import LungwaveError, UsageError

State = Literal["fine", "note", "wrong"]
PRODUCT = 1024  # rows of the matrix product that is timed
ROOM = 2**30  # bytes that a disk should have left
COARSER = 8  # times fewer pixels that the coarsest level should have
DIVISOR = 8  # that sizes should have, for three halvings
ADJOINT = 1e-4  # of the wave solver's dot test; it computes in single precision
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    state: State
    said: str
    cure: str = ""


@dataclass(frozen=True)
class Health:
    """All findings."""

    findings: tuple[Finding, ...]
    numbers: dict[str, float] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.state != "wrong" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"well": self.well, "findings": [asdict(f) for f in self.findings], "numbers": self.numbers}

    def lines(self) -> Iterator[str]:
        """For people."""
        signs = {"fine": "ok   ", "note": "note ", "wrong": "WRONG"}
        for finding in self.findings:
            yield f"{signs[finding.state]} {finding.what:<22} {finding.said}"
            if finding.cure:
                yield f"{'':28} -> {finding.cure}"


def examine(folder: Path, size: tuple[int, int] | None = None) -> Health:
    """Look at everything; ``folder`` is where results would go, ``size`` that of maps to train on. A few seconds."""
    numbers: dict[str, float] = {}
    looks: tuple[tuple[str, Callable[[], Iterator[Finding]]], ...] = (
        ("environment", _environment),
        ("threads", _threads),
        ("device", _devices),
        ("disk", lambda: _disk(folder)),
        ("models", _models),
        ("maps", lambda: _maps(size)),
        ("wave equation", _waves),
        ("speed", lambda: _speed(numbers)),
    )
    findings: list[Finding] = []
    for name, look in looks:
        try:
            findings += look()
        except (LungwaveError, OSError, RuntimeError, ValueError) as error:
            findings.append(Finding(name, "wrong", f"{type(error).__name__}: {error}", "install lungwave again"))
    return Health(tuple(findings), numbers)


def _environment() -> Iterator[Finding]:
    yield Finding("Python", "fine", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("packages", "fine", ", ".join(f"{name} {number}" for name, number in versions().items()))
    if sys.flags.optimize:
        yield Finding("python -O", "note", "assertions are off", "run without -O to have inner checks")


def _threads() -> Iterator[Finding]:
    cores, used = os.cpu_count() or 1, torch.get_num_threads()
    set_ = [f"{name}={os.environ[name]}" for name in THREADS if name in os.environ]
    said = f"{cores} cores, torch uses {used}" + (f" ({', '.join(set_)})" if set_ else "")
    yield Finding("threads", "note" if used > cores else "fine", said,
                  f"set OMP_NUM_THREADS to at most {cores}" if used > cores else "")  # fmt: skip


def _devices() -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            half = torch.cuda.is_bf16_supported(including_emulation=False)
            said = f"{about.name}, {about.total_memory / 2**30:.0f} GiB, bfloat16 {'yes' if half else 'no'}"
            yield Finding(f"GPU {index}", "fine", said)
    else:
        yield Finding("GPU", "note", "none that torch can use; everything runs on the CPU")


def _disk(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    yield Finding(
        "disk",
        "fine" if writable and free > ROOM else "wrong" if not writable else "note",
        f"{there}: {free / 2**30:.1f} GiB free, {'writable' if writable else 'read-only'}",
        "" if writable and free > ROOM else "choose another --out" if not writable else "free some space",
    )


def _models() -> Iterator[Finding]:
    for path in sorted(SHIPPED.iterdir()) if SHIPPED.is_dir() else []:
        try:
            if path.name.startswith(PRIOR):
                about = load_model(path)
                net = describe(plain(about.denoiser).config, about.size)
                said = (
                    f"{net['parameters']:,} parameters, {net['gmac']:.2f} GMAC a call, attention at "
                    f"{', '.join(net['attention'])}"
                )
            else:
                (load_resolved if path.name.startswith(RESOLVED) else load_any_model)(path)
                said = f"{(path / WEIGHTS).stat().st_size / 2**20:.1f} MiB, reads echoes"
            yield Finding(path.name, "fine", f"{said}, sha256 {sha256(path / WEIGHTS)[:12]}")
        except (LungwaveError, OSError) as error:
            yield Finding(path.name, "wrong", str(error), "install lungwave again")
    if not (SHIPPED / DEFAULT / ABOUT).exists():
        yield Finding(DEFAULT, "wrong", "the default model is not there", "install lungwave again")


def _maps(size: tuple[int, int] | None) -> Iterator[Finding]:
    """Whether the network that `lungwave train` makes by default goes down and up on maps of this size."""
    if size is None:
        return
    what = f"maps of {size[0]} x {size[1]}"
    try:
        network = fitted(UNetConfig(channels=32, channel_mult=(1, 2, 2, 2)), size, None)
        net = describe(network, size)
    except UsageError as error:
        yield Finding(what, "note", str(error), "give them rows and columns divisible by 8")
        return
    down = network.reduction()
    said = (
        f"levels {', '.join(net['levels'])}; attention at {', '.join(net['attention'])}; {net['gmac']:.2f} GMAC a call"
    )
    small = down[0] * down[1] >= COARSER
    padded = " x ".join(str(-(-n // DIVISOR) * DIVISOR) for n in size)
    yield Finding(what, "fine" if small else "note", said if small else f"{said}; odd sizes cannot be halved",
                  "" if small else f"pad them to {padded}, or training is slow and sees no far neighbours")  # fmt: skip


def _waves() -> Iterator[Finding]:
    """Adjoint of the wave solver, at the smallest size: <J v, u> = <v, J' u>."""
    config = preset("micro").override(
        {"grid.steps": 300, "grid.gradient_stride": 1, "receive.echo_start": 0.0, "grid.attenuation": False}
    )
    simulator = Simulator(config)
    anatomy = draw(config, 0)
    medium = simulator.stack(rasterise(anatomy, config.grid.spacing, config.grid.depth, simulator.medium_width))
    generator = torch.Generator().manual_seed(0)
    v = medium.map(lambda f: 0.01 * f * torch.randn(f.shape, generator=generator))
    _, along = simulator.jvp(medium, v)
    u = torch.randn(along.shape, generator=generator)
    back = simulator.vjp(medium, u)[1]
    left = float((along * u).sum())
    right = sum(float((getattr(back, n) * getattr(v, n)).sum()) for n in ("sound_speed", "density", "air"))
    error = abs(left - right) / (float(along.norm() * u.norm()) + 1e-30)
    good = error < ADJOINT
    yield Finding(
        "wave equation", "fine" if good else "wrong", f"derivative and adjoint agree to {error:.0e}",
        "" if good else "install the propagator again (pip install --force-reinstall deepwave)",
    )  # fmt: skip


def _speed(numbers: dict[str, float]) -> Iterator[Finding]:
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)
    times = []
    for _ in range(5):
        clock = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - clock)
    numbers["gmac_s"] = PRODUCT**3 / float(np.median(times)) / 1e9
    yield Finding("matrix product", "fine", f"{numbers['gmac_s']:.0f} GMAC/s in float32")
    for name in ("micro", "tiny", "paper"):
        numbers[f"seconds_a_case_{name}"] = seconds_per_case(preset(name))
        yield Finding(f"one {name} case", "fine", f"{numbers[f'seconds_a_case_{name}']:.3g} s on one core")
