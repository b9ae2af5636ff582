"""Features: deterministic, of any size, and sensitive to the defects that a generator of lung maps can have."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from lungwave.evaluate.features import EXTRACTORS, check_maps, check_same_size, fit_features
from lungwave.repro import stream
from lungwave.types import UsageError


def texture(count: int, size: tuple[int, int], length: float = 2.0, seed: int = 0) -> np.ndarray:
    """Smooth random maps between 0 and 1."""
    noise = stream(seed, "texture").standard_normal((count, *size))
    for axis in (1, 2):
        noise = gaussian_filter1d(noise, length, axis=axis, mode="wrap")
    return (0.5 + 0.4 * np.tanh(noise / noise.std())).astype(np.float32)


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("size", [(8, 256), (64, 64), (5, 7), (1, 32), (32, 1), (96, 80)])
def test_any_size_gives_one_finite_vector_a_map(name: str, size: tuple[int, int]) -> None:
    maps = texture(70, size)
    found = EXTRACTORS[name](maps)
    assert found.ndim == 2 and len(found) == 70
    assert np.isfinite(found).all()
    assert found.shape[1] <= 4096
    np.testing.assert_array_equal(found, EXTRACTORS[name](maps))


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_vector_depends_on_its_own_map_only(name: str) -> None:
    maps = texture(130, (16, 24))
    order = stream(0, "order").permutation(130)
    np.testing.assert_allclose(EXTRACTORS[name](maps[order]), EXTRACTORS[name](maps)[order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_constant_maps_have_finite_features(name: str) -> None:
    features = fit_features(name, np.zeros((4, 16, 16), np.float32))
    assert np.isfinite(features(np.ones((3, 16, 16), np.float32))).all()


def test_pixels_are_averaged_over_blocks_only_where_there_are_too_many() -> None:
    small, large = texture(2, (64, 64)), texture(2, (128, 64))
    np.testing.assert_allclose(EXTRACTORS["pixels"](small), small.reshape(2, -1), rtol=1e-6)
    blocks = large.reshape(2, 64, 2, 64).mean(2)
    np.testing.assert_allclose(EXTRACTORS["pixels"](large), blocks.reshape(2, -1), rtol=1e-5)


@pytest.mark.parametrize("name", ["wavelet", "spectrum"])
@pytest.mark.parametrize(
    "defect",
    [
        lambda m: gaussian_filter1d(m, 0.6, axis=2),
        lambda m: np.clip(m + 0.01 * stream(1, "noise").standard_normal(m.shape).astype(np.float32), 0, 1),
        lambda m: texture(len(m), m.shape[1:], 2.3, seed=1),
        lambda m: 0.5 + 0.85 * (m - 0.5),
    ],
    ids=["blur", "noise", "texture scale", "contrast"],
)
@pytest.mark.parametrize("size", [(8, 256), (32, 32)])
def test_a_defect_moves_the_mean_features_far(name: str, defect, size: tuple[int, int]) -> None:
    """Against fresh maps of the same kind, the largest shift of a mean feature is at least three times as large."""
    real, fresh = texture(100, size), texture(100, size, seed=2)
    features = fit_features(name, real)

    def shift(maps: np.ndarray) -> float:
        return float(np.abs(features(maps).mean(0) - features(real).mean(0)).max())

    assert shift(defect(fresh)) > 3 * shift(fresh)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_eight_bit_rounding_is_not_a_defect(name: str) -> None:
    """Maps kept as PNG compare like maps kept as numbers, even where they are as smooth as ours."""
    real, fresh = texture(100, (32, 32), 5.0), texture(100, (32, 32), 5.0, seed=2)
    features = fit_features(name, real)
    fine, rounded = features(fresh), features(np.round(fresh * 255) / np.float32(255))
    assert np.abs(rounded.mean(0) - fine.mean(0)).max() < 0.5 * np.abs(fine.mean(0)).max()


def test_pixels_see_an_upside_down_map() -> None:
    ramp = np.linspace(-0.05, 0.05, 16, dtype=np.float32)[:, None]
    real, fresh = texture(50, (16, 16)) * 0.8 + 0.1 + ramp, texture(50, (16, 16), seed=1) * 0.8 + 0.1 + ramp
    features = fit_features("pixels", real)
    centre = features(real).mean(0)
    assert np.linalg.norm(features(fresh[:, ::-1]).mean(0) - centre) > 1.2 * np.linalg.norm(
        features(fresh).mean(0) - centre
    )


def test_features_of_the_reference_have_its_scale() -> None:
    maps = texture(60, (16, 32))
    found = fit_features("pixels", maps)(maps)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    assert np.square(found).mean() == pytest.approx(1, rel=1e-6)
    assert np.abs(fit_features("wavelet", maps)(texture(5, (16, 32)) * 0)).max() <= 3  # bounded, however odd the map


@pytest.mark.parametrize(
    ("maps", "words"),
    [
        (np.zeros((4, 4)), r"shape \(4, 4\)"),
        (np.zeros((1, 4, 4)), "1 maps"),
        (np.full((3, 4, 4), np.nan), "not finite"),
        (np.full((3, 4, 4), 255.0), "0-1"),
        (np.zeros((3, 2, 4, 4)), "shape"),
    ],
)
def test_unusable_maps_are_refused_by_name(maps: np.ndarray, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_maps(maps, "samples")


def test_different_sizes_and_unknown_features_are_refused() -> None:
    with pytest.raises(UsageError, match="8 x 16"):
        check_same_size(("samples", np.zeros((2, 8, 16))), ("held-out maps", np.zeros((2, 16, 16))))
    with pytest.raises(UsageError, match="inception"):
        fit_features("inception", texture(4, (8, 8)))
    with pytest.raises(UsageError, match="8 x 9"):
        fit_features("pixels", texture(4, (8, 8)))(texture(4, (8, 9)))
    assert check_maps(np.zeros((2, 1, 8, 9)), "samples").shape == (2, 8, 9)
