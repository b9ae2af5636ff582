"""Laws of the tissue table and of the texture."""

from __future__ import annotations

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.phantom.medium import SOFT, TISSUES, max_sound_speed, speckle
from lungwave.types import MHZ, UM


def test_linear_attenuation_meets_the_power_law_at_its_frequency() -> None:
    for tissue in TISSUES.values():
        for frequency in (1.5, 3.0, 5.208):
            power_law = 100 * tissue.attenuation * frequency**tissue.exponent  # [dB/m]
            assert tissue.linear_attenuation(frequency * MHZ) * frequency == pytest.approx(power_law)


def test_every_tissue_names_its_source_and_lies_in_the_range_of_soft_tissue() -> None:
    assert all(len(tissue.source) > 10 for tissue in TISSUES.values())
    for name in SOFT:
        assert 1400 < TISSUES[name].sound_speed < 1700 and 900 < TISSUES[name].density < 1200


def test_bone_counts_for_the_time_step_only_where_a_rib_can_be_drawn() -> None:
    tiny = preset("tiny")
    assert 1613 < max_sound_speed(tiny) < 1700
    assert max_sound_speed(tiny.override({"lung.rib_probability": 0.1})) == 3432


def test_speckle_is_white_bounded_and_fixed_in_space() -> None:
    z, x = np.arange(300) * 50 * UM, (np.arange(400) - 199.5) * 50 * UM  # nodes of an even grid are lattice points
    field = speckle(7, 50 * UM, z, x)
    assert abs(field.mean()) < 0.01 and field.std() == pytest.approx(1.0, abs=0.01)
    assert np.abs(field).max() <= 3.47
    for shifted in (field[1:], field[:, 1:], field[3:, 5:]):
        other = field[: shifted.shape[0], : shifted.shape[1]]
        assert abs(np.mean(shifted * other)) < 0.015
    np.testing.assert_array_equal(speckle(7, 50 * UM, z[100:130], x[50:90]), field[100:130, 50:90])
    assert np.mean(field * speckle(8, 50 * UM, z, x)) == pytest.approx(0, abs=0.015)


def test_finer_grids_read_between_the_same_lattice_points() -> None:
    x = (np.arange(40) - 19.5) * 50 * UM
    coarse = speckle(1, 50 * UM, np.arange(40) * 50 * UM, x)
    fine = speckle(1, 50 * UM, np.arange(79) * 25 * UM, x)
    np.testing.assert_array_equal(fine[::2], coarse)
    np.testing.assert_allclose(fine[1::2], (coarse[:-1] + coarse[1:]) / 2, atol=1e-6)
    centre = [
        (np.abs(f) ** 2 * np.arange(len(f))[:, None]).sum() / (f**2).sum() * d
        for f, d in ((coarse, 50.0), (fine, 25.0))
    ]
    assert centre[0] == pytest.approx(centre[1], abs=25.0)  # [um] the texture does not move with the grid
