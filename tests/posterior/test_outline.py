"""The linear guess at a resolved map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.data.generate import generate
from lungwave.posterior.echoes import reader_of, search_range
from lungwave.posterior.outline import Outline
from lungwave.posterior.pairs import Pairs, noisy
from lungwave.posterior.resolved_pairs import ResolvedPairs

SNR = (20.0, 40.0)


def read(folder: Path) -> ResolvedPairs:
    return ResolvedPairs.draw(Pairs.read(folder, quiet=True), quiet=True)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> ResolvedPairs:
    folder = tmp_path_factory.mktemp("outline") / "cases"
    generate(preset("micro").override({"seed": 11}), range(120), folder, workers=1, quiet=True)
    return read(folder)


def test_it_knows_how_much_air_there_is(pairs: ResolvedPairs, micro_cases: Path) -> None:
    """On lungs of another seed: half of the variance of the mean air at least, and less error than the mean map."""
    search = search_range(pairs.config)
    outline = Outline.fit(pairs, search, SNR, 0)
    new = read(micro_cases)
    rows = np.arange(len(new))
    echoes = reader_of(new.config, new.scan, search)(noisy(new, rows, SNR, 0, "test"))
    found = outline.maps(echoes, new.tops(rows)).reshape(len(new), 2, *new.nodes.shape[2:])
    truth = new.maps(rows)
    near = slice(0, 12)  # rows whose air the echoes know most of
    mean = truth[:, 0, near].mean((1, 2))
    assert np.corrcoef(found[:, 0, near].mean((1, 2)), mean)[0, 1] ** 2 > 0.5
    usual = pairs.maps(np.arange(len(pairs)))[:, 0].mean((0, 2))
    error = np.square(found[:, 0] - truth[:, 0])[:, near].mean()
    assert error < 0.95 * np.square(usual[:, None] - truth[:, 0])[:, near].mean()


def test_it_turns_with_the_lung(pairs: ResolvedPairs) -> None:
    """Mirrored echoes give the mirrored map."""
    search, rows = search_range(pairs.config), np.arange(4)
    outline = Outline.fit(pairs.take(np.arange(60)), search, SNR, 0)
    reader, rf, top = reader_of(pairs.config, pairs.scan, search), pairs.rf[:4], pairs.tops(rows)
    straight = outline.maps(reader(rf), top)
    turned = outline.maps(reader(np.ascontiguousarray(rf[:, ::-1, :, ::-1])), top[:, ::-1])
    np.testing.assert_allclose(turned, straight[:, :, ::-1], atol=1e-3)
