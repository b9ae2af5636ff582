"""A posterior known in closed form passes every test, a biased or overconfident one does not; nothing is made up."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from lungwave.evaluate.methods import Ridge
from lungwave.evaluate.reconstruction import (
    CRPS_MAP,
    CRPS_WHOLE,
    MAP,
    PIXEL,
    SSIM,
    TOP,
    Estimated,
    Judged,
    Method,
    Sampled,
    Truths,
    constant,
    improvements,
    joined,
    judge,
    mean_map,
)
from lungwave.evaluate.similarity import ssim
from lungwave.evaluate.tables import NOTES, markdown, rows
from lungwave.figures_evaluation import save_pictures
from lungwave.posterior.ridge import load_model
from lungwave.repro import stream
from lungwave.shipped import SHIPPED
from lungwave.types import MM, UsageError

CASES, MEMBERS, ROWS, COLUMNS, PIXELS = 160, 39, 24, 16, 0.25 * MM
EDGES = (0.0, 0.5 * MM, 1.0 * MM, 2.0 * MM, 4.0 * MM, 6.0 * MM)
PRIOR = 0.12  # standard deviation of the field before anything is known
LEFT = np.linspace(0.3, 1.0, ROWS)  # of it once the echoes are heard, by row
KINDS = ("consolidation", "healthy", "interstitial")
EXACT = Method("exact", KINDS, np.full((ROWS, COLUMNS), PRIOR))


def blur(size: int) -> np.ndarray:
    """Rows of a Gaussian filter, such that white noise comes out correlated and with unit variance."""
    weight = np.exp(-0.5 * np.square(np.subtract.outer(np.arange(size), np.arange(size)) / 2.0))
    return weight / np.linalg.norm(weight, axis=1, keepdims=True)


def fields(*shape: int, name: str) -> np.ndarray:
    white = stream(5, name).standard_normal((*shape, ROWS, COLUMNS))
    return blur(ROWS) @ white @ blur(COLUMNS).T


def bands_of(maps: np.ndarray) -> np.ndarray:
    """Means over depth bands and the whole."""
    depth = (np.arange(ROWS) + 0.5) * PIXELS
    spans = [*pairwise(EDGES), (EDGES[0], EDGES[-1])]
    return np.stack([maps[..., (depth >= a) & (depth < b), :].mean((-2, -1)) for a, b in spans], -1)


@pytest.fixture(scope="module")
def gaussian() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Known means, truths, and samples around the means from the same law as the truths."""
    level = stream(5, "level").uniform(0.15, 0.75, CASES)[:, None, None]
    left = PRIOR * LEFT[:, None]
    mean = level + np.sqrt(PRIOR**2 - left**2) * fields(CASES, name="mean")
    drawn = mean[:, None] + left * fields(CASES, MEMBERS + 1, name="drawn")
    return mean, drawn[:, 0], drawn[:, 1:]


@pytest.fixture(scope="module")
def truths(gaussian: tuple[np.ndarray, ...]) -> Truths:
    whole = bands_of(gaussian[1])[:, -1]
    kinds = tuple(KINDS[k] for k in np.digitize(whole, (0.35, 0.55)))
    return Truths(gaussian[1], bands_of(gaussian[1]), kinds, EDGES, PIXELS, 3e6)


def sampled(maps: np.ndarray) -> Sampled:
    """Category by the mean aeration, as the truths'."""
    numbers = bands_of(maps)
    kind = np.digitize(numbers[..., -1], (0.35, 0.55))
    return Sampled(maps, numbers, np.stack([(kind == k).mean(1) for k in range(3)], 1), np.zeros(len(maps)))


@pytest.fixture(scope="module")
def exact(gaussian: tuple[np.ndarray, ...], truths: Truths) -> Judged:
    return judge(EXACT, sampled(gaussian[2]), truths, 20.0, summary=gaussian[0])


def covers(judged: Judged, name: str) -> list[bool]:
    return [c.inside.low <= c.level <= c.inside.high for c in judged.coverage[name]]


