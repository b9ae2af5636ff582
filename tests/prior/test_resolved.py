"""From generated cases to a model of resolved lungs to samples that the wave equation leads, at the smallest size."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lungwave.acoustics.receive import echo_rms
from lungwave.config import preset
from lungwave.data.convert import load_any
from lungwave.data.generate import generate
from lungwave.data.hdf5 import read_origin, write_recording
from lungwave.models.unet import UNetConfig
from lungwave.phantom.anatomy import draw
from lungwave.phantom.resolved import airspace, resolved, shown_config
from lungwave.posterior.continuation import CoarseGrid, FewShots, LowBand, coarse_errors
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.guided import (
    AMORTIZED,
    GUIDED,
    HYBRID,
    REFINED,
    Heard,
    lead,
    levels_of,
    macroscopic,
    noise_std,
)
from lungwave.posterior.lung import LungForward, heard_samples
from lungwave.posterior.pairs import Disturbance, Pairs, noisy
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.posterior.resolved_pairs import Guess, ResolvedPairs
from lungwave.posterior.samplers import Inner
from lungwave.posterior.samplers.problem import Level, Problem
from lungwave.posterior.walls import Wall, wall_errors
from lungwave.prior.build import Prior
from lungwave.prior.conditional import Posterior, export
from lungwave.prior.resolved import ingredients
from lungwave.training.loop import TrainConfig
from lungwave.training.source import Draws
from lungwave.types import LungwaveError, UsageError

NETWORK = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, patch=(4, 4))
KNOWN = Disturbance((20.0, 40.0), jitter=0.0, far=0.0, speeds=(1.0,), drop=0.3)
SMALL = "--channels 8 --mult 1 2 --blocks 1 --heads 2 --patch 4 4 --batch 8 --check-images 16 --check-maps 4"


@pytest.fixture(scope="module")
def pairs(micro_cases: Path) -> ResolvedPairs:
    return ResolvedPairs.draw(Pairs.read(micro_cases, quiet=True), quiet=True)


@pytest.fixture(scope="module")
def folder(pairs: ResolvedPairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are random but not zero."""
    plan = Posterior(Prior(TrainConfig(seed=2), NETWORK, held_out=0.15), KNOWN, trace_channels=8, trace_images=2)
    made = ingredients(pairs, plan)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.model.denoiser.net.out[2].weight, std=0.1)
    out = tmp_path_factory.mktemp("resolved") / "model"
    export(made, plan, out, "a command", {"images": 0}, {}, ())
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> ResolvedModel:
    return load_resolved(folder)


@pytest.fixture(scope="module")
def heard(pairs: ResolvedPairs) -> Heard:
    """Case 1 at 30 dB."""
    rf = noisy(pairs, np.array([1]), (30, 30), 0, "test")[0]
    std = echo_rms(pairs.rf[1], pairs.scan, pairs.config.receive.echo_start) * 10**-1.5
    return Heard(rf, Wall.of(draw(pairs.drawn, int(pairs.cases.index[1])), pairs.drawn), std)


def test_pairs_hold_the_map_below_the_wall(pairs: ResolvedPairs) -> None:
    """Nodes and where they begin; a part of the pairs is that part; mirrored together with their echoes."""
    index = int(pairs.cases.index[3])
    np.testing.assert_allclose(pairs.maps(np.array([3]))[0], resolved(draw(pairs.drawn, index), pairs.drawn), atol=1e-3)
    np.testing.assert_allclose(pairs.tops(np.array([3]))[0], Wall.of(draw(pairs.drawn, index), pairs.drawn).top)
    part = pairs.take(np.array([5, 3]))
    np.testing.assert_array_equal(part.maps(np.array([1])), pairs.maps(np.array([3])))
    np.testing.assert_array_equal(part.tops(np.array([0])), pairs.tops(np.array([5])))


