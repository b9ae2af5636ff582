"""The loop: resume, accumulation, budgets, what it refuses, and when it halts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lungwave.models.ema import exponential
from lungwave.training import state
from lungwave.training.loop import Listener, Step, TrainConfig, Training, differences
from lungwave.training.objective import Denoising
from lungwave.training.source import Batch
from lungwave.types import LungwaveError, UsageError
from training.tiny import Curve, same, tiny


def everything(run: Training) -> dict[str, Tensor]:
    """All that a training is made of."""
    moments = run.optimizer.state_dict()["state"]
    return {
        **run.model.state_dict(),
        **run.averages.state(),
        **{f"{i} {key}": value for i, kept in moments.items() for key, value in kept.items()},
    }


class StopAt(Listener):
    """Fails after a step, as a full disk or a bug of a listener would."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, run: Training, step: Step) -> None:
        if step.step == self.at:
            raise RuntimeError("stopped")


def test_a_training_in_pieces_is_the_training_in_one(tmp_path: Path) -> None:
    """Bit for bit: weights, both averages, both moments of the optimiser, snapshots; with dropout and augmentation."""
    whole = tiny(tmp_path / "whole")
    assert whole.run()
    for stop in (3, 4, 9):
        with pytest.raises(RuntimeError, match="stopped"):
            tiny(tmp_path / "pieces", listeners=(StopAt(stop),)).run()
    last = tiny(tmp_path / "pieces")
    assert last.run()
    assert last.began == 8 * 8  # the step that failed was not saved
    assert same(everything(last), everything(whole))
    names = [path.name for path in state.snapshots(tmp_path / "whole")]
    assert names == ["000000000032.safetensors", "000000000064.safetensors", "000000000096.safetensors"]
    for name in names:
        a, b = (state.read(tmp_path / run / "snapshots" / name)[0] for run in ("whole", "pieces"))
        assert same(a, b)


def test_more_images_go_on_where_the_first_budget_ended(tmp_path: Path) -> None:
    whole = tiny(None)
    assert whole.run()
    assert tiny(tmp_path, images=40).run()
    longer = tiny(tmp_path)
    assert longer.run()
    assert (longer.began, longer.images, longer.step) == (40, 96, 12)
    assert same(everything(longer), everything(whole))


def test_a_finished_training_does_nothing(tmp_path: Path) -> None:
    assert tiny(tmp_path).run()
    before = (tmp_path / state.STATE).stat().st_mtime_ns
    again = tiny(tmp_path, listeners=(StopAt(13),))
    assert again.run()
    assert (again.began, again.images) == (96, 96)
    assert (tmp_path / state.STATE).stat().st_mtime_ns == before


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    curves = []
    for microbatch in (0, 3):
        curves.append(Curve())
        run = tiny(microbatch=microbatch, dropout=0.0, listeners=(curves[-1],), images=40)
        assert run.run()
    np.testing.assert_allclose(curves[0].losses, curves[1].losses, rtol=1e-4)
    np.testing.assert_allclose(
        [s.grad_norm for s in curves[0].steps], [s.grad_norm for s in curves[1].steps], rtol=1e-3
    )


def test_every_image_counts_once_whatever_the_batch() -> None:
    """24 maps in batches of 7, 30 images in all: the last batch is smaller and the epoch's border lies in a batch."""
    curve = Curve()
    run = tiny(batch=7, images=30, listeners=(curve,))
    assert run.run()
    assert [len(step.values["loss"]) for step in curve.steps] == [7, 7, 7, 7, 2]
    assert [step.images for step in curve.steps] == [7, 14, 21, 28, 30]
    assert (run.images, run.step) == (30, 5)
    sigma = torch.cat([step.values["sigma"] for step in curve.steps])
    assert torch.equal(sigma, torch.cat([s.values["sigma"] for s in steps_of(batch=30, images=30)]))


def steps_of(**settings: Any) -> list[Step]:
    """The steps of a training."""
    curve = Curve()
    assert tiny(listeners=(curve,), **settings, count=30 if settings["batch"] == 30 else 24).run()
    return curve.steps


def test_minutes_end_a_training_for_good(tmp_path: Path) -> None:
    run = tiny(tmp_path, images=10**6, minutes=1e-4)
    assert run.run()
    assert 0 < run.images < 10**6
    assert run.seconds >= 6e-3
    again = tiny(tmp_path, images=10**6, minutes=1e-4)
    assert again.run()
    assert again.images == run.images


@pytest.mark.parametrize(
    ("decay", "images", "rate"),
    [
        ("inverse-sqrt", 0, 0.0),
        ("inverse-sqrt", 50, 0.5),
        ("inverse-sqrt", 400, 1.0),
        ("inverse-sqrt", 1600, 0.5),
        ("linear", 50, 0.5 * (1 - 50 / 2000)),
        ("linear", 2000, 0.0),
        ("none", 2000, 1.0),
    ],
)
def test_learning_rate(decay: Any, images: int, rate: float) -> None:
    config = TrainConfig(lr=1e-3, warmup_images=100, decay=decay, decay_images=400, images=2000)
    assert config.rate(images) == pytest.approx(1e-3 * rate)


