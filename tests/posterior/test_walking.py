"""A walking aperture event by event: nothing moves, every column is its nearest beam's, and what differs is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording, Scan, sequence
from lungwave.config import MapConfig, preset
from lungwave.data.generate import received, simulate_case
from lungwave.phantom.aeration import seed_view
from lungwave.posterior.reconstruct import load_any_model, reconstruct
from lungwave.posterior.ridge import Estimate, RidgeModel
from lungwave.posterior.walking import Strips, one_by_one, walks
from lungwave.shipped import SHIPPED
from lungwave.types import MM, UsageError

PAPER = sequence(preset("paper"))
STRIP = MapConfig(columns=24)


@pytest.fixture(scope="module")
def ridge() -> RidgeModel:
    found = load_any_model(SHIPPED / "ridge-paper")
    assert isinstance(found, RidgeModel)
    return found


def counted(scan: Scan, frames: int) -> Recording:
    """RF that says which frame, event and sample it is of."""
    numbers = np.arange(frames * scan.transmits * 5, dtype=np.float32).reshape(frames, scan.transmits, 5, 1)
    return Recording(np.repeat(numbers, scan.delays.shape[1], 3) + 1, scan)


def test_every_event_of_the_preset_is_the_one_that_the_shipped_ridge_reads(ridge: RidgeModel) -> None:
    assert walks(PAPER) and not walks(ridge.scan)
    alone, trained = one_by_one(counted(PAPER, 1)).scan, ridge.scan
    for name in ("elements", "delays", "apodization", "start_times", "focus_distance", "angles", "origins"):
        np.testing.assert_allclose(getattr(alone, name), getattr(trained, name), atol=1e-9, err_msg=name)
    alone.validate()


def test_events_keep_their_order_and_lose_their_ends() -> None:
    recording = counted(PAPER, 2)
    found = one_by_one(recording, 4)
    assert found.rf.shape == (32, 1, 4, 64)
    np.testing.assert_array_equal(found.rf[16 + 3, 0], recording.rf[1, 3, :4])


@pytest.mark.parametrize(
    ("what", "field", "change"),
    [
        ("delays", "delays", 1e-7),
        ("start times", "start_times", 1e-6),
        ("focus", "focus_distance", 1e-3),
        ("angles", "angles", 0.1),
        ("elements", "origins", 1e-3),
        ("apodization", "apodization", -0.5),
    ],
)
def test_events_that_differ_are_named(what: str, field: str, change: float) -> None:
    values = getattr(PAPER, field).copy()
    values[5] += change
    if field == "delays":
        values[5] = PAPER.delays[5] + change * np.linspace(0, 1, 64)
    with pytest.raises(UsageError, match=rf"events of the walking aperture differ in {what}; only their place may"):
        one_by_one(counted(replace(PAPER, **{field: values}), 1))


def test_every_column_is_of_the_nearest_beam() -> None:
    strips = Strips.under(PAPER, STRIP, 256)
    beams, local = PAPER.origins[:, 0], (np.arange(24) - 11.5) * STRIP.pixel
    np.testing.assert_allclose(strips.x, (np.arange(256) - 127.5) * STRIP.pixel, atol=1e-12)
    away = np.abs(strips.x[:, None] - beams)
    np.testing.assert_allclose(away[np.arange(256), strips.event[0]], away.min(1))
    place = beams[strips.event] + local[strips.column]
    counts = strips.weight > 0
    assert np.abs((place - strips.x)[counts]).max() <= STRIP.pixel / 2 + 1e-9
    np.testing.assert_allclose(strips.weight.sum(0), 1)
    assert (strips.weight[0] >= 0.5).all() and (~counts[1]).mean() > 0.3
    between = np.argmin(np.abs(strips.x - (beams[7] + beams[8]) / 2))
    assert strips.weight[0, between] == pytest.approx(0.5, abs=0.06)
    whole = Strips.under(PAPER, STRIP)
    assert len(whole.x) == 258 and whole.x[0] == pytest.approx(-whole.x[-1])


@pytest.mark.parametrize("columns", [17, 24, 60, 200])
def test_nothing_jumps_where_strips_overlap_a_lot(columns: int) -> None:
    """Narrow and wide strips: only what a strip holds is used of it, and its weight changes little by little."""
    strips = Strips.under(PAPER, MapConfig(columns=columns))
    away = np.abs(strips.x - PAPER.origins[strips.event, 0])
    assert away[strips.weight > 1e-9].max() <= columns * STRIP.pixel / 2 + 1e-9
    of_event = np.zeros((PAPER.transmits, len(strips.x)))
    for event, weight in zip(strips.event, strips.weight, strict=True):
        of_event[event, np.arange(len(strips.x))] += weight
    np.testing.assert_allclose(of_event.sum(0), 1)
    if columns > 17:
        assert np.abs(np.diff(of_event, axis=1)).max() < 0.2


@pytest.mark.parametrize(("shape", "columns"), [(MapConfig(columns=12), None), (STRIP, 260)])
def test_a_map_with_gaps_is_refused(shape: MapConfig, columns: int | None) -> None:
    with pytest.raises(UsageError, match=r"strips of .* mm, 1.56 mm apart, make no map of .* columns without gaps"):
        Strips.under(PAPER, shape, columns)


def test_strips_are_put_in_their_place() -> None:
    """Where every strip says where it lies, the joined map says where its columns lie."""
    frames, events, rows = 2, PAPER.transmits, 3
    local = (np.arange(24) - 11.5) * STRIP.pixel
    place = np.tile(PAPER.origins[:, 0], frames)[:, None] + local
    frame = np.repeat(np.arange(frames), events)
    aeration = place[:, None] + 10.0 * frame[:, None, None] + np.arange(rows)[None, :, None]
    number = np.tile(np.arange(events, dtype=float), frames)
    found = Estimate(
        bands=np.stack([number, 2 * number], 1),
        bands_half=np.stack([np.ones((len(number), 2)), np.stack([number, number], 1)]),
        aeration=aeration,
        aeration_half=np.stack([aeration, 2 * aeration]),
        pleura_depth=place + frame[:, None],
        novelty=np.where((frame == 1) & (number == 4), 3.0, 0.5),
    )
    strips = Strips.under(PAPER, STRIP, 256)
    joined, usual = strips.join(found, frames)
    for k in range(frames):
        for row in range(rows):
            np.testing.assert_allclose(joined.aeration[k, row], strips.x + 10 * k + row, atol=STRIP.pixel / 2 + 1e-9)
        np.testing.assert_allclose(joined.aeration_half[1, k], 2 * joined.aeration[k])
        np.testing.assert_allclose(joined.pleura_depth[k], strips.x + k, atol=STRIP.pixel / 2 + 1e-9)
    np.testing.assert_allclose(joined.bands, [[7.5, 15.0]] * 2)
    np.testing.assert_allclose(joined.bands_half, [[[1.0, 1.0]] * 2, [[7.5, 7.5]] * 2])
    np.testing.assert_allclose(joined.novelty, 0.5)
    assert usual[0].all() and (usual[1] == ~((strips.event == 4) & (strips.weight > 0)).any(0)).all()


@pytest.fixture(scope="module")
def walk(ridge: RidgeModel) -> tuple[Recording, Any]:
    """One event of an unseen lung three times over, as if its aperture had walked along three equal lungs."""
    config = ridge.config.override({"seed": 991})
    simulator = Simulator(config)
    case = simulate_case(config, 4, simulator)
    single = received(case, config, simulator)
    three = sequence(config.override({"probe.array_elements": 80, "sequence.events": 3}))
    later = np.pad(np.repeat(single, 3, 0), ((0, 0), (0, 40), (0, 0)))  # a longer record than the model's
    return Recording(later[None], three), (case, single)


def test_equal_events_are_read_equally(ridge: RidgeModel, walk: tuple[Recording, Any]) -> None:
    recording, (case, single) = walk
    (found,) = reconstruct(recording, ridge)
    alone = ridge.predict(ridge.reader()(single[None]))
    strips = Strips.under(recording.scan, ridge.config.map)
    assert found.withheld is None and found.aeration is not None and found.x is not None and found.whole is not None
    np.testing.assert_allclose(found.x, strips.x)
    faded = sum(w * alone.aeration[0][:, column] for w, column in zip(strips.weight, strips.column, strict=True))
    np.testing.assert_allclose(found.aeration, faded, atol=1e-5)
    assert found.whole.estimate == pytest.approx(float(alone.bands[0, -1]), abs=1e-5)
    assert found.pleura_depth is not None
    assert np.median(np.abs(found.pleura_depth - case.truth.pleura_depth[strips.column[0]])) < 1.0 * MM
    assert found.valid is not None and found.valid.all()
    wide = np.pad(found.aeration, ((0, 0), (0, 256 - found.aeration.shape[1])))
    assert seed_view(wide).shape == (8, 256)


def test_another_focus_or_uneven_events_are_withheld(ridge: RidgeModel, walk: tuple[Recording, Any]) -> None:
    recording = replace(walk[0], rf=walk[0].rf[:, :, :300])  # the reasons come before its length
    deep = ridge.config.override({"probe.array_elements": 80, "sequence.events": 3, "sequence.focus": 30 * MM})
    (found,) = reconstruct(replace(recording, scan=sequence(deep)), ridge)
    assert found.withheld is not None and "the focus lies at 30 mm, the model was trained with 20 mm" in found.withheld
    uneven = replace(recording.scan, start_times=np.array([0, 0, 1e-6]))
    (found,) = reconstruct(replace(recording, scan=uneven), ridge)
    assert found.withheld is not None and "differ in start times" in found.withheld and found.aeration is None
