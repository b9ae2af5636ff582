"""From generated cases to a posterior model to a reconstruction, at the smallest size."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lungwave.acoustics.probe import Recording
from lungwave.data.hdf5 import write_recording
from lungwave.models.unet import UNetConfig
from lungwave.models.wiener import Centred
from lungwave.posterior.amortized import PosteriorModel, load_posterior
from lungwave.posterior.pairs import Pairs, noisy
from lungwave.posterior.reconstruct import reconstruct
from lungwave.posterior.ridge import load_model
from lungwave.prior.build import Prior
from lungwave.prior.conditional import Posterior, export, ingredients
from lungwave.training.loop import TrainConfig
from lungwave.types import UsageError

NETWORK = UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, patch=(4, 4))
SMALL = "--channels 8 --mult 1 2 --blocks 1 --heads 2 --patch 4 4 --batch 8 --check-images 16 --check-maps 4"


@pytest.fixture(scope="module")
def pairs(micro_cases: Path) -> Pairs:
    return Pairs.read(micro_cases, quiet=True)


@pytest.fixture(scope="module")
def folder(pairs: Pairs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are random but not zero."""
    plan = Posterior(Prior(TrainConfig(seed=2), NETWORK, held_out=0.15), trace_channels=8, trace_images=2)
    made = ingredients(pairs, plan)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.model.denoiser.net.out[2].weight, std=0.3)
    out = tmp_path_factory.mktemp("posterior") / "model"
    export(made, plan, out, "a command", {"images": 0}, {}, ())
    return out


@pytest.fixture(scope="module")
def model(folder: Path) -> PosteriorModel:
    return load_posterior(folder)


def test_a_sample_depends_on_seed_frame_and_number_alone(model: PosteriorModel, pairs: Pairs) -> None:
    """Not on the other frames, nor on how many samples are drawn; and the echoes matter."""
    rf = noisy(pairs, np.arange(3), (30, 30), 0, "test")
    whole = model.draw(rf, 4, seed=1, steps=4)
    alone = model.draw(rf[1:2], 6, seed=1, names=[1], steps=4)
    np.testing.assert_allclose(alone.maps[0, :4], whole.maps[1], atol=2e-5)
    np.testing.assert_allclose(alone.bands[0, :4], whole.bands[1], atol=2e-5)
    assert np.abs(model.draw(rf[1:2], 4, seed=2, names=[1], steps=4).maps - whole.maps[1]).max() > 0.01
    swapped = model.draw(rf[2:3], 4, seed=1, names=[1], steps=4)
    assert np.abs(swapped.maps[0] - whole.maps[1]).max() > 1e-3
    assert whole.calls == 4 and whole.categories.sum(2) == pytest.approx(np.ones((3, 4)))
    assert whole.maps.min() >= 0 and whole.maps.max() <= 1


def test_a_stored_model_draws_the_same(model: PosteriorModel, folder: Path, pairs: Pairs, tmp_path: Path) -> None:
    """All numbers of the folder come back; float16 weights nearly."""
    rf = noisy(pairs, np.arange(1), (30, 30), 0, "test")
    again = load_posterior(Path(shutil.copytree(folder, tmp_path / "copy")))
    np.testing.assert_array_equal(again.draw(rf, 3, steps=3).maps, model.draw(rf, 3, steps=3).maps)
    assert again.categories.names == ("consolidation", "healthy", "interstitial")
    assert again.config == pairs.config and again.trained["images"] == 0


@pytest.mark.parametrize("damage", ["transform", "weights", "kind", "nan"])
def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    """Another transform, a cut file, a prior instead of a posterior, weights that are not finite."""
    from safetensors.torch import save_file

    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    about = json.loads((copy / "config.json").read_text())
    about.pop("content_sha256", None)
    if damage == "transform":
        about["transform"]["compand"] = 17
    if damage == "kind":
        about["kind"] = "diffusion"
    if damage == "weights":
        data = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    if damage == "nan":
        held = load_file(copy / "model.safetensors")
        held["net.out.2.bias"] = held["net.out.2.bias"] * float("nan")
        save_file(held, copy / "model.safetensors")
        del about["weights_sha256"]
    (copy / "config.json").write_text(json.dumps(about))
    words = {"transform": "compand: 17", "weights": "damaged", "kind": "'diffusion'", "nan": "not finite"}[damage]
    with pytest.raises(UsageError, match=words):
        load_posterior(copy)


def test_recordings_unlike_the_training_are_withheld_and_others_are_summed_up(
    model: PosteriorModel, pairs: Pairs
) -> None:
    """Noise alone is no lung; a lung of the training's kind gets a posterior with its truth beside it."""
    rf = noisy(pairs, np.arange(2), (30, 30), 0, "test")
    rf[1] = 50 * np.random.default_rng(0).standard_normal(rf[1].shape)
    truths = [pairs.cases.truth(0), None]
    lung, noise = reconstruct(Recording(rf, pairs.scan), model, truths=truths, samples=20)
    assert lung.withheld is None and lung.posterior is not None and lung.posterior.samples.shape == (20, 64, 64)
    assert lung.whole.truth == pytest.approx(pairs.cases.whole[0]) and lung.whole.lower < lung.whole.upper
    assert noise.posterior is None and re.search("No pleural line was found|Outside the trained range", noise.withheld)
    again = reconstruct(Recording(rf[:1], pairs.scan), model, samples=20)[0]
    np.testing.assert_allclose(again.aeration, lung.aeration, atol=1e-5)


