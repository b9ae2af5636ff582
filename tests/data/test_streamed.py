"""Laws of sets that stay on disk: the same rows, the same weights, and memory that does not grow with the set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.config import preset
from lungwave.data.augment import LABELS, Augment
from lungwave.data.generate import generate
from lungwave.data.mapset import MapSet, read_maps
from lungwave.data.streamed import stream_maps
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.posterior.pairs import Pairs
from lungwave.training.loop import TrainConfig, Training
from lungwave.training.objective import Denoising
from lungwave.training.source import MapSource
from lungwave.types import LungwaveError, UsageError
from training.tiny import same

SMALL = preset("micro").override(
    {"grid.steps": 300, "seed": 3, "map.rows": 8, "map.columns": 8, "map.bands": [0, 0.0008]}
)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 lungs in shards of five."""
    out = tmp_path_factory.mktemp("streamed") / "cases"
    generate(SMALL, range(24), out, shard_size=5, quiet=True)
    return out


def trained(maps: MapSet, folder: Path | None = None, **settings: int) -> Training:
    """A few steps of a tiny network."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, vector=LABELS))
    config = TrainConfig(**{"images": 40, "batch": 8, "warmup_images": 8, "snapshot_images": 0, **settings})
    kept, _ = maps.split(0.2, 0)
    source = MapSource(kept, Scaling(*kept.statistics()), Augment(probability=0.5))
    return Training(Preconditioned(net), source, Denoising(), config, folder)


def test_rows_are_those_of_memory(cases: Path) -> None:
    streamed, whole = stream_maps(cases, quiet=True), read_maps(cases)
    rows = np.array([23, 0, 7, 7, 4, 5])
    assert np.array_equal(streamed.fraction(rows), whole.fraction(rows))
    assert np.array_equal(streamed.fraction(slice(3, 17)), whole.fraction(slice(3, 17)))
    assert (streamed.size, streamed.channels, len(streamed)) == (whole.size, whole.channels, len(whole))
    assert np.array_equal(streamed.labels, whole.labels) and np.array_equal(streamed.groups, whole.groups)
    assert streamed.classes == whole.classes
    np.testing.assert_allclose(streamed.statistics(), whole.statistics(), rtol=1e-12)
    for one, other in zip(streamed.split(0.3, 1), whole.split(0.3, 1), strict=True):
        assert np.array_equal(one.fraction(), other.fraction())


@pytest.mark.parametrize("readers", [0, 1])
def test_weights_are_those_of_memory_also_after_an_interruption(cases: Path, readers: int, tmp_path: Path) -> None:
    expected = trained(read_maps(cases))
    assert expected.run()
    assert trained(stream_maps(cases, quiet=True), tmp_path, images=16, readers=readers, snapshot_images=0).run()
    last = trained(stream_maps(cases, quiet=True), tmp_path, readers=readers)
    assert last.run()
    assert last.began == 16
    assert same(dict(expected.model.state_dict()), dict(last.model.state_dict()))


def test_pairs_are_those_of_memory(cases: Path) -> None:
    streamed, whole = Pairs.stream(cases, quiet=True), Pairs.read(cases, quiet=True)
    rows = np.array([9, 2, 14])
    assert np.array_equal(streamed.rf[rows], whole.rf[rows])
    assert np.array_equal(streamed.rf[3], whole.rf[3])
    part, other = streamed.take(rows), whole.take(rows)
    assert np.array_equal(part.cases.smooth[np.array([2, 0])], other.cases.smooth[[2, 0]])
    assert np.array_equal(part.cases.pleura_depth[np.arange(3)], other.cases.pleura_depth)
    assert np.array_equal(part.aeration, other.aeration)
    assert part.cases.category == other.cases.category
    assert part.scan.equals(other.scan)


def test_a_damaged_shard_is_named_also_by_a_reader(cases: Path, tmp_path: Path) -> None:
    for path in cases.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    maps = stream_maps(tmp_path, quiet=True)
    run = trained(maps, readers=1)
    shard = sorted(tmp_path.glob("*.h5"))[2]
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    shard.write_bytes(damaged)
    for call in (maps.fraction, run.run):
        with pytest.raises(LungwaveError, match=rf"{shard.name}.*damaged"):
            call()
    with pytest.raises(UsageError, match="leave out --stream"):
        stream_maps(shard)


MEASURED = """
import re, sys
from pathlib import Path
import numpy as np
from lungwave.data.streamed import stream_maps
from lungwave.models.precond import Scaling
from lungwave.training.source import Draws, MapSource, rows_of
maps = stream_maps(Path(sys.argv[1]), quiet=True)
source = MapSource(maps, Scaling(0.5, 0.2))
for first in range(0, 640, 64):
    positions = np.arange(first, first + 64)
    source.images(rows_of(positions, len(source), 0), Draws(0, positions))
print(len(maps), int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]))
"""


def test_memory_does_not_grow_with_the_set(cases: Path, tmp_path: Path) -> None:
    """20 times the cases, as links to one shard; ``benchmarks/memory.py`` goes to 200,000."""
    if not Path("/proc/self/status").exists():
        pytest.skip("only Linux says what a process once held (getrusage would give the parent's)")
    shard = sorted(cases.glob("*.h5"))[1]
    peaks = {}
    for count in (200, 4000):
        folder = tmp_path / str(count)
        folder.mkdir()
        os.link(cases / "config.json", folder / "config.json")
        for first in range(0, count, 5):
            os.link(shard, folder / f"cases_{first:06d}-{first + 4:06d}.h5")
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(folder)], capture_output=True, text=True, check=True, timeout=300
        )
        held, peaks[count] = map(int, done.stdout.split())
        assert held == count
    assert peaks[4000] < 1.1 * peaks[200], peaks
