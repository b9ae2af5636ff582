"""The priors that come with the package: small, traceable, better than the spectrum alone on lungs they never saw."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.config import preset
from lungwave.data.drawn import draw_map
from lungwave.models.checkpoint import load_model
from lungwave.models.wiener import Wiener
from lungwave.sample import generate
from lungwave.shipped import PRIOR, SHIPPED, model_folder
from lungwave.training.objective import squared_error

MOST_BYTES = 12e6
PRIORS = {
    "prior-tiny": (preset("tiny"), "smooth", (64, 64)),
    "prior-strip": (
        preset("paper").override(
            {"wall.pleura_depth": [0.015, 0.0155], "grid.depth": 0.02, "map.rows": 8, "map.bands": [0, 0.0008]}
        ),
        "seed",
        (8, 256),
    ),
}


@pytest.mark.parametrize("name", PRIORS)
def test_it_is_small_and_says_how_it_was_made(name: str) -> None:
    """Each file below 12 MB; the command in the card names settings that are not the defaults."""
    folder = model_folder(Path(name), PRIOR)
    assert folder == SHIPPED / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < MOST_BYTES
    about = json.loads((folder / "config.json").read_text())
    assert (
        about["command"].startswith("lungwave train data/maps_")
        and about["command"] in (folder / "README.md").read_text()
    )
    assert tuple(about["size"]) == PRIORS[name][2] and about["trained"]["data_sha256"]


@pytest.mark.parametrize("name", PRIORS)
def test_it_denoises_new_lungs_better_than_their_spectrum_does(name: str) -> None:
    """Six lungs of a seed that no training saw: less error than the Wiener filter at the noise that decides shapes."""
    config, view, _ = PRIORS[name]
    model = load_model(model_folder(Path(name), PRIOR))
    assert isinstance(model.denoiser, Wiener)
    maps = np.stack([draw_map(config.override({"seed": 77}), k, view).values for k in range(6)])
    clean = model.scaling.to_network(torch.from_numpy(maps)[:, None])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.3, 1.0):
        level = torch.full((len(clean),), sigma)
        with torch.no_grad():
            ours = float(squared_error(model.denoiser, clean, noise, level).mean())
            linear = float((model.denoiser.filtered(clean + sigma * noise, level) - clean).square().mean())
        assert ours < 0.97 * linear, (sigma, ours, linear)


@pytest.mark.parametrize("name", PRIORS)
def test_its_samples_are_lungs(name: str) -> None:
    """Sixteen of them: a mean aeration that lungs have, little outside 0-1, unlike each other."""
    model = load_model(model_folder(Path(name), PRIOR))
    drawn = model.scaling.to_data(generate(model.denoiser, (1, *model.size), 16, seed=5, sampler="unipc", steps=12))
    maps = drawn[:, 0].numpy()
    means = maps.mean((1, 2))
    assert 0.3 < means.mean() < 0.7 and 0.05 < means.std() < 0.35
    assert np.mean((maps < -0.1) | (maps > 1.1)) < 0.02
    apart = np.sqrt(np.square(maps[:, None] - maps[None]).mean((2, 3)))[np.triu_indices(16, 1)]
    assert apart.min() > 0.02 and math.isfinite(float(apart.max()))