def test_too_few_cases_and_impossible_paths_are_refused(pairs: Pairs) -> None:
    """Before anything is fitted."""
    with pytest.raises(UsageError, match="20 quantifiable cases; a posterior needs at least 60"):
        ingredients(pairs.take(np.arange(20)), Posterior(Prior(network=NETWORK)))
    with pytest.raises(UsageError, match="paths smells"):
        Posterior(Prior(), paths=("smells",))
    with pytest.raises(UsageError, match="--kind edm cannot be told of echoes"):
        Posterior(Prior(kind="edm"))


def test_train_resume_and_reconstruct_by_command(
    micro_cases: Path, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In two parts the weights are those of one; the report, arrays and tables are written."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)

    def run(words: str) -> dict:
        code = main([*shlex.split(words), "--json"])
        out, err = capfd.readouterr()
        assert code == 0, err
        return json.loads(out)

    train = f"train {micro_cases} --echoes {SMALL} --held-out 0.15 --snapshot-images 16"
    assert run(f"{train} --images 32 --dry-run")["cases"] == 54
    train += " --sigma-rel 0.1"
    run(f"{train} --images 32 --out whole")
    run(f"{train} --images 16 --out parts")
    run(f"{train} --images 32 --out parts")
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    write_recording(tmp_path / "rf.h5", Recording(noisy(pairs, np.arange(1), (30, 30), 0, "test"), pairs.scan))
    said = run("reconstruct rf.h5 --model whole --samples 19 --out found")
    assert said["frames"] == 1
    assert (tmp_path / "found" / "report.html").exists() and (tmp_path / "found" / "posterior.h5").exists()


def test_start_from_a_prior_and_train_baselines_by_command(
    micro_cases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A posterior that starts from a prior of the same layers, told at two noise levels; and what it must beat."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)

    def run(words: str, code: int = 0) -> Any:
        assert main([*shlex.split(words), "--json"]) == code
        out, err = capfd.readouterr()
        return err.splitlines()[-1] if code else json.loads(out)

    same = f"{SMALL} --held-out 0.15 --snapshot-images 16 --images 16 --sigma-rel 0.1"
    run(f"train {micro_cases} {same} --samples 0 --out prior")
    run(f"train {micro_cases} {same} --echoes --levels 2 --init prior --out posterior")
    about = json.loads((tmp_path / "posterior/model/config.json").read_text())
    assert "--init prior" in about["command"] and "--levels 2" in about["command"]
    assert "init" in run(f"train {micro_cases} {same} --echoes --levels 2 --out posterior", code=2)
    assert run(f"train {micro_cases} {same} --echoes --method unet --dry-run")["images"] == 16
    for method in ("unet", "mean"):
        run(f"train {micro_cases} {same} --echoes --method {method} --out {method}")
        assert json.loads((tmp_path / f"{method}/model/config.json").read_text())["regressor"]["name"] == method
    assert "--method unet learns from echoes" in run(f"train {micro_cases} {same} --method unet", code=2)
    assert "--levels 2 saves reading" in run(f"train {micro_cases} {same} --levels 2", code=2)


def test_a_posterior_around_an_estimate_by_command(
    micro_cases: Path, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without training its samples lie around the ridge map with the spread that this leaves."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lungwave.posterior.ridge.LEAST_CASES", 40)

    def run(words: str, code: int = 0) -> Any:
        assert main([*shlex.split(words), "--json", "--quiet"]) == code
        out, err = capfd.readouterr()
        return err.splitlines()[-1] if code else json.loads(out)

    run(f"fit {micro_cases} --calibration 0.3 --out ridge")
    same = f"{SMALL} --echoes --paths images --held-out 0.15 --snapshot-images 8 --images 8 --lr 1e-9 --sigma-rel 0.1"
    run(f"train {micro_cases} {same} --center ridge --out around")
    ridge, model = load_model(tmp_path / "ridge"), load_posterior(tmp_path / "around/model")
    assert isinstance(model.denoiser.denoiser, Centred) and model.center is not None
    assert model.center.command.startswith("lungwave fit")
    rf = noisy(pairs, np.arange(3), (30, 30), 0, "test")
    drawn = model.draw(rf, 40, seed=1, steps=8)
    estimate = ridge.predict(ridge.reader()(rf)).aeration
    left = np.abs(drawn.maps.mean(1) - estimate).mean()
    assert left < 0.1 and 0.3 < drawn.maps.std(1).mean() / model.prior_std.mean() < 1.1
    assert np.abs(drawn.maps.mean(1) - estimate[::-1]).mean() > left
    assert "center" in run(f"train {micro_cases} {same} --out around", code=2)
    (tmp_path / "around/model/center/model.safetensors").unlink()
    with pytest.raises(UsageError, match="center is not a complete model folder"):
        load_posterior(tmp_path / "around/model")