def test_drawn_maps_are_kept_for_a_resume(
    pairs: ResolvedPairs, micro_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read instead of drawn again, but not for other cases."""
    few, kept = Pairs.read(micro_cases, quiet=True).take(np.arange(3)), tmp_path / "drawn.npz"
    first = ResolvedPairs.draw(few, True, kept)
    with monkeypatch.context() as patch:
        patch.setattr("lungwave.posterior.resolved_pairs.draw", None)
        again = ResolvedPairs.draw(few, True, kept)
    np.testing.assert_array_equal(again.nodes, pairs.nodes[:3])
    np.testing.assert_array_equal(again.top, first.top)
    other = ResolvedPairs.draw(few.take(np.array([2])), True, kept)
    np.testing.assert_array_equal(other.nodes, pairs.nodes[2:3])


def test_a_mirrored_pair_is_the_pair_of_the_mirrored_lung(pairs: ResolvedPairs) -> None:
    """What a training sees is the map or its mirror image, and its condition is that of the mirrored echoes."""
    plan = Posterior(Prior(TrainConfig(seed=2), NETWORK, held_out=0.15), replace(KNOWN, dead=0, missing=0, drop=0))
    source = ingredients(pairs, plan).source
    rows = np.zeros(24, int)
    maps, cond = source.images(rows, Draws(0, np.arange(24)))
    assert cond is not None and cond.image is not None
    straight = source._clean(source.pairs.maps(rows[:1]))[0]
    turned = [torch.equal(one, straight.flip(2)) for one in maps]
    assert all(torch.equal(one, straight) or flip for one, flip in zip(maps, turned, strict=True))
    assert 4 < sum(turned) < 20
    mean = torch.stack([image.flip(2) if flip else image for image, flip in zip(cond.image, turned, strict=True)])
    loud = mean[:, :2].abs().amax((0, 2, 3)) > 0.5  # I/Q: noise aside they are all alike
    assert loud.all() and float(mean[:, :2].std(0).mean()) < 0.3 * float(mean[:, :2].std())


def test_a_stored_model_draws_the_same(model: ResolvedModel, folder: Path, heard: Heard, tmp_path: Path) -> None:
    again = load_resolved(Path(shutil.copytree(folder, tmp_path / "copy")))
    rf, top = heard.rf[None], heard.wall.top[None]
    drawn = model.draw(rf, top, 3, steps=3)
    assert torch.equal(again.draw(rf, top, 3, steps=3), drawn)
    assert torch.allclose(model.draw(rf, top, 2, steps=3, first=1)[0], drawn[0, 1:], atol=1e-4)
    assert again.drawn == model.drawn and again.size == (24, 96)
    cond = model.condition(rf, top).image
    assert cond is not None and float(cond.abs().max()) < 20, "an outline whose still features were rounded is huge"
    np.testing.assert_allclose(again.discrepancy.covariance, model.discrepancy.covariance)
    with pytest.raises(UsageError, match="not finite"):
        model.draw(np.full_like(rf, np.nan), top, 2)


def test_the_prior_has_heard_nothing(model: ResolvedModel, heard: Heard) -> None:
    """The same network, told of echoes and not: guidance works on the second."""
    x = torch.randn(1, *model.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.ones(1)
    cond = model.denoiser.encode(model.condition(heard.rf[None], heard.wall.top[None]))
    with torch.no_grad():
        told, untold = model.inner(x, sigma, cond), model.prior(x, sigma)
        assert torch.equal(model.prior(x, sigma, cond), untold) and not torch.allclose(told, untold)


def test_the_truth_explains_its_echoes(model: ResolvedModel, pairs: ResolvedPairs, heard: Heard) -> None:
    """Within noise and what the forward model leaves out; lungs without air do not."""
    forward = LungForward(model.config, heard.wall.medium, heard.wall.surface, model.scaling)
    noise, y = heard.noise(model), torch.from_numpy(heard.rf[:, : forward.samples])[None].double()
    truth = model.scaling.to_network(torch.from_numpy(pairs.maps(np.array([1])))).double()
    low = torch.full_like(truth, forward.valid_range[0])
    assert float(noise.chi2(forward(truth) - y)) < 2
    assert float(noise.chi2(forward(low) - y)) > 20
    assert noise_std(heard.rf, model) == pytest.approx(heard.noise_std, rel=0.2)
    with pytest.raises(UsageError, match="no noise before the first echoes"):
        noise_std(pairs.rf[1], model)


def test_guidance_explains_the_echoes_better(model: ResolvedModel, heard: Heard) -> None:
    """By its candidates and by its level; a sample does not depend on which others are made with it."""
    seen: list[Level] = []
    found = lead(model, heard, range(2), method=HYBRID, calls=10, callback=seen.append)
    assert found.calls["vjp"] == 2 * 5 and len(seen) == 1 and bool(found.kept.all())
    assert found.calls["forward"] >= 2 * (5 + 2)
    before = lead(model, heard, range(2), method=AMORTIZED)
    assert float(found.chi2.mean()) < float(before.chi2.mean()) and before.calls["vjp"] == 0
    alone = lead(model, heard, range(1, 2), method=HYBRID, calls=10)
    assert torch.allclose(alone.maps[0], found.maps[1], atol=1e-3)
    whole = lead(model, heard, range(1), method=HYBRID, calls=5)
    assert whole.calls["vjp"] == 5, "too few calls to choose with are left to the level"
    far = lead(model, heard, range(1), method=HYBRID, calls=10, warm=1.0)
    assert far.calls["vjp"] == 10 and far.levels[0].sigma == 1.0
    cold = lead(model, heard, range(1), method=GUIDED, calls=5)
    assert cold.calls["vjp"] == 5 and cold.maps.shape == (1, 2, 24, 96)
    assert lead(model, heard, range(1), method="red_diff", levels=2).calls["vjp"] == 2


def test_low_frequencies_first(model: ResolvedModel, heard: Heard) -> None:
    """The same ladder and budget; all levels but the first hear the whole band."""
    plain = lead(model, heard, range(2), method=GUIDED, calls=15)
    low = lead(model, heard, range(2), method=GUIDED, calls=15, first=LowBand(0.3))
    assert [one.sigma for one in low.levels] == pytest.approx([one.sigma for one in plain.levels])
    assert low.calls == plain.calls | {"forward": low.calls["forward"]} and bool(low.kept.all())
    assert low.levels[0].chi2 < 0.8 * plain.levels[0].chi2, "what is cut off is not missed"
    single = lead(model, heard, range(1), method=GUIDED, calls=5, first=LowBand())
    assert single.calls["vjp"] == 5, "the only level hears everything"
    with pytest.raises(UsageError, match=r"a share of 1 of the levels is eased"):
        lead(model, heard, range(1), method=GUIDED, calls=15, first=LowBand(1.0))
    with pytest.raises(UsageError, match="'hybrid' does not begin with an easier problem"):
        lead(model, heard, range(1), method=HYBRID, first=LowBand())


def test_wider_cells_first(model: ResolvedModel, heard: Heard) -> None:
    """What they make wrong is known, so that the truth explains the echoes on them as well."""
    errors = coarse_errors(model, lungs=20, quiet=True)
    found = lead(model, heard, range(2), method=GUIDED, calls=15, first=CoarseGrid(errors, 0.6))
    assert found.calls["vjp"] == 30 and len(found.levels) == 3 and bool(found.kept.all())
    forward = LungForward(model.config, heard.wall.medium, heard.wall.surface, model.scaling)
    rf = torch.from_numpy(heard.rf[None, :, : forward.samples]).double()
    problem = Problem(rf, forward, model.prior, heard.noise(model), model.shape)
    ((easier, levels),) = CoarseGrid(errors).parts(model, heard.wall, problem, 7, np.random.default_rng(0))
    assert levels == 7
    chi2, cases = [], replace(model.drawn, seed=99)
    for index in range(5):
        anatomy = draw(cases, index)
        wall = Wall.of(anatomy, cases)
        nodes = model.scaling.to_network(torch.from_numpy(resolved(anatomy, cases))[None]).double()
        rf = LungForward(model.config, wall.medium, wall.surface, model.scaling)(nodes)
        ((part, _),) = CoarseGrid(errors).parts(model, wall, replace(problem, y=rf), 1, np.random.default_rng(0))
        chi2.append(float(part.noise.chi2(part.forward(nodes) - part.y)))
    assert np.median(chi2) < 1.0
    assert float(easier.noise.chi2(easier.forward(torch.zeros(1, *model.shape).double()) - easier.y)) > np.median(chi2)


def test_some_shots_first(model: ResolvedModel, heard: Heard) -> None:
    """Other ones at every level; then all of them."""
    few = {"probe.elements": 8, "probe.pitch": 1e-3, "probe.width": 1e-3}  # a covariance of few numbers
    drawn = model.drawn.override({"sequence.angles": [-8.0, 8.0], **few})
    samples, rng = heard_samples(drawn), np.random.default_rng(0)
    errors = Discrepancy.of(0.1 * rng.standard_normal((24, 2, samples, drawn.probe.elements)), 0.5)
    several = replace(model, drawn=drawn, discrepancy=errors)
    forward = LungForward(several.config, heard.wall.medium, heard.wall.surface, several.scaling)
    told = replace(heard, rf=forward(torch.zeros(1, *model.shape))[0].numpy())
    plain = lead(several, told, range(1), method=GUIDED, calls=15)
    found = lead(several, told, range(1), method=GUIDED, calls=15, first=FewShots(0.3))
    assert found.calls["vjp"] == plain.calls["vjp"] == 15 and len(found.levels) == 3
    assert [one.sigma for one in found.levels] == pytest.approx([one.sigma for one in plain.levels])
    problem = Problem(
        torch.from_numpy(told.rf[None]).double(), forward, several.prior, told.noise(several), several.shape
    )
    parts = list(FewShots(0.3).parts(several, told.wall, problem, 6, np.random.default_rng(0)))
    assert [levels for _, levels in parts] == [1] * 6
    chosen = [part.forward.events for part, _ in parts]
    assert all(len(events) == 1 for events in chosen) and len({events[0] for events in chosen}) > 1
    with pytest.raises(UsageError, match="one transmit event"):
        lead(model, heard, range(1), method=GUIDED, calls=15, first=FewShots())
    with pytest.raises(UsageError, match=r"1\.5 of the events"):
        lead(several, told, range(1), method=GUIDED, calls=15, first=FewShots(1.5))


def test_what_a_guess_leaves_is_what_the_network_is_told(model: ResolvedModel, heard: Heard) -> None:
    """The right echoes leave noise, none leave all; without a guess everything about it is zero."""
    rf, top = heard.rf[None], heard.wall.top[None]
    maps = torch.zeros(1, *model.shape)
    samples = heard_samples(model.config)
    none = model.condition(rf, top)
    silent = model.condition(rf, top, Guess(maps, np.zeros_like(rf[:, :, :samples])))
    right = model.condition(rf, top, Guess(maps, rf[:, :, :samples]))
    shown = none.image.shape[1] - 5
    assert float(none.image[:, shown:].abs().max()) == 0 and float(none.traces[:, 1:].abs().max()) == 0
    assert torch.equal(silent.image[:, :shown], none.image[:, :shown]) and bool((silent.image[:, -1] == 1).all())
    near = slice(0, 8)  # rows whose echoes lie within what is listened to
    loud = none.image[:, :2, near]  # less the usual, which a residual is not
    left = [one.image[:, shown : shown + 2, near] for one in (silent, right)]
    assert float(torch.corrcoef(torch.stack([left[0].flatten(), loud.flatten()]))[0, 1]) > 0.95
    assert float(left[1].abs().mean()) < 0.05 * float(left[0].abs().mean())
    assert float(right.traces[:, 1, :, :40].abs().mean()) < 0.1 * float(none.traces[:, 0, :, :40].abs().mean())


def test_a_further_training_is_told_of_guesses(
    micro_cases: Path, folder: Path, heard: Heard, tmp_path: Path, monkeypatch: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """It goes on from the weights, keeps the guesses for a resume, and its model draws each sample anew."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lungwave.prior.resolved.KINDS", 1)  # half the time
    monkeypatch.setattr("lungwave.prior.resolved.DISCREPANCIES", 20)
    monkeypatch.setattr("lungwave.posterior.resolved.STEPS", 4)
    net = "--channels 8 --mult 1 2 --blocks 1 --heads 2 --patch 4 4"
    cut = "--batch 8 --check-images 16 --check-maps 4 --held-out 0.15 --dropout 0 --quiet"
    words = f"train {micro_cases} --echoes --field resolved --refine {folder} {net} {cut} --out run"
    assert main(shlex.split(f"{words} --images 8")) == 2, "the encoder of the folder is smaller than the usual"
    assert "is another network" in capfd.readouterr().err
    assert main(shlex.split(f"train {micro_cases} --echoes --field resolved {net} {cut} --out first --images 8")) == 0
    words = words.replace(str(folder), "first")
    assert main(shlex.split(f"{words} --images 8")) == 0
    kept = (tmp_path / "run" / "guesses.npz").stat().st_mtime_ns
    assert main(shlex.split(f"{words} --images 16")) == 0
    assert (tmp_path / "run" / "guesses.npz").stat().st_mtime_ns == kept
    refined = load_resolved(tmp_path / "run" / "model")
    assert refined.refines and not load_resolved(tmp_path / "first" / "model").refines
    found = lead(refined, heard, range(2), method=REFINED, calls=2)
    assert found.calls["vjp"] == 0 and found.calls["forward"] == 2 * 2 + 2 and len(found.levels) == 2
    one = lead(refined, heard, range(1, 2), method=REFINED, calls=2)
    assert torch.allclose(one.maps[0], found.maps[1], atol=1e-3)
    with pytest.raises(UsageError, match="did not learn what to make of a guess"):
        lead(load_resolved(tmp_path / "first" / "model"), heard, range(1), method=REFINED)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"method": "magic"}, "unknown method 'magic'; choose one of guided, hybrid"),
        ({"calls": 4}, "4 calls make no level of 5; give --budget 5 or more"),
    ],
)
def test_what_cannot_be_asked(model: ResolvedModel, heard: Heard, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        lead(model, heard, range(1), **how)
    with pytest.raises(UsageError, match="not finite"):
        lead(model, replace(heard, rf=np.full_like(heard.rf, np.inf)), range(1))


def test_a_lung_whose_waves_are_lost_is_counted(model: ResolvedModel, heard: Heard, monkeypatch: Any) -> None:
    """A forward model that returns NaN: a clear end where all are lost."""
    monkeypatch.setattr(
        LungForward, "__call__", lambda self, x: x.new_full((len(x), 1, self.samples, 16), float("nan"))
    )
    with pytest.raises(LungwaveError, match="all 1 cases were lost"):
        lead(model, heard, range(1), calls=5, inner=Inner(1, 1))


def test_macroscopic_maps_are_those_of_the_truth(pairs: ResolvedPairs) -> None:
    """Percent aeration of the upper bands and the smooth map, against what the simulator measured on a finer raster."""
    shown = shown_config(pairs.drawn)
    maps, bands = macroscopic(pairs.maps(np.arange(20))[:, 0], shown)
    assert shown.map.bands == (0, 0.5e-3, 1e-3, 2e-3) and maps.shape == (20, 24, 64)
    assert np.abs(bands[:, :3] - pairs.aeration[:20, :3]).mean() < 0.04
    assert np.abs(maps[:, :16] - pairs.cases.smooth[:20, :16]).mean() < 0.05
    fine = shown_config(preset("micro").override({"map.pixel": 2e-4, "map.rows": 32, "map.columns": 32}))
    assert macroscopic(pairs.maps(np.arange(1))[:, 0], fine)[0].shape == (1, 12, 32)
    with pytest.raises(UsageError, match="not whole cells"):
        shown_config(preset("micro").override({"map.pixel": 1.5e-4}))
    with pytest.raises(UsageError, match="deepen it"):
        shown_config(preset("micro").override({"grid.depth": 6e-3}))
    assert levels_of(25) == 5 and set(np.unique(airspace(pairs.maps(np.arange(1))))) == {0, 1}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lungs at 30 dB, of a seed that the model has not seen."""
    folder = tmp_path_factory.mktemp("recorded")
    generate(preset("micro").override({"seed": 9}), range(2), folder, noise=True, workers=1, quiet=True)
    return next(iter(folder.glob("*.h5")))


def test_reconstruct_by_command_and_after_an_interrupt(
    folder: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Report, samples and misfit; parts that were finished before are not made again."""
    from lungwave import led
    from lungwave.cli import main

    assert read_origin(recorded) == preset("micro").override({"seed": 9})
    asked = f"reconstruct {recorded} --method hybrid --budget 5 --samples 4 --frames 0:1 --model {folder} --json"
    made: list[range] = []
    real = led._lead

    def counted(*arguments: Any) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(arguments[2])
        return real(*arguments)

    monkeypatch.setattr(led, "_lead", counted)
    assert main(shlex.split(f"{asked} --out {tmp_path / 'out'}")) == 130
    monkeypatch.setattr(led, "_lead", lambda *arguments: (made.append(arguments[2]), real(*arguments))[1])
    capfd.readouterr()
    assert main(shlex.split(f"{asked} --out {tmp_path / 'out'}")) == 0
    found = json.loads(capfd.readouterr().out)
    assert made == [range(2), range(2, 4)]
    monkeypatch.undo()
    assert main(shlex.split(f"{asked} --out {tmp_path / 'whole'}")) == 0
    again = json.loads(capfd.readouterr().out)
    assert again["guidance"] == found["guidance"] and found["guidance"][0]["calls"]["vjp"] == 20
    with np.load(tmp_path / "out" / "resolved.npz") as one, np.load(tmp_path / "whole" / "resolved.npz") as other:
        np.testing.assert_array_equal(one["values"], other["values"])
        assert one["values"].shape == (1, 4, 2, 24, 96)
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "do not explain the echoes" in text and not (tmp_path / "out" / "parts").exists()
    assert (tmp_path / "out" / "guidance.png").stat().st_size > 10_000


def test_a_wall_that_nobody_knows_is_estimated(
    folder: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file without a lung: what its wall makes wrong is learned once, kept over an interrupt; the report tells."""
    from lungwave import led
    from lungwave.cli import main

    learned: list[int] = []

    def few(model: ResolvedModel, quiet: bool) -> Discrepancy:
        learned.append(1)
        return wall_errors(model, 20, quiet)

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(led, "wall_errors", few)
    whole = load_any(recorded)
    write_recording(tmp_path / "foreign.h5", replace(whole, rf=whole.rf[:1]))
    asked = f"reconstruct {tmp_path / 'foreign.h5'} --samples 2 --model {folder} --json --out {tmp_path / 'out'}"
    real = led._lead
    monkeypatch.setattr(led, "_lead", interrupted)
    assert main(shlex.split(asked)) == 130
    monkeypatch.setattr(led, "_lead", real)
    assert main(shlex.split(asked)) == 0 and learned == [1]
    text = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The chest wall was estimated" in text
    said = capfd.readouterr().out
    assert json.loads(said[said.index("{") :])["cases"][0]["truth"] is None
    asked = f"reconstruct {recorded} --samples 2 --model {folder} --json --frames 0:1 --wall estimated"
    assert main(shlex.split(f"{asked} --method hybrid --budget 5 --out {tmp_path / 'led'}")) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["guidance"][0]["calls"]["vjp"] == 10 and "estimated" in (tmp_path / "led" / "report.html").read_text()


def test_recordings_that_cannot_be_led(
    folder: Path, recorded: Path, pairs: ResolvedPairs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tiny lung has another acquisition, a level needs its calls; each ends with the cure and code 2."""
    from lungwave.cli import main

    recording = load_any(recorded)
    write_recording(tmp_path / "foreign.h5", recording)
    generate(preset("tiny"), range(1), tmp_path / "tiny", noise=True, workers=1, quiet=True)
    tiny = next((tmp_path / "tiny").glob("*.h5"))
    for words, said in (
        (f"{tmp_path / 'foreign.h5'} --wall estimated", "--wall is for resolved lungs"),
        (f"{tiny} --method hybrid", "elements at 0.25 mm"),
        (f"{recorded} --method hybrid --budget 4", "give --budget 5 or more"),
        (f"{recorded} --budget 40", "--budget is for --method guided or hybrid"),
        (f"{recorded} --method guided --noise-db -3", "--noise-db -3 must lie between 0 and 200"),
        (f"{recorded.parent} --method hybrid", "take one file"),
    ):
        model = f"--model {folder}" if "--method" in words else ""
        assert main(shlex.split(f"reconstruct {words} {model} --out {tmp_path / 'out'}")) == 2, words
        assert said in capfd.readouterr().err.replace("\n", " "), words
    assert not (tmp_path / "out").exists()


def test_train_by_command(
    micro_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model is one of resolved lungs; what does not go with them is refused."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)
    assert (
        main(shlex.split(f"train {micro_cases} --echoes --field resolved --out run --images 16 {SMALL} --quiet")) == 0
    )
    assert load_resolved(tmp_path / "run" / "model").shape == (2, 24, 96)
    for words, said in (
        ("--field resolved", "--field resolved is for --echoes"),
        ("--field resolved --echoes --stream", "takes neither --stream nor --center"),
    ):
        assert main(shlex.split(f"train {micro_cases} {words} --out other {SMALL} --quiet")) == 2
        assert said in capfd.readouterr().err