def test_the_exact_posterior_passes(exact: Judged, truths: Truths) -> None:
    assert [c.level for c in exact.coverage[PIXEL]] == [0.5, 0.8, 0.9, 0.95]
    assert all(covers(exact, PIXEL)) and all(covers(exact, "0-6 mm"))
    assert [name for name, found in exact.uniformity.items() if not found.inside] == []
    assert exact.tarp is not None and exact.tarp.curve.inside and exact.tarp.area.low < 0 < exact.tarp.area.high
    for found in exact.spread_skill.values():
        assert found.low < 1 < found.high and found.high - found.low < 0.3
    assert exact.auc["mean"].value > 0.95 and list(exact.auc) == [*KINDS, "mean"]
    assert exact.notes == () and exact.out_of_range.value == 0


def test_its_crps_is_that_of_the_gaussian(exact: Judged) -> None:
    """E CRPS = std / sqrt(pi) where truth and samples share a law of that spread."""
    found = exact.scores[CRPS_MAP]
    assert found.low < PRIOR * LEFT.mean() / np.sqrt(np.pi) < found.high
    assert found.high - found.low < 0.1 * found.value
    weight = np.outer((PRIOR * LEFT)[:, None] * blur(ROWS), blur(COLUMNS)).reshape(ROWS, ROWS, COLUMNS, COLUMNS)
    std = np.linalg.norm(weight.mean((0, 2)))  # of the mean over the map
    assert exact.scores[CRPS_WHOLE].low < std / np.sqrt(np.pi) < exact.scores[CRPS_WHOLE].high


def test_its_errors_are_those_of_the_gaussian(exact: Judged) -> None:
    """Mean of M samples against the truth: sqrt(2 / pi) std sqrt(1 + 1 / M)."""
    wide = PRIOR * np.sqrt(2 / np.pi * (1 + 1 / MEMBERS))
    assert exact.scores[MAP].value == pytest.approx(wide * LEFT.mean(), rel=0.05)
    assert exact.scores[TOP].value == pytest.approx(wide * LEFT[:4].mean(), rel=0.1)  # four rows of 0.25 mm
    assert exact.scores["0-0.5 mm"].value < exact.scores["4-6 mm"].value * 1.5


def test_information_is_the_spread_that_is_left(exact: Judged, truths: Truths) -> None:
    assert [known.aeration for known in exact.information] == [0.2, 0.35, 0.5, 0.7]
    for known in exact.information:
        near = np.abs(truths.bands[:, -1] - known.aeration) <= 0.075
        assert known.cases == near.sum()
        np.testing.assert_allclose(known.spread, LEFT, rtol=0.12)
        np.testing.assert_allclose(known.depth, (np.arange(ROWS) + 0.5) * PIXELS)
    assert [known.reach for known in exact.information] == sorted(
        (known.reach for known in exact.information), reverse=True
    )


def test_an_overconfident_posterior_is_flagged(gaussian: tuple[np.ndarray, ...], truths: Truths) -> None:
    mean, _, samples = gaussian
    found = judge(EXACT, sampled(mean[:, None] + 0.5 * (samples - mean[:, None])), truths, 20.0, mean)
    assert all(c.inside.high < c.level for name in (PIXEL, "0-6 mm") for c in found.coverage[name])
    assert all(value.high < 1 for value in found.spread_skill.values())
    assert not found.uniformity["0-6 mm"].inside
    assert found.tarp is not None and not found.tarp.curve.inside and found.tarp.area.high < 0


def test_a_biased_posterior_is_flagged(gaussian: tuple[np.ndarray, ...], truths: Truths, exact: Judged) -> None:
    found = judge(EXACT, sampled(gaussian[2] + 0.04), truths, 20.0, gaussian[0])
    assert not found.uniformity["0-6 mm"].inside and found.uniformity["0-6 mm"].p < 1e-4
    assert found.scores[CRPS_WHOLE].low > exact.scores[CRPS_WHOLE].high
    (ours, other, by), _ = improvements([exact, replace(found, method="biased")])
    assert (ours, other) == ("exact", "biased") and by["0-6 mm"].low > 0 and by[CRPS_WHOLE].low > 0


