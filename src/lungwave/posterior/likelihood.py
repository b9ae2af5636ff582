"""What relates a map to a recording: the forward model with its derivatives, and the noise. Any shape of recording.

A sampler asks for nothing else, so it serves waves in lungs and a user's own operator alike:

    forward = Differentiable(lambda x: x[:, :, ::2, ::2])   # or Linear(matrix), or a class of one's own
    check_forward(forward, x)                               # derivatives, batches, range, before hours of sampling
    noise = GaussianNoise(0.1)                              # measured or simulated, never tuned
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.types import LungwaveError, UsageError

ADJOINT = 1e-5  # largest relative difference of <J v, u> and <v, J' u> that float32 excuses; 1e-10 in float64
SLOPE = 0.02  # largest relative difference of J v and a central difference
EPSILON = 1e-3  # of that difference, relative to the map


@runtime_checkable
class Forward(Protocol):
    """Maps (n, c, z, x) -> noise-free recordings (n, ...); each case by itself."""

    @property
    def valid_range(self) -> tuple[float, float]:
        """Values of a map within which the model may be called."""
        ...

    def __call__(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """The recordings."""
        ...

    def jvp(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Change of the recordings along ``v``."""
        ...

    def vjp(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """Gradient of ``<F(x), u>``: the adjoint of ``jvp``."""
        ...


@dataclass(frozen=True)
class Differentiable:
    """A forward model from any function that torch can differentiate."""

    function: Callable[[Tensor], Tensor]
    valid_range: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """The recordings."""
        return self.function(x)

    def jvp(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Derivative along ``v``: the derivative of ``<J' u, v>`` with respect to u, so that two vjps do."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            y = self.function(at)
            u = torch.zeros_like(y, requires_grad=True)
            (back,) = torch.autograd.grad(y, at, u, create_graph=True)
            (found,) = torch.autograd.grad(back, u, v)
        return found

    def vjp(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """Reverse-mode derivative."""
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.function(at), at, u)
        return found


@dataclass(frozen=True)
class Linear:
    """``y = A x`` for a dense matrix (recording, pixels)."""

    matrix: Float[Tensor, "m pixel"]
    valid_range: tuple[float, float] = (-math.inf, math.inf)

    def __call__(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n m"]:
        """The recordings."""
        return x.flatten(1) @ self.matrix.to(x.dtype).T

    def jvp(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n m"]:
        """``A v``."""
        return self(v)

    def vjp(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n m"]) -> Float[Tensor, "n c z x"]:
        """``A' u``."""
        return (u @ self.matrix.to(u.dtype)).reshape(x.shape)


@dataclass
class Counted:
    """A forward model that counts what was asked of it, case by case; a gradient is one forward and one vjp."""

    inner: Forward
    forwards: int = field(default=0, init=False)
    jvps: int = field(default=0, init=False)
    vjps: int = field(default=0, init=False)

    @property
    def valid_range(self) -> tuple[float, float]:
        """That of the model."""
        return self.inner.valid_range

    def __call__(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """The recordings."""
        self.forwards += len(x)
        return self.inner(x)

    def jvp(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Change of the recordings along ``v``."""
        self.jvps += len(x)
        return self.inner.jvp(x, v)

    def vjp(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """The adjoint of ``jvp``."""
        self.vjps += len(x)
        return self.inner.vjp(x, u)


@runtime_checkable
class Noise(Protocol):
    """What a recording holds beside the model's echoes; whitening says it all."""

    def whiten(self, residual: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Residuals in standard deviations of the noise; linear, and its own adjoint."""
        ...

    def log_prob(self, residual: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """Log density of each case, without its constant."""
        return -0.5 * self.whiten(residual).flatten(1).square().sum(1)

    def chi2(self, residual: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """Mean square of the whitened residual: 1 where model and noise are right."""
        return self.whiten(residual).flatten(1).square().mean(1)


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """Independent Gaussian noise of known standard deviation, one number or one for each entry of a recording.

    ``temperature`` scales the variance that samplers believe in; anything but 1 is no posterior, and is said so
    wherever results are shown.
    """

    std: float | Tensor
    temperature: float = 1.0

    def __post_init__(self) -> None:
        smallest = float(self.std.min()) if isinstance(self.std, Tensor) else self.std
        if not (smallest > 0 and math.isfinite(smallest)):
            raise UsageError(f"noise of standard deviation {smallest:g}; measure it, it must be greater than 0")
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature:g} must be greater than 0")

    def whiten(self, residual: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Residuals in standard deviations of the noise. UsageError where the noise has another shape."""
        std = self.std
        if isinstance(std, Tensor):
            if std.ndim and residual.shape[1:] != std.shape:
                raise UsageError(f"noise of shape {tuple(std.shape)} for recordings of {tuple(residual.shape[1:])}")
            std = std.to(residual)
        return residual / (std * math.sqrt(self.temperature))


def check_forward(forward: Forward, x: Float[Tensor, "n c z x"], seed: int = 0) -> dict[str, float]:
    """Try a forward model on two or more maps before sampling with it; the errors that were found.

    Adjoint dot test ``<J v, u> = <v, J' u>``, ``J v`` against a central difference, a batch against its maps one by
    one. A model whose derivatives are difference quotients says how far off they may be in ``derivative_error``.

    Raises:
        UsageError: maps outside the valid range, a recording of another length than the batch.
        LungwaveError: values that are not finite, a wrong derivative, cases of a batch that influence each other.
    """
    low, high = forward.valid_range
    if float(x.min()) < low or float(x.max()) > high:
        raise UsageError(
            f"maps run from {float(x.min()):g} to {float(x.max()):g}, the model is valid in {low:g}-{high:g}"
        )
    generator = torch.Generator().manual_seed(seed)
    y = forward(x)
    if len(y) != len(x):
        raise UsageError(f"the forward model makes {len(y)} recordings of {len(x)} maps; it must keep the first axis")
    v = torch.randn(x.shape, generator=generator).to(x)
    u = torch.randn(y.shape, generator=generator).to(y)
    along, back = forward.jvp(x, v), forward.vjp(x, u)
    for name, found in (("forward", y), ("jvp", along), ("vjp", back)):
        if not bool(found.isfinite().all()):
            raise LungwaveError(f"{name} gives values that are not finite; look at the range of the maps")
    size = float(along.norm() * u.norm()) + 1e-30
    dot = abs(float((along * u).sum()) - float((back * v).sum())) / size  # over the batch: leaks are looked for below
    room = [edge for edge in (float(x.min()) - low, high - float(x.max())) if math.isfinite(edge) and edge > 0]
    span = min([EPSILON * float(x.std() + 1e-12), *room])
    secant = (forward(x + span * v) - forward(x - span * v)) / (2 * span)
    slope = float((secant - along).norm() / (along.norm() + 1e-30))
    alone = torch.cat([forward(one[None]) for one in x])
    batch = float((alone - y).abs().max() / (y.abs().max() + 1e-30))
    double, excused = x.dtype == torch.float64, float(getattr(forward, "derivative_error", 0.0))
    for name, value, most in (
        ("<J v, u> and <v, J' u> differ", dot, max(1e-10 if double else ADJOINT, excused)),
        ("jvp and a central difference differ", slope, max(SLOPE, excused)),
        ("a batch and its maps one by one differ", batch, 1e-10 if double else 1e-4),
    ):
        if not value <= most:
            raise LungwaveError(f"{name} by {value:.1e} of their size (at most {most:.0e}); correct the forward model")
    return {"adjoint": dot, "slope": slope, "batch": batch}


def quarantined(maps: Float[Tensor, "n c z x"], *values: Any) -> Tensor:
    """Which cases are finite everywhere; the others are to be counted and set aside, never set to zero."""
    good = maps.flatten(1).isfinite().all(1)
    for value in values:
        good = good & value.reshape(len(value), -1).isfinite().all(1)
    return good
