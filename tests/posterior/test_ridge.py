"""Laws of the reconstructor: gain invariance, pleura found, honest refusal, files that come back the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import preset
from lungwave.data.generate import Case, generate, received, simulate_case
from lungwave.posterior.echoes import EchoReader, channel_features, column_features, reader_of
from lungwave.posterior.linear import FOLDS, Linear, folds_of
from lungwave.posterior.reconstruct import reconstruct
from lungwave.posterior.ridge import Folds, RidgeModel, fit, load_model, save_model
from lungwave.shipped import SHIPPED
from lungwave.types import UsageError

SEED = 990


@pytest.fixture(scope="module")
def model() -> RidgeModel:
    return load_model(SHIPPED / "ridge-tiny")


@pytest.fixture(scope="module")
def cases(model: RidgeModel) -> list[Case]:
    config = model.config.override({"seed": SEED})
    simulator = Simulator(config)
    return [simulate_case(config, index, simulator) for index in range(6)]


@pytest.fixture(scope="module")
def recording(model: RidgeModel, cases: list[Case]) -> Recording:
    config = model.config.override({"seed": SEED})
    simulator = Simulator(config)
    return Recording(np.stack([received(case, config, simulator) for case in cases]), simulator.scan)


def test_gain_changes_nothing(model: RidgeModel, recording: Recording) -> None:
    reader = model.reader()
    quiet, loud = model.predict(reader(recording.rf * 1e-3)), model.predict(reader(recording.rf * 1e4))
    assert np.allclose(quiet.bands, loud.bands, atol=1e-4)
    assert np.allclose(quiet.pleura_depth, loud.pleura_depth)


def test_batch_of_frames_equals_frame_by_frame(model: RidgeModel, recording: Recording) -> None:
    reader = model.reader()
    together = model.predict(reader(recording.rf))
    for i in range(len(recording.rf)):
        alone = model.predict(reader(recording.rf[i : i + 1]))
        assert np.allclose(alone.bands[0], together.bands[i], atol=1e-6)
        assert np.allclose(alone.aeration[0], together.aeration[i], atol=1e-6)


def test_pleura_is_found_and_aeration_beats_the_mean(
    model: RidgeModel, cases: list[Case], recording: Recording
) -> None:
    found = model.predict(model.reader()(recording.rf))
    truth = np.stack([case.truth.pleura_depth for case in cases])
    assert np.median(np.abs(found.pleura_depth - truth)) < 0.15e-3
    whole = np.array([case.truth.whole for case in cases])
    error, of_mean = np.abs(found.bands[:, -1] - whole).mean(), np.abs(model.bands.bias[-1] - whole).mean()
    assert error < 0.6 * of_mean
    inside = np.abs(found.bands[:, -1] - whole) <= found.bands_half[-1, :, -1]  # 95 %
    assert inside.sum() >= 4


def test_intervals_nest(model: RidgeModel, recording: Recording) -> None:
    found = model.predict(model.reader()(recording.rf))
    assert (np.diff(found.bands_half, axis=0) >= 0).all()
    assert (np.diff(found.aeration_half, axis=0) >= 0).all()
    assert (found.bands_half > 0).all()


def test_features_ignore_the_start_time_convention(model: RidgeModel, recording: Recording) -> None:
    """Twelve samples of leading silence, declared in start_times, are no news."""
    lead = 12
    padded = np.pad(recording.rf, ((0, 0), (0, 0), (lead, 0), (0, 0)))
    scan = replace(recording.scan, start_times=recording.scan.start_times - lead / recording.scan.sampling_frequency)
    depth = np.full((len(padded), model.config.map.columns), 3.5e-3)
    plain = model.reader()(recording.rf)
    moved = model.reader(scan)(padded)
    assert np.allclose(channel_features(plain, depth), channel_features(moved, depth), atol=0.05)
    assert np.allclose(column_features(plain, depth), column_features(moved, depth), atol=0.05)


def test_results_say_what_they_know(model: RidgeModel, cases: list[Case], recording: Recording) -> None:
    results = reconstruct(recording, model, truths=[case.truth for case in cases])
    for case, result in zip(cases, results, strict=True):
        assert result.withheld is None and result.whole is not None and result.aeration is not None
        assert result.lower is not None and result.upper is not None
        assert (result.lower <= result.aeration).all() and (result.aeration <= result.upper).all()
        assert 0 <= result.whole.lower <= result.whole.estimate <= result.whole.upper <= 1
        assert result.whole.truth == case.truth.whole
        assert len(result.bands) == 5 and result.information_depth is not None
        assert result.information_depth.max() <= 6.4e-3 + 1e-9
    air = [r.whole.estimate for r in results if r.whole]
    depth = [float(np.median(r.information_depth)) for r in results if r.information_depth is not None]
    assert np.corrcoef(air, depth)[0, 1] < 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"center_frequency": 5e6}, "centre frequency is 5 MHz, trained 3 MHz"),
        ({"angles": np.deg2rad([-5.0, 0.0, 5.0])}, "angles are -5, 0, 5 degrees"),
        ({"focus_distance": np.array([0.02, 0.02, 0.02])}, "kind 'focused'"),
        ({"sampling_frequency": 11e6}, "sampling frequency is 11 MHz"),
    ],
)
def test_other_acquisitions_are_drawn_but_not_judged(
    model: RidgeModel, recording: Recording, change: dict, says: str
) -> None:
    other = Recording(recording.rf[:1], replace(recording.scan, **change))
    (result,) = reconstruct(other, model)
    assert result.withheld is not None and says in result.withheld and "lungwave fit" in result.withheld
    assert result.aeration is None and result.whole is None and result.bands == ()
    assert result.bmode.decibel.max() == 0 and result.bmode.decibel.std() > 0


def test_short_record_and_pure_noise_are_withheld(model: RidgeModel, recording: Recording) -> None:
    (short,) = reconstruct(Recording(recording.rf[:1, :, :120], recording.scan), model)
    assert short.withheld is not None and "record lasts 10 us" in short.withheld
    noise = np.random.default_rng(0).standard_normal((1, *recording.rf.shape[1:])).astype(np.float32)
    (result,) = reconstruct(Recording(noise, recording.scan), model)
    assert result.withheld is not None and "training cases" in result.withheld


def test_fit_is_deterministic_and_survives_its_files(tmp_path: Path) -> None:
    config = preset("micro").override({"grid.steps": 450, "seed": 3, "receive.echo_start": 3e-6})
    data = tmp_path / "data"
    generate(config, range(0, 120), data, shard_size=40, quiet=True)
    first, second = fit(data, rounds=1, quiet=True), fit(data, rounds=1, quiet=True)
    assert np.array_equal(first.bands.weight, second.bands.weight)
    save_model(first, tmp_path / "model", card="card", command="lungwave fit data", parents=[])
    loaded = load_model(tmp_path / "model")
    assert loaded.config == config
    simulator = Simulator(config)
    case = simulate_case(config, 500, simulator)
    reader = reader_of(config, simulator.scan)
    assert isinstance(reader, EchoReader)
    echoes = reader(received(case, config, simulator)[None])
    a, b = first.predict(echoes), loaded.predict(echoes)
    assert np.allclose(a.bands, b.bands, atol=1e-4) and np.allclose(a.bands_half, b.bands_half, rtol=1e-3)
    assert first.folds is not None and loaded.folds is not None
    assert len(first.folds.heads) == FOLDS and len(first.folds.base_id) == first.trained["fitted"]
    depth = first.detector.detect(echoes)
    whole, unknown = loaded.maps(echoes, depth), loaded.maps(echoes, depth, np.array([-1]))
    parts = [loaded.maps(echoes, depth, np.array([k])) for k in range(FOLDS)]
    assert np.array_equal(whole, unknown) and all(0 < np.abs(part - whole).mean() < 0.1 for part in parts)
    assert np.allclose(parts[2], first.maps(echoes, depth, np.array([2])), atol=1e-4)
    save_model(replace(first, folds=None), tmp_path / "alone", card="card", command="lungwave fit data", parents=[])
    assert load_model(tmp_path / "alone").folds is None
    about = json.loads((tmp_path / "model" / "config.json").read_text())
    assert about["trained"]["cases"] == 120 and about["config_sha256"]


def test_every_lung_is_unseen_by_one_head() -> None:
    head = Linear(np.zeros((1, 1)), np.zeros(1), np.zeros(1), np.ones(1))
    folds = Folds((head,) * FOLDS, np.array([3, 5, 6, 8, 11, 20, 21]))
    assert folds.unseen(np.array([3, 21, 6, 11, 20, 4, 0, 99])).tolist() == [0, 1, 2, 4, 0, -1, -1, -1]
    assert folds.unseen(folds.base_id).tolist() == folds_of(folds.base_id).tolist()


def test_bad_training_sets_and_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lungwave generate"):
        fit(tmp_path, quiet=True)
    config = preset("micro").override({"grid.steps": 300})
    generate(config, range(4), tmp_path / "few", quiet=True)
    with pytest.raises(UsageError, match="at least 100"):
        fit(tmp_path / "few", quiet=True)
    with pytest.raises(UsageError, match="lo <= hi"):
        fit(tmp_path / "few", snr_db=(40.0, 10.0), quiet=True)
    with pytest.raises(UsageError, match="not a complete model folder"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "diffusion", "format": 1}')
    (tmp_path / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
    with pytest.raises(UsageError, match="'diffusion' model"):
        load_model(tmp_path)