def test_the_prior_is_flagged_by_references_near_an_estimate_alone(
    gaussian: tuple[np.ndarray, ...], truths: Truths
) -> None:
    """Samples of other cases have uniform ranks: only what depends on the recording tells that nothing was learnt."""
    order = stream(5, "prior").integers(CASES, size=(CASES, MEMBERS))
    prior = sampled(gaussian[2][order, np.arange(MEMBERS)])
    found = judge(EXACT, prior, truths, 20.0, gaussian[0])
    assert found.uniformity["0-6 mm"].inside and found.tarp is not None and not found.tarp.curve.inside
    own = judge(EXACT, prior, truths, 20.0)
    assert own.tarp is not None and own.tarp.curve.inside


def test_without_a_summary_half_of_the_samples_is_tested(gaussian: tuple[np.ndarray, ...], truths: Truths) -> None:
    """A mean over the tested samples would lie nearer to them than to the truth."""
    found = judge(EXACT, sampled(gaussian[2][:, :12]), truths, 20.0)
    assert found.tarp is not None and found.tarp.curve.inside and len(found.tarp.curve.at) == 6


def test_estimates_are_judged_by_what_they_say(gaussian: tuple[np.ndarray, ...], truths: Truths) -> None:
    mean, _, _ = gaussian
    half = 1.645 * PRIOR * LEFT[:, None]
    numbers = bands_of(mean)
    wide = np.full(6, 1.645) * np.abs(numbers - truths.bands).std(0) / np.sqrt(1 - 2 / np.pi)
    found = judge(
        Method("estimates"),
        Estimated(numbers, numbers - wide, numbers + wide, mean, mean - half, mean + half, np.full(CASES, 2.0)),
        truths,
        20.0,
    )
    (pixel,) = found.coverage[PIXEL]
    assert pixel.level == 0.9 and pixel.inside.low < 0.9 < pixel.inside.high
    assert found.scores[CRPS_MAP] == found.scores[MAP] and found.scores[CRPS_WHOLE] == found.scores["0-6 mm"]
    assert found.out_of_range.value == 1 and found.samples == 0
    assert found.tarp is None and not found.uniformity and not found.spread_skill
    np.testing.assert_allclose(found.case_scores["0-6 mm"], np.abs(numbers - truths.bands)[:, -1])


def test_half_the_error_is_half_better(truths: Truths) -> None:
    wrong = stream(5, "wrong").standard_normal((CASES, ROWS, COLUMNS)) / 10
    a, b = (
        judge(Method(name), constant(bands_of(maps), maps), truths, 20.0)
        for name, maps in (("a", truths.maps + wrong / 2), ("b", truths.maps + wrong))
    )
    by = {(ours, other): found for ours, other, found in improvements([a, b])}
    assert SSIM not in by["a", "b"]
    for name, found in by["a", "b"].items():
        assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5)), name
    assert by["b", "a"][MAP].value == pytest.approx(-1.0)


def test_the_mean_map_of_a_case_knows_neither_it_nor_its_relatives(truths: Truths) -> None:
    bases = np.arange(CASES) // 2
    found = mean_map(truths, bases)
    np.testing.assert_allclose(found.map[7], np.delete(truths.maps, (6, 7), 0).mean(0))
    np.testing.assert_allclose(found.bands[7], np.delete(truths.bands, (6, 7), 0).mean(0))
    judged = judge(Method("mean map", intervals=False), found, truths, 20.0)
    assert judged.coverage == {} and judged.low is None
    with pytest.raises(UsageError, match="one base anatomy"):
        mean_map(truths, np.zeros(CASES, int))


def test_what_cannot_be_said_is_left_out_with_the_reason(gaussian: tuple[np.ndarray, ...], truths: Truths) -> None:
    few = sampled(gaussian[2][:, :24])
    found = judge(EXACT, few, replace(truths, categories=("healthy",) * CASES), 20.0)
    assert [c.level for c in found.coverage[PIXEL]] == [0.5, 0.8, 0.9]
    assert any("95%" in note and "39 samples" in note for note in found.notes)
    assert found.auc == {} and any("no AUC" in note for note in found.notes)
    strange = judge(EXACT, few, replace(truths, categories=("fibrosis",) * CASES), 20.0)
    assert any("fibrosis" in note for note in strange.notes)
    assert judge(Method("no prior"), few, truths, 20.0).information == ()


