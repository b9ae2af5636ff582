"""Shared fixtures: where third-party data lies, and quiet numerics."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from lungwave.config import preset
from lungwave.data.generate import generate

# "ci" draws the same examples every time; HYPOTHESIS_PROFILE=search looks for new ones.
settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=40)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# A shell hands its background jobs an ignored Ctrl-C, which children inherit; tests send it to theirs.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(os.environ.get("LUNGWAVE_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """Folder of a third-party data set, or a skip that says what is missing."""

    def find(name: str) -> Path:
        folder = SHARED / "data" / name
        if not folder.is_dir():
            pytest.skip(
                f"third-party data set '{name}' is not beside this checkout (set LUNGWAVE_SHARED to its parent)"
            )
        return folder

    return find


@pytest.fixture(scope="session")
def micro_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 lungs of the micro preset as `lungwave generate` writes them, without noise."""
    folder = tmp_path_factory.mktemp("micro") / "cases"
    generate(preset("micro").override({"seed": 5}), range(64), folder, workers=1, quiet=True)
    return folder
