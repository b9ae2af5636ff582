"""Laws of noise schedules, of respacing, and of the draws of training steps."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lungwave.models.noising import Noising
from lungwave.models.timesteps import LossSecondMoment, Uniform, kept_steps, schedule_betas
from lungwave.types import LungwaveError, UsageError


@pytest.fixture(scope="module")
def golden(shared_data):
    with np.load(shared_data("diffusion-reference") / "schedules.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(
    "schedule, steps", [("linear", 1000), ("linear", 4000), ("linear", 7000), ("cosine", 1000), ("cosine", 4000)]
)
def test_schedules_match_the_reference(golden, schedule, steps) -> None:
    np.testing.assert_allclose(
        schedule_betas(schedule, steps), golden[f"betas_{schedule}_{steps}"], rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("steps, respacing", [(1000, "250"), (1000, "ddim50"), (4000, "100")])
def test_respacing_matches_the_reference(golden, steps, respacing) -> None:
    process = Noising(steps=steps, respacing=respacing)
    np.testing.assert_array_equal(process.kept, golden[f"steps_{steps}_{respacing}"])
    np.testing.assert_array_equal(process.kept, golden[f"spaced_map_linear_{steps}_{respacing}"])
    np.testing.assert_allclose(process.betas, golden[f"spaced_betas_linear_{steps}_{respacing}"], rtol=1e-11)


def test_a_linear_schedule_ends_at_the_same_noise_for_any_length() -> None:
    ends = [np.log(np.prod(1 - schedule_betas("linear", steps))) for steps in (500, 1000, 4000)]
    np.testing.assert_allclose(ends, ends[1], rtol=0.02)


def test_the_cosine_schedule_is_capped_and_never_jumps_back() -> None:
    betas = schedule_betas("cosine", 300)
    assert betas.max() == 0.999
    assert (np.diff(betas) >= 0).all()
    expected = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(np.prod(1 - betas[:150]), expected, rtol=1e-12)


@given(st.integers(20, 400), st.lists(st.integers(1, 6), min_size=1, max_size=3))
def test_sections_keep_their_counts_and_their_ends(steps, counts) -> None:
    kept = kept_steps(steps, counts)
    assert len(kept) == sum(counts)
    assert (np.diff(kept) > 0).all()
    np.testing.assert_array_equal(kept, kept_steps(steps, ",".join(map(str, counts))))
    for section in np.array_split(np.arange(steps), len(counts)):
        inside = kept[np.isin(kept, section)]
        assert inside[0] == section[0]
        assert len(inside) == 1 or inside[-1] == section[-1]


@given(st.integers(2, 400), st.data())
def test_a_ddim_stride_is_whole_and_starts_at_zero(steps, data) -> None:
    stride = data.draw(st.integers(1, steps - 1))
    count = len(range(0, steps, stride))
    kept = kept_steps(steps, f"ddim{count}")
    assert kept[0] == 0
    assert len(kept) == count
    assert len(set(np.diff(kept))) == 1


@pytest.mark.parametrize("respacing", ["ddim7", "ddim0", "ddim", "11", "4,-1", "many", "5,,5"])
def test_impossible_respacing_names_itself(respacing) -> None:
    with pytest.raises(UsageError, match=respacing):
        kept_steps(10, respacing)


def test_impossible_processes_are_refused() -> None:
    with pytest.raises(UsageError, match="20 steps would end at beta 1"):
        Noising(steps=20)
    with pytest.raises(UsageError, match="1 of 1000 steps"):
        Noising(respacing="1")
    with pytest.raises(UsageError, match="'square' is not known"):
        inspect.unwrap(schedule_betas)("square", 100)  # past the type checker, as a name from a file comes


@given(st.integers(2, 60), st.sampled_from(["linear", "cosine"]))
def test_respacing_keeps_the_noise_level_where_it_stops(count, schedule) -> None:
    whole = Noising(steps=200, schedule=schedule)
    part = whole.respaced(str(count))
    np.testing.assert_allclose(part.alpha_bar, whole.alpha_bar[part.kept], rtol=1e-9)
    np.testing.assert_allclose(np.prod(1 - part.betas), whole.alpha_bar[-1], rtol=1e-9)


def warmed(steps: int = 8, spread: float = 1.0) -> LossSecondMoment:
    """A sampler that has seen losses growing with the step."""
    sampler = LossSecondMoment(steps)
    for k in range(10):
        sampler.update(torch.arange(steps), torch.exp(spread * torch.arange(steps) / steps) * (1 + 0.1 * k))
    return sampler


def test_even_draws_weigh_one() -> None:
    t, weight = Uniform(50).sample(1000, np.random.default_rng(0))
    assert set(t.tolist()) == set(range(50))
    assert (weight == 1).all()


def test_loss_weighted_draws_are_unbiased() -> None:
    sampler = warmed()
    t, weight = sampler.sample(200_000, np.random.default_rng(0))
    loss = torch.arange(8, dtype=torch.float32) ** 2
    assert abs(float(weight.mean()) - 1) < 0.005
    assert abs(float((weight * loss[t]).mean()) / float(loss.mean()) - 1) < 0.01


def test_draws_follow_the_root_mean_square_loss_above_a_floor() -> None:
    sampler = LossSecondMoment(4)
    history = torch.tensor([1.0, 3.0, 0.0, 2.0]) * torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    for losses in history:
        sampler.update(torch.arange(4), losses)
    size = history.square().mean(0).sqrt().double().numpy()
    np.testing.assert_allclose(sampler.probabilities(), 0.999 * size / size.sum() + 0.001 / 4, rtol=1e-6)
    assert sampler.probabilities()[2] == pytest.approx(0.001 / 4)


def test_draws_are_even_until_every_step_has_ten_losses() -> None:
    sampler = LossSecondMoment(3)
    sampler.update(torch.tensor([0, 1] * 20 + [2] * 9), torch.linspace(1, 9, 49))
    np.testing.assert_array_equal(sampler.probabilities(), np.full(3, 1 / 3))
    sampler.update(torch.tensor([2]), torch.tensor([100.0]))
    assert sampler.warm
    assert sampler.probabilities().argmax() == 2


def test_only_the_last_ten_losses_count() -> None:
    late, both = warmed(), LossSecondMoment(8)
    both.update(torch.arange(8).repeat(13), torch.full((104,), 1e6))
    for k in range(10):
        both.update(torch.arange(8), torch.exp(torch.arange(8) / 8) * (1 + 0.1 * k))
    np.testing.assert_allclose(both.probabilities(), late.probabilities(), rtol=1e-12)


def test_gathered_losses_give_every_rank_the_same_draws() -> None:
    t, loss = torch.arange(8).repeat(12), torch.linspace(0.1, 2, 96)
    whole, halves = LossSecondMoment(8), LossSecondMoment(8)
    whole.update(t, loss)
    halves.update(t[:40], loss[:40])
    halves.update(t[40:], loss[40:])
    np.testing.assert_array_equal(whole.probabilities(), halves.probabilities())


def test_a_resumed_sampler_draws_what_it_would_have_drawn() -> None:
    sampler, resumed = warmed(), LossSecondMoment(8)
    state = sampler.state_dict()
    resumed.load_state_dict(state)
    for one in (sampler, resumed):
        one.update(torch.tensor([3, 3]), torch.tensor([5.0, 6.0]))
    assert torch.equal(sampler.sample(64, np.random.default_rng(1))[0], resumed.sample(64, np.random.default_rng(1))[0])
    assert not torch.equal(state["losses"], sampler.state_dict()["losses"]), "the state is a copy"
    with pytest.raises(UsageError, match=r"\(8, 10\) does not fit \(9, 10\)"):
        LossSecondMoment(9).load_state_dict(state)


def test_losses_that_teach_nothing() -> None:
    sampler = LossSecondMoment(2, history=1)
    sampler.update(torch.arange(2), torch.zeros(2))
    np.testing.assert_array_equal(sampler.probabilities(), [0.5, 0.5])
    with pytest.raises(LungwaveError, match="loss of step 1 is not finite"):
        sampler.update(torch.tensor([0, 1]), torch.tensor([1.0, torch.nan]))