def test_clipping_bounds_the_step() -> None:
    """With plain averages and one step, the first moment is the clipped gradient times 1 - beta."""
    norms = []
    for clip in (0.0, 1e-3):
        run = tiny(clip=clip, images=8, betas=(0.0, 0.99))
        assert run.run()
        moments = [kept["exp_avg"] for kept in run.optimizer.state_dict()["state"].values()]
        norms.append(math.sqrt(sum(float(m.double().square().sum()) for m in moments)))
    assert norms[0] > 0.01
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


class NotFinite(Denoising):
    """A loss that is NaN for one image."""

    at = 45

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        values = super().losses(model, batch)
        bad = torch.from_numpy(batch.draws.positions == self.at)
        return {**values, "loss": torch.where(bad, torch.nan, values["loss"])}


def test_a_loss_that_is_not_finite_halts_and_keeps_the_last_state(tmp_path: Path) -> None:
    run = tiny(tmp_path, task=NotFinite())
    with pytest.raises(LungwaveError, match=r"loss is not finite in step 6, after 40 images.*state at 40 is kept.*lr"):
        run.run()
    good = tiny(None, images=40)
    assert good.run()
    assert same(dict(run.model.state_dict()), dict(good.model.state_dict()))
    kept, about = state.load_state(tmp_path)
    assert about["images"] == 40
    assert same(
        {name: value for name, value in kept.items() if name.startswith("model/")},
        {f"model/{name}": value.contiguous() for name, value in sorted(good.model.state_dict().items())},
    )


def test_a_gradient_that_is_not_finite_halts_before_any_state() -> None:
    run = tiny()
    with torch.no_grad():
        next(run.model.parameters()).fill_(1e38)
    with pytest.raises(LungwaveError, match=r"not finite in step 1, after 0 images.*no state was saved"):
        run.run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 6}, "batch: 8 -> 6"),
        ({"lr": 0.01, "seed": 3}, r"lr: 0.001 -> 0.01; seed: 0 -> 3"),
        ({"count": 25}, "data: .* -> "),
        ({"task": Denoising(p_mean=-1.0)}, "task.p_mean: -1.2 -> -1.0"),
        ({"averages": {"other": exponential(0.9)}}, "averages: "),
        ({"decay": "linear"}, "decay: inverse-sqrt -> linear"),
    ],
)
def test_another_training_in_the_folder_is_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    assert tiny(tmp_path, images=16).run()
    before = (tmp_path / state.STATE).read_bytes()
    with pytest.raises(UsageError, match=f"other settings .*{said}.*another --out"):
        tiny(tmp_path, **settings).run()
    assert (tmp_path / state.STATE).read_bytes() == before


def test_a_linear_decay_belongs_to_its_images(tmp_path: Path) -> None:
    assert tiny(tmp_path, images=16, decay="linear").run()
    with pytest.raises(UsageError, match="images: 16 -> 96"):
        tiny(tmp_path, decay="linear").run()


def test_settings_of_a_later_version_are_no_difference() -> None:
    old = {"train": {"lr": 1, "betas": [0.9, 0.99]}, "gone": 1}
    assert differences(old, {"train": {"lr": 1, "betas": (0.9, 0.99), "new": 3}, "gone": 1, "more": {}}) == []
    assert differences(old, {"train": {"lr": 1, "betas": [0.9, 0.9]}}) == [
        "gone: 1 -> None",
        "betas: [0.9, 0.99] -> [0.9, 0.9]",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"batch": 0}, "batch 0 must be greater than 0"),
        ({"images": -1}, "images -1 must be"),
        ({"lr": float("nan")}, "lr nan is no finite number"),
        ({"microbatch": -1}, "microbatch -1 must be at least 0"),
        ({"minutes": 0.0}, "minutes 0 must be"),
        ({"batch": 25}, "batch 25 is larger than the set of 24 images"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        tiny(**settings)


def test_compiled_or_half_the_loop_is_the_same_loop() -> None:
    """bfloat16 computes the losses of float32 within its three digits; the weights stay float32."""
    curves = []
    for precision in ("float32", "bfloat16"):
        curves.append(Curve())
        run = tiny(precision=precision, dropout=0.0, images=24, listeners=(curves[-1],))
        assert run.run()
        assert all(p.dtype == torch.float32 for p in run.model.parameters())
    np.testing.assert_allclose(curves[0].losses, curves[1].losses, rtol=0.03)
    assert curves[0].losses != curves[1].losses


class Counter(Denoising):
    """A task with a memory: the sum of all losses."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "total", torch.zeros((), dtype=torch.float64))

    def observe(self, values: Any) -> None:
        self.total.add_(values["loss"].double().sum())

    def state(self) -> dict[str, Tensor]:
        return {"total": self.total}

    def restore(self, state: Any) -> None:
        self.total.copy_(state["total"])


def test_what_a_task_learns_is_part_of_the_state(tmp_path: Path) -> None:
    whole, first, second = Counter(), Counter(), Counter()
    assert tiny(None, task=whole).run()
    assert tiny(tmp_path, task=first, images=40).run()
    assert tiny(tmp_path, task=second).run()
    assert torch.equal(whole.total, second.total)
    assert first.total < whole.total


def test_config_is_plain_data() -> None:
    config = TrainConfig()
    assert replace(config, images=5, minutes=3.0, save_minutes=0.1).facts() == config.facts()
    assert replace(config, batch=5).facts() != config.facts()
