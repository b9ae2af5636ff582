"""Steps of a discrete diffusion: noise schedules, which steps to keep, and which steps to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.types import LungwaveError, UsageError

Schedule: TypeAlias = Literal["linear", "cosine"]

LINEAR_ENDS = (1e-4, 0.02)  # first and last beta of 1000 steps, Ho et al. 2020 (arXiv:2006.11239) section 4
COSINE_OFFSET = 0.008  # Nichol & Dhariwal 2021 (arXiv:2102.09672) eq. 17
COSINE_CAP = 0.999  # largest beta, same section: no singularity at the end


def schedule_betas(schedule: Schedule, steps: int) -> Float[np.ndarray, " steps"]:
    """Variance added by each of ``steps`` steps, float64.

    ``linear`` is stretched by 1000 / steps so that any number of steps ends at about the same noise level;
    ``cosine`` follows abar(t) = cos^2((t + 0.008) / 1.008 * pi / 2).

    Raises:
        UsageError: unknown schedule, or a linear one of so few steps that a beta reaches 1.
    """
    if schedule == "linear":
        first, last = (end * 1000 / steps for end in LINEAR_ENDS)
        if last >= 1:
            raise UsageError(
                f"a linear schedule of {steps} steps would end at beta {last:.3g}; use 21 steps or more and respacing"
            )
        return np.linspace(first, last, steps)
    if schedule == "cosine":
        edges = np.arange(steps + 1) / steps
        alpha_bar = np.cos((edges + COSINE_OFFSET) / (1 + COSINE_OFFSET) * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], COSINE_CAP)
    raise UsageError(f"noise schedule '{schedule}' is not known; use linear or cosine")


def kept_steps(steps: int, respacing: str | Sequence[int]) -> Int[np.ndarray, " kept"]:
    """Indices of ``steps`` steps that a shorter process visits, ascending.

    Counts ("10,15,20" or a sequence) cut the process into that many equal sections and spread each count evenly over
    its section, both ends included; "ddimN" takes every k-th step from 0, where k must give exactly N. "" keeps all.

    Raises:
        UsageError: not a list of counts, more steps than a section has, or no stride for ddimN.
    """
    if isinstance(respacing, str):
        if not respacing.strip():
            return np.arange(steps)
        if respacing.startswith("ddim"):
            return _strided(steps, _count(respacing.removeprefix("ddim"), respacing))
        counts = [_count(part, respacing) for part in respacing.split(",")]
    else:
        counts = [_count(part, respacing) for part in respacing]
    sections = np.array_split(np.arange(steps), max(len(counts), 1))  # the first ones take the remainder
    kept: list[int] = []
    for count, section in zip(counts, sections, strict=False):
        if count > len(section):
            raise UsageError(f"respacing {respacing}: a section of {len(section)} steps has no {count}; ask for fewer")
        stride = (len(section) - 1) / (count - 1) if count > 1 else 1.0
        # A running sum, then half to even: checkpoints were sampled with steps rounded in this order.
        offsets = np.rint(np.cumsum([0.0] + [stride] * (count - 1)))[:count]
        kept.extend(int(section[0] + offset) for offset in offsets)
    return np.array(kept, dtype=np.int64)


def _count(text: str | int, respacing: str | Sequence[int]) -> int:
    try:
        count = int(text)
    except ValueError:
        count = -1
    if count < 0:
        raise UsageError(f"respacing {respacing!r} is not understood; use '250', '10,15,20' or 'ddim50'")
    return count


def _strided(steps: int, count: int) -> Int[np.ndarray, " kept"]:
    stride = -(-steps // max(count, 1))  # the smallest that gives no more than count steps
    kept = np.arange(0, steps, stride)
    if len(kept) != count or stride >= steps:
        near = sorted({len(range(0, steps, s)) for s in (stride - 1, stride) if 1 <= s < steps})
        raise UsageError(f"ddim{count}: no whole stride takes {count} of {steps} steps; nearest: {near}")
    return kept


class Uniform:
    """Draws training steps evenly; every weight is 1."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def probabilities(self) -> Float[np.ndarray, " steps"]:
        """Chance of each step, summing to 1."""
        return np.full(self.steps, 1 / self.steps)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """``count`` step indices and the weights 1 / (steps * p) that keep the mean loss unbiased."""
        p = self.probabilities()
        t = rng.choice(self.steps, size=count, p=p)
        return torch.from_numpy(t), torch.from_numpy(1 / (self.steps * p[t])).float()

    def update(self, t: Int[Tensor, " m"], loss: Float[Tensor, " m"]) -> None:
        """Take note of unweighted losses; evenly drawn steps need none."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back ``state_dict()``."""


class LossSecondMoment(Uniform):
    """Draws training steps in proportion to sqrt(E[loss^2]); Nichol & Dhariwal 2021 (arXiv:2102.09672) eq. 18.

    The last ``history`` losses of each step are kept; until every step has that many, steps are drawn evenly.
    Between processes: gather (t, loss) of all ranks in rank order and ``update`` each rank with all of them.
    """

    def __init__(self, steps: int, history: int = 10, uniform: float = 0.001) -> None:
        super().__init__(steps)
        self.uniform = uniform  # share of draws spread evenly, so that no step is forgotten
        self._losses = np.zeros((steps, history))  # a ring per step: the mean square does not see the order
        self._counts = np.zeros(steps, dtype=np.int64)

    @property
    def warm(self) -> bool:
        """Whether every step has a full history."""
        return bool((self._counts >= self._losses.shape[1]).all())

    def probabilities(self) -> Float[np.ndarray, " steps"]:
        """Chance of each step, summing to 1, none below ``uniform / steps``."""
        size = np.sqrt(np.mean(self._losses**2, axis=1))
        if not self.warm or size.sum() == 0:
            return super().probabilities()
        return (1 - self.uniform) * size / size.sum() + self.uniform / self.steps

    def update(self, t: Int[Tensor, " m"], loss: Float[Tensor, " m"]) -> None:
        """Take note of unweighted losses of steps ``t``, oldest first.

        Raises:
            LungwaveError: a loss that is not finite, which would spoil every later draw.
        """
        if not bool(torch.isfinite(loss).all()):
            bad = int(t[~torch.isfinite(loss)][0])
            raise LungwaveError(f"the loss of step {bad} is not finite; lower the learning rate or look at the data")
        for index, value in zip(t.tolist(), loss.tolist(), strict=True):
            self._losses[index, self._counts[index] % self._losses.shape[1]] = value
            self._counts[index] += 1

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs: the losses and how many each step has seen."""
        return {"losses": torch.from_numpy(self._losses.copy()), "counts": torch.from_numpy(self._counts.copy())}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back ``state_dict()``.

        Raises:
            UsageError: the state belongs to another number of steps or another history.
        """
        if state["losses"].shape != self._losses.shape:
            raise UsageError(
                f"step sampler state of shape {tuple(state['losses'].shape)} does not fit {self._losses.shape}; "
                "resume with the diffusion steps and history of that run"
            )
        self._losses = state["losses"].double().cpu().numpy().copy()
        self._counts = state["counts"].long().cpu().numpy().copy()
