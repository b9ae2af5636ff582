"""Laws of the derivatives, and of doing many shots at once: adjoint, finite differences, soft air, batch, threads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from laws.closed_form import tone_burst
from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.wave import Discretisation, Fields, propagate
from lungwave.config import MICRO, Config

SMALL = MICRO.override(
    {
        "grid.depth": 3.2e-3,
        "grid.width": 4.0e-3,
        "grid.steps": 240,
        "grid.gradient_stride": 1,
        "probe.elements": 6,
        "receive.dead_time": 0.2e-6,
        "receive.echo_start": 1e-6,
        "sequence.angles": [-6.0, 5.0],
    }
)


def random_medium(config: Config, cases: int = 1, seed: int = 0, *, attenuation: bool = True) -> Fields:
    """Speckled tissue over half-open bubbles, float64: every field of every case differs."""
    generator = torch.Generator().manual_seed(seed)
    shape = cases, round(config.grid.depth / config.grid.spacing), round(config.grid.width / config.grid.spacing)

    def noise() -> Float[Tensor, "case z x"]:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    air = (noise() < 0.25).double() * noise()
    air[:, : shape[1] // 2] = 0
    loss = 50 + 50 * noise() if attenuation else None
    return Fields(1500 + 60 * noise(), 1000 + 60 * noise(), air, loss)


def like(medium: Fields, seed: int) -> Fields:
    """A random direction, each field in its own units."""
    generator = torch.Generator().manual_seed(seed)
    scale = {"sound_speed": 10.0, "density": 10.0, "air": 0.1, "attenuation": 10.0}
    given = {name: getattr(medium, name) for name in scale}
    return Fields(
        **{
            name: None if f is None else scale[name] * torch.randn(f.shape, generator=generator, dtype=f.dtype)
            for name, f in given.items()
        }
    )


def inner(one: Fields, other: Fields) -> float:
    names = [n for n in ("sound_speed", "density", "air", "attenuation") if getattr(one, n) is not None]
    return float(sum((getattr(one, n) * getattr(other, n)).sum() for n in names))


@pytest.mark.parametrize("attenuation", [False, True], ids=["lossless", "attenuating"])
def test_jvp_and_vjp_are_adjoint(attenuation: bool) -> None:
    config = SMALL.override({"grid.attenuation": attenuation, "grid.steps": 120 if attenuation else 240})
    simulator = Simulator(config, dtype=torch.float64)
    medium = random_medium(config, attenuation=attenuation)
    direction = like(medium, 1)
    rf, born = simulator.jvp(medium, direction)
    cotangent = torch.randn(born.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rf_again, gradient = simulator.vjp(medium, cotangent)
    forward, adjoint = float((born * cotangent).sum()), inner(direction, gradient)
    assert float(born.norm()) > 0
    assert abs(forward - adjoint) < 1e-10 * float(born.norm() * cotangent.norm())
    assert torch.allclose(rf, rf_again, rtol=1e-12, atol=0)


@pytest.mark.parametrize("attenuation", [False, True], ids=["lossless", "attenuating"])
def test_the_jvp_is_the_limit_of_differences(attenuation: bool) -> None:
    config = SMALL.override({"grid.attenuation": attenuation, "grid.steps": 120})
    simulator = Simulator(config, dtype=torch.float64)
    medium, step = random_medium(config, attenuation=attenuation), 1e-4
    medium = replace(medium, air=0.3 + 0.4 * medium.air)  # away from the ends: a central difference
    direction = like(medium, 3)

    def moved(sign: float) -> Tensor:
        names = [n for n in ("sound_speed", "density", "air", "attenuation") if getattr(medium, n) is not None]
        return simulator.channels(
            Fields(
                **{"attenuation": None} | {n: getattr(medium, n) + sign * step * getattr(direction, n) for n in names}
            )
        )

    _, born = simulator.jvp(medium, direction)
    difference = (moved(1) - moved(-1)) / (2 * step)
    assert float((born - difference).norm() / born.norm()) < 1e-5


def cost(simulator: Simulator, medium: Fields) -> Tensor:
    return simulator.channels(medium).square().sum()


@pytest.mark.parametrize(
    ("name", "step", "budget"), [("sound_speed", 1e-2, 1e-6), ("density", 1e-2, 1e-6), ("air", 1e-5, 1e-5)]
)
def test_the_gradient_equals_central_differences(name: str, step: float, budget: float) -> None:
    config = SMALL.override({"grid.attenuation": False, "grid.steps": 160})
    simulator = Simulator(config, dtype=torch.float64)
    medium = random_medium(config, attenuation=False)
    medium = replace(medium, air=0.2 + 0.5 * medium.air)
    rf = simulator.channels(medium)
    _, gradient = simulator.vjp(medium, 2 * rf)
    slope = getattr(gradient, name)
    strongest = slope.abs().flatten().topk(3).indices
    for index in strongest.tolist():
        nudge = torch.zeros_like(slope).flatten()
        nudge[index] = step
        up, down = (replace(medium, **{name: getattr(medium, name) + s * nudge.view_as(slope)}) for s in (1, -1))
        difference = (cost(simulator, up) - cost(simulator, down)) / (2 * step)
        assert float(slope.flatten()[index]) == pytest.approx(float(difference), rel=budget)


@pytest.mark.parametrize("end", [0.0, 1.0], ids=["tissue", "air"])
def test_the_gradient_of_air_is_exact_and_alive_at_both_ends(end: float) -> None:
    """One-sided differences into the range, on cells of pure tissue and of pure air below the wall."""
    config = SMALL.override({"grid.attenuation": False, "grid.steps": 160})
    simulator = Simulator(config, dtype=torch.float64)
    medium = random_medium(config, attenuation=False)
    hard = (medium.air > 0.1).double()
    medium = replace(medium, air=hard)
    rf = simulator.channels(medium)
    _, gradient = simulator.vjp(medium, 2 * rf)
    assert torch.isfinite(gradient.air).all()
    here = (hard == end) & (torch.arange(hard.shape[1])[:, None] >= hard.shape[1] // 2)
    sizes = gradient.air.abs() * here
    # Neighbours of a bubble's surface matter as much inside as outside: no end is deaf.
    assert float(sizes[here].square().mean().sqrt()) > 1e-2 * float(gradient.air.square().mean().sqrt())
    inward, step = (1.0 if end == 0.0 else -1.0), 1e-6
    for index in sizes.flatten().topk(2).indices.tolist():
        values = []
        for k in (0, 1, 2):
            air = hard.clone().flatten()
            air[index] += inward * k * step
            values.append(float(cost(simulator, replace(medium, air=air.view_as(hard)))))
        difference = inward * (-3 * values[0] + 4 * values[1] - values[2]) / (2 * step)  # second order, one-sided
        assert float(gradient.air.flatten()[index]) == pytest.approx(difference, rel=1e-3)


def test_thinning_the_stored_history_hardly_changes_the_gradient() -> None:
    dense = SMALL.override({"grid.attenuation": False})
    sparse = dense.override({"grid.gradient_stride": 3})  # 84 ns: below 0.46 / fmax = 153 ns
    medium = random_medium(dense, attenuation=False)
    gradients = []
    for config in (dense, sparse):
        simulator = Simulator(config, dtype=torch.float64)
        rf = simulator.channels(medium)
        gradients.append(simulator.vjp(medium, rf.detach())[1])
    for name in ("sound_speed", "air"):
        full, thin = (getattr(g, name) for g in gradients)
        assert float((full - thin).norm() / full.norm()) < 0.01


def test_recomputed_segments_give_the_same_gradient() -> None:
    config = SMALL.override({"grid.attenuation": False})
    medium = random_medium(config, attenuation=False)
    gradients = []
    for checkpoints in (None, 4):
        simulator = Simulator(config, dtype=torch.float64, checkpoints=checkpoints)
        gradients.append(simulator.vjp(medium, simulator.channels(medium).detach())[1])
    for name in ("sound_speed", "density", "air"):
        assert torch.allclose(getattr(gradients[0], name), getattr(gradients[1], name), rtol=1e-9, atol=0)


@pytest.mark.parametrize("attenuation", [False, True], ids=["lossless", "attenuating"])
def test_a_batch_equals_a_loop_bit_by_bit(attenuation: bool) -> None:
    config = SMALL.override({"grid.attenuation": attenuation})
    medium = random_medium(config, cases=3, attenuation=attenuation).map(Tensor.float)
    together = Simulator(config).channels(medium)
    simulator = Simulator(config, shots_per_call=1)
    alone = torch.cat([simulator.channels(medium.map(lambda f, k=case: f[k : k + 1])) for case in range(3)])
    assert torch.equal(together, alone)
    assert not torch.equal(together[0], together[1])


def test_a_batched_vjp_equals_a_loop() -> None:
    config = SMALL.override({"grid.attenuation": False})
    medium = random_medium(config, cases=2, attenuation=False)
    simulator = Simulator(config, dtype=torch.float64)
    cotangent = torch.randn(
        simulator.channels(medium).shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    _, together = simulator.vjp(medium, cotangent)
    for case in range(2):
        _, alone = simulator.vjp(medium.map(lambda f, k=case: f[k : k + 1]), cotangent[case : case + 1])
        assert torch.allclose(together.air[case], alone.air[0], rtol=1e-12, atol=0)
        assert torch.allclose(together.sound_speed[case], alone.sound_speed[0], rtol=1e-12, atol=0)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("shots", [1, 3])
def test_one_thread_equals_many_bit_by_bit(shots: int) -> None:
    """One shot shares its rows among threads, several are shared among threads; neither may change a bit."""
    grid = Discretisation(100e-6, 28e-9, 120, 1.5e6)
    medium = random_medium(SMALL, cases=shots, attenuation=False).map(Tensor.float)
    rate = torch.as_tensor(tone_burst(120, 28e-9, 1.5e6), dtype=torch.float32).expand(shots, 1, -1).contiguous()
    source = torch.tensor([[[1, 20]]]).expand(shots, -1, -1)
    ears = torch.tensor([[[1, 5], [1, 30]]]).expand(shots, -1, -1)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        leaves = medium.map(lambda f: f.clone().requires_grad_())
        traces = propagate(leaves, rate, source, ears, grid)
        traces.square().sum().backward()
        assert leaves.air.grad is not None and leaves.sound_speed.grad is not None
        found.append((traces.detach(), leaves.air.grad, leaves.sound_speed.grad))
    assert float(found[0][0].abs().max()) > 0
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_the_work_is_counted() -> None:
    config = SMALL.override({"grid.attenuation": False, "probe.face_reflection": 0.0})
    simulator = Simulator(config)
    medium = random_medium(config, cases=2, attenuation=False).map(Tensor.float)
    rf = simulator.channels(medium)
    assert (simulator.cost.forward, simulator.cost.adjoint) == (4, 0)
    assert simulator.cost.cell_updates == 4 * 240 * (32 + 40) * (40 + 40)
    simulator.vjp(medium, rf)
    assert (simulator.cost.forward, simulator.cost.adjoint) == (8, 4)


def test_a_vjp_does_not_need_gradients_to_be_switched_on() -> None:
    """Samplers run without them; a cut that is not tracked once left the gradient at zero, and guidance without any."""
    simulator, medium = Simulator(SMALL, dtype=torch.float64), random_medium(SMALL, cases=2)
    rf, gradient = simulator.vjp(medium, simulator.channels(medium))
    with torch.no_grad():
        same, silent = simulator.vjp(medium, rf)
    assert torch.equal(same, rf) and float(silent.air.abs().max()) > 0
    for one, other in zip(fields_of(gradient), fields_of(silent), strict=True):
        assert torch.equal(one, other)


def fields_of(medium: Fields) -> list[Tensor]:
    return [f for f in (medium.sound_speed, medium.density, medium.air, medium.attenuation) if f is not None]


def test_one_propagation_serves_many_cotangents() -> None:
    """Each pull is the vjp of its cotangent, whatever was pulled before; it costs no propagation."""
    simulator, medium = Simulator(SMALL, dtype=torch.float64), random_medium(SMALL, cases=2)
    with torch.no_grad():
        rf, pull = simulator.pullback(medium)
        before = simulator.cost.forward
        for cotangent in (rf, torch.flip(rf, (2,)), rf):
            found = pull(cotangent)
            wanted = simulator.vjp(medium, cotangent)[1]
            for one, other in zip(fields_of(found), fields_of(wanted), strict=True):
                assert torch.equal(one, other)
    assert float(found.air.abs().max()) > 0
    assert simulator.cost.forward == before + 3 * 4 and simulator.cost.adjoint == 2 * 3 * 4
