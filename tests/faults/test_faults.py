"""A few of the faults that ``benchmarks/faults.py`` injects by the thousand: nothing is ever lost."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from faults import damage, losses, processes
from lungwave.config import preset
from lungwave.data.generate import generate, shard_path
from lungwave.data.merge import merge
from lungwave.repro import atomic_path, sweep
from lungwave.types import LungwaveError, UsageError

TIMES = 60


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, damage.Kind]:
    """One file of every kind."""
    return {one.name: one for one in damage.gallery(tmp_path_factory.mktemp("gallery"))}


@pytest.mark.parametrize("what", damage.DAMAGES)
def test_damage_is_never_taken_for_true(kinds: dict[str, damage.Kind], what: str) -> None:
    assert len(kinds) == 12
    for name, one in kinds.items():
        found = Counter(o for o, _ in damage.injected(one, what, TIMES, np.random.default_rng(7)))
        assert found["lost"] == 0, name
        assert sum(found.values()) == TIMES


def test_the_check_notices_what_it_should(kinds: dict[str, damage.Kind]) -> None:
    """The law above means something: content that differs and is believed counts as lost."""
    one = kinds["maps: NPZ"]
    whole = one.path.read_bytes()
    with np.load(one.path) as held:
        changed = {name: held[name] for name in held.files} | {"maps": held["maps"] ** 2}
    np.savez(one.path, **changed)
    assert damage.outcome(one) == "lost"
    one.path.write_bytes(whole)
    assert damage.outcome(one) == "recovered"


def test_a_damaged_shard_is_made_again(tmp_path: Path) -> None:
    generate(damage.SMALL, range(4), tmp_path, shard_size=2, quiet=True)
    path, other = (shard_path(tmp_path, part) for part in (range(2), range(2, 4)))
    whole, stamp = path.read_bytes(), other.stat().st_mtime_ns
    for data in (whole[:-9], b"", whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:]):
        path.write_bytes(data)
        assert generate(damage.SMALL, range(4), tmp_path, shard_size=2, quiet=True)["new"] == 2
        assert path.read_bytes() == whole
    assert other.stat().st_mtime_ns == stamp


def test_what_another_process_writes_now_is_not_swept(tmp_path: Path) -> None:
    left = tmp_path / ".a.h5.12345678.part"
    left.touch()
    with atomic_path(tmp_path / "a.h5") as temporary:
        temporary.write_text("x")
        sweep(tmp_path / "a.h5")
        assert temporary.exists()
        assert not left.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Content of maps that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert processes.COMMANDS["maps"].run(folder) == 0
    return processes.content(folder / "out")


@pytest.mark.parametrize("fault", ["kill -9", "full disk", "read-only", "clock", "twice"])
def test_a_command_survives(fault: str, whole: str, tmp_path: Path) -> None:
    command = processes.COMMANDS["maps"]
    match fault:
        case "kill -9":
            codes = processes.stopped(tmp_path, command, signal.SIGKILL, 0.4)
        case "full disk":
            codes = [command.run(tmp_path, processes.NoSpace(300))]
            assert codes == [1]
        case "read-only":
            codes = [command.run(tmp_path, processes.ReadOnly(tmp_path / "out"))]
            assert codes == [1]
        case "clock":
            codes = [command.run(tmp_path, processes.Jumping(1))]
            processes.other_times(tmp_path, np.random.default_rng(2))
        case _:
            codes = processes.twice(tmp_path, command)
    found, note = processes.verdict(tmp_path, command, whole, codes)
    assert found in ("recovered", "refused"), note


def test_ranges_are_merged_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    a, b, c, out = (tmp_path / name for name in ["a", "b", "c", "out"])
    for folder, cases in ((a, range(0, 4)), (b, range(4, 6)), (c, range(8, 10))):
        generate(damage.SMALL, cases, folder, shard_size=2, quiet=True)
    with pytest.raises(UsageError, match="cases 6:8 are missing"):
        merge([a, b, c], out)
    with pytest.raises(UsageError, match="cases 6:9 are missing"):
        merge([a, b], out, range(9))
    assert not out.exists()
    assert merge([a, b], out, range(6))["cases"] == 6
    generate(damage.SMALL, range(6), tmp_path / "one", shard_size=2, quiet=True)
    for path in (tmp_path / "one").glob("*.h5"):
        assert (out / path.name).read_bytes() == path.read_bytes()
    assert len(json.loads((out / "manifest.json").read_text())["files"]) == 3
    assert merge([out, a], out)["shards"] == 3, "again, with what is there"
    generate(preset("micro").override({"grid.steps": 300}), range(6, 7), tmp_path / "other", quiet=True)
    with pytest.raises(UsageError, match="other configurations"):
        merge([a, tmp_path / "other"], out)
    generate(damage.SMALL, range(3, 5), tmp_path / "odd", shard_size=5, quiet=True)
    with pytest.raises(UsageError, match="overlap"):
        merge([a, tmp_path / "odd"], tmp_path / "new")
    damaged = shard_path(b, range(4, 6))
    damaged.unlink()
    damaged.write_bytes(shard_path(out, range(4, 6)).read_bytes()[:-1])
    with pytest.raises(LungwaveError, match="damaged"):
        merge([a, b], tmp_path / "new")


def test_a_rank_that_dies_leaves_a_sentence_and_a_resume(tmp_path: Path) -> None:
    """The other rank says what to do; the same command again gives the weights of a training that nothing disturbed."""
    source = tmp_path / "prepared"
    source.mkdir()
    processes.prepare(source, "maps")
    whole, folder = (processes.fresh(source, tmp_path / name) for name in ("whole", "hurt"))
    assert losses.TRAIN.run(whole) == 0
    codes, hit = losses.ranks(folder, np.random.default_rng(0))
    assert hit and "another rank has ended; start all of them" in (folder / "stderr.txt").read_text()
    found, note = processes.verdict(folder, losses.TRAIN, processes.content(whole / losses.TRAIN.out), codes)
    assert found == "refused", note
