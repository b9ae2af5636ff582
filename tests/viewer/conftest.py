"""One viewer, one browser and a few recordings for all tests of this folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lungwave.config import preset
from lungwave.data.generate import write_shard
from viewer_process import UPLOAD, Viewer, until, viewing

SMALL = f"""
from lungwave.viewer.limits import GIB, MB, Limits
from lungwave.viewer.serve import serve
serve(browser=False, limits=Limits(upload={UPLOAD} * MB, memory=GIB), say=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="session")
def warm_viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """The viewer that most tests share, with its worker warm; small limits, so that bombs are small."""
    with viewing(tmp_path_factory.mktemp("viewer"), code=SMALL) as running:
        until(lambda: running.json("/api/jobs")["ready"], 120)
        yield running


@pytest.fixture
def viewer(warm_viewer: Viewer) -> Iterator[Viewer]:
    """The same, without jobs of other tests."""
    yield warm_viewer
    warm_viewer.clear()


@pytest.fixture(scope="session")
def rf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One lung of the tiny preset, with noise and truth, that no model has seen."""
    path = tmp_path_factory.mktemp("rf") / "a lung.h5"
    write_shard(preset("tiny").override({"seed": 2026}), range(1, 2), path, noise=True)
    return path


@pytest.fixture(scope="session")
def foreign_rf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of another probe than the model was trained for."""
    path = tmp_path_factory.mktemp("rf") / "other probe.h5"
    write_shard(preset("micro").override({"seed": 2026}), range(1), path, noise=True)
    return path


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium of the system, driven by Playwright; skipped where either is absent (`make browser`)."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on this machine; 'make browser' installs Debian's where it can")
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; pip install '.[dev]'")
    with playwright.sync_playwright() as driver:
        # A container's root has no namespaces for Chromium's own sandbox; the page under test is ours.
        running = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()
