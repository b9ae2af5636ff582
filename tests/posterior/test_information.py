"""Laws of the first information mask."""

from __future__ import annotations

import numpy as np

from lungwave.posterior.information import TABLE_AERATION, TABLE_DEPTH, depth_of_information, information_depth


def test_table_is_met_at_its_own_frequency() -> None:
    assert np.allclose(depth_of_information(TABLE_AERATION, 5.2e6), TABLE_DEPTH)


def test_more_air_hides_more_and_longer_waves_reach_deeper() -> None:
    air = np.linspace(0, 1, 101)
    depth = depth_of_information(air, 5.2e6)
    assert (np.diff(depth) <= 0).all() and depth[0] > 10 * depth[-1]
    assert np.allclose(depth_of_information(air, 2.6e6), 2 * depth)


def test_uniform_lung_is_known_to_the_table_depth() -> None:
    for air, expected in ((0.21, 2.6e-3), (0.48, 1.1e-3)):
        known = information_depth(np.full((64, 5), air), 1e-4, 5.2e6)
        assert np.allclose(known, expected, atol=1e-4)


def test_air_on_top_hides_what_is_below() -> None:
    covered = np.full((64, 1), 0.05)
    covered[:10] = 0.8
    assert information_depth(covered, 1e-4, 5.2e6)[0] < 2e-4
    opened = covered[::-1].copy()
    assert information_depth(opened, 1e-4, 5.2e6)[0] > 3e-3


def test_depth_never_leaves_the_map() -> None:
    assert information_depth(np.zeros((20, 3)), 1e-4, 1e6).max() <= 20e-4