def test_predictions_of_other_cases_or_maps_are_refused(gaussian: tuple[np.ndarray, ...], truths: Truths) -> None:
    with pytest.raises(UsageError, match="exact: predictions of 159 cases"):
        judge(EXACT, sampled(gaussian[2][1:]), truths, 20.0)
    with pytest.raises(UsageError, match="truth has"):
        judge(EXACT, sampled(gaussian[2]), replace(truths, maps=truths.maps[:, 1:]), 20.0)


def test_blocks_of_cases_join_to_the_whole(gaussian: tuple[np.ndarray, ...]) -> None:
    whole = sampled(gaussian[2][:6])
    parts = joined([sampled(gaussian[2][:4]), sampled(gaussian[2][4:6])])
    for name in ("maps", "bands", "categories", "novelty"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_ssim_is_the_mean_over_windows() -> None:
    x, y = stream(5, "ssim").random((2, 1, 12, 9))
    c1, c2 = 0.01**2, 0.03**2
    by_hand = []
    for z in range(12 - 6):
        for w in range(9 - 6):
            a, b = x[0, z : z + 7, w : w + 7].ravel(), y[0, z : z + 7, w : w + 7].ravel()
            (aa, ab), (_, bb) = np.cov(a, b)
            top = (2 * a.mean() * b.mean() + c1) * (2 * ab + c2)
            by_hand.append(top / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (aa + bb + c2)))
    assert ssim(x, y) == pytest.approx([np.mean(by_hand)], abs=1e-10)
    assert ssim(x, x) == pytest.approx([1.0])
    assert ssim(x, 1 - x)[0] < 0
    with pytest.raises(UsageError, match="smaller than SSIM's window"):
        ssim(x[:, :6], y[:, :6])


def test_tables_say_what_was_judged(exact: Judged, truths: Truths, tmp_path: object) -> None:
    base = judge(Method("mean map", intervals=False), mean_map(truths, np.arange(CASES)), truths, 20.0)
    levels, improved = [[exact, base]], [improvements([exact, base])]
    text = markdown(levels, improved, "title", "intro", NOTES.format(summary="x", mean="y"))
    assert "| 20 dB | exact |" in text and "| 20 dB | mean map |" in text and "nan" not in text
    error = exact.scores["0-6 mm"]
    assert f"{error.value:.3f} ({error.low:.3f} to {error.high:.3f})" in text
    lines = {
        (row["method"], row["figure"], row["over"]): row for row in csv.DictReader(io.StringIO(rows(levels, improved)))
    }
    assert float(lines["exact", "0-6 mm", ""]["value"]) == pytest.approx(error.value, rel=1e-5)
    assert ("mean map", f"improvement, {MAP}", "exact") in lines and ("exact", "90% coverage, per pixel", "") in lines
    held = json.loads(json.dumps(exact.to_json(), allow_nan=False))
    assert held["scores"]["0-6 mm"]["value"] == error.value and "case_scores" not in held


def test_pictures_are_drawn_of_whatever_there_is(exact: Judged, truths: Truths, tmp_path) -> None:
    base = judge(Method("mean map", intervals=False), mean_map(truths, np.arange(CASES)), truths, 20.0)
    names = {path.name for path in save_pictures([[exact, base]], tmp_path / "all")}
    assert names == {"error_by_band.png", "estimates_20dB.png", "calibration_20dB.png", "information_20dB.png"}
    assert {path.name for path in (tmp_path / "all").iterdir()} == names
    assert [path.name for path in save_pictures([[base]], tmp_path / "least")] == ["error_by_band.png"]


def test_the_ridge_baseline_says_its_own_intervals() -> None:
    model = load_model(SHIPPED / "ridge-tiny")
    scan, index = model.scan, np.arange(2)
    rf = stream(5, "rf").standard_normal((2, scan.transmits, 190, scan.delays.shape[1])).astype(np.float32)
    said, found = model.predict(model.reader()(rf)), Ridge("ridge", model)(rf, index, scan, 0, 0)
    np.testing.assert_array_equal(found.bands, said.bands)
    np.testing.assert_allclose(found.bands_high, (said.bands + said.bands_half[2]).clip(0, 1))
    np.testing.assert_allclose(found.map_low, (said.aeration - said.aeration_half[2]).clip(0, 1))
    mean_bands, mean_maps = Ridge("ridge", model).mean()
    assert mean_bands.shape == (6,) and mean_maps.shape == (64, 64) and 0.3 < mean_bands[-1] < 0.7
