"""Small lung maps as the report had them, and its commands."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TINY = (
    *("--image_size", "32", "--num_channels", "8", "--num_res_blocks", "1", "--attention_resolutions", "16"),
    *("--num_heads", "2", "--diffusion_steps", "24"),
)
Legacy = Callable[..., list[str]]


@pytest.fixture(scope="session", autouse=True)
def described_once() -> Iterator[None]:
    """Counting the multiplications of a network takes longer than a step; the same network is counted once."""
    from lungwave.legacy import network

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "describe", functools.cache(network.describe))
        yield


@pytest.fixture(scope="session")
def tiny() -> tuple[str, ...]:
    """Flags of a network and a process that take a tenth of a second."""
    return TINY


@pytest.fixture(scope="session")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six 8 x 256 gray PNG of three classes."""
    folder = tmp_path_factory.mktemp("lung_8_256")
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = rng.integers(0, 256, (2, 32)).astype(np.uint8)
        name = ("healthy", "edema", "fibrosis")[number % 3]
        Image.fromarray(coarse).resize((256, 8), Image.Resampling.BICUBIC).save(folder / f"{name}_{number}.png")
    return folder


@pytest.fixture
def legacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Legacy:
    """Run ``lungwave legacy WORDS`` with ``log`` as OPENAI_LOGDIR; the lines that it prints."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object, log: str = "run", **environment: str) -> list[str]:
        monkeypatch.setenv("OPENAI_LOGDIR", log)
        for name in ("OPENAI_LOG_FORMAT", "DIFFUSION_BLOB_LOGDIR", "DIFFUSION_TRAINING_TEST"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = main(["legacy", *map(str, words)])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out.splitlines()

    return run


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run words that must be refused: exit code 2, one line, nothing written; what the line says."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: object, log: str = "run") -> str:
        monkeypatch.setenv("OPENAI_LOGDIR", log)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        code = main(["legacy", *map(str, words)])
        out, err = capfd.readouterr()
        assert (code, out, len(err.splitlines())) == (2, "", 1), (out, err)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
        return err.removeprefix("lungwave: error: ").strip()

    return run
