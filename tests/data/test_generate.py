"""Laws of bulk generation: the same bytes for any number of workers, after any interruption, in any order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lungwave.config import Config, preset
from lungwave.data import generate as module
from lungwave.data.dataset import folder_config, read_shards, split
from lungwave.data.generate import generate, plan, shard_path, shards, simulate_case
from lungwave.types import LungwaveError, UsageError

FAST = preset("micro").override({"grid.steps": 300, "seed": 7})
SCRIPT = """
import sys
from pathlib import Path
from lungwave.config import Config
from lungwave.data.generate import generate
if __name__ == "__main__":
    config, out, workers = Config.load(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    generate(config, range(0, 40), out, workers=workers, shard_size=4, quiet=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("cases_*.h5")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run by one worker."""
    out = tmp_path_factory.mktemp("whole")
    generate(FAST, range(0, 40), out, workers=1, shard_size=4, quiet=True)
    return out


def test_kill_9_and_rerun_gives_the_bytes_of_an_uninterrupted_run(whole: Path, tmp_path: Path) -> None:
    config, out = tmp_path / "config.json", tmp_path / "out"
    config.write_text(FAST.to_json())
    command = [sys.executable, "-c", SCRIPT, str(config), str(out)]
    run = subprocess.Popen([*command, "2"], start_new_session=True)
    deadline = time.monotonic() + 120
    while not contents(out) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    survived = contents(out)
    assert 0 < len(survived) < 10, "the kill must fall into the middle of the run"
    stamps = {name: (out / name).stat().st_mtime_ns for name in survived}
    subprocess.run([*command, "2"], check=True, timeout=240)  # also: two workers, one worker in the fixture
    assert contents(out) == contents(whole)
    assert all((out / name).stat().st_mtime_ns == stamp for name, stamp in stamps.items()), "finished shards are kept"
    assert not list(out.glob(".*.part"))


def test_any_order_of_requests_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    for part in (range(8, 16), range(0, 8)):
        generate(FAST, part, tmp_path, shard_size=4, quiet=True)
    assert contents(tmp_path) == {name: data for name, data in contents(whole).items() if name < "cases_000016"}


def test_shards_hold_what_simulating_a_case_gives(whole: Path) -> None:
    assert folder_config(whole) == FAST
    simulator = module.Simulator(FAST)
    seen = 0
    for recording, cases in read_shards(whole):
        recording.validate()
        for row in range(0, len(cases), 3):
            case = simulate_case(FAST, int(cases.index[row]), simulator)
            assert np.array_equal(recording.rf[row], case.rf)
            assert cases.category[row] == case.anatomy.category
            assert np.isclose(cases.whole[row], case.truth.whole)
            assert json.loads(cases.parameters[row])["seed"] == FAST.seed
        seen += len(cases)
    assert seen == 40


def test_receiver_adds_gain_and_silences_elements() -> None:
    config = FAST.override({"receive.gain_db": 20.0, "receive.dropped_elements": 3, "receive.snr_db": "inf"})
    simulator = module.Simulator(config)
    case = simulate_case(config, 1, simulator)
    heard = module.received(case, config, simulator)
    silent = ~heard.any((0, 1))
    assert silent.sum() == 3
    assert np.allclose(heard[..., ~silent], 10 * case.rf[..., ~silent])
    assert not np.array_equal(heard, module.received(simulate_case(config, 2, simulator), config, simulator))


def test_failing_worker_is_named_with_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: Config, index: int) -> None:
        raise ZeroDivisionError(f"lung {index} has no air")

    monkeypatch.setattr(module, "draw", fail)
    with pytest.raises(ZeroDivisionError, match="lung 0 has no air") as caught:
        generate(FAST, range(3), tmp_path, quiet=True)
    assert "case 0 of preset micro, seed 7" in caught.value.__notes__[0]
    assert not contents(tmp_path)


def test_dead_worker_is_reported_with_the_cure(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(FAST.to_json())
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(config), str(tmp_path / "out"), "2"], stderr=subprocess.PIPE, text=True
    )
    children: list[int] = []
    deadline = time.monotonic() + 120
    while len(children) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
        listed = Path(f"/proc/{run.pid}/task/{run.pid}/children")
        if not listed.exists():
            run.kill()
            pytest.skip("the kernel does not list children of a process")
        found = [int(child) for child in listed.read_text().split()]
        children = [c for c in found if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(children[-1], signal.SIGKILL)
    errors = run.communicate(timeout=120)[1]
    assert run.returncode != 0
    assert "rerun the same command to go on" in errors


def test_folder_of_another_run_is_refused_untouched(whole: Path) -> None:
    before = contents(whole)
    with pytest.raises(UsageError, match="another configuration"):
        generate(FAST.override({"seed": 8}), range(4), whole, quiet=True)
    with pytest.raises(UsageError, match="noise setting"):
        generate(FAST, range(4), whole, quiet=True, noise=True)
    assert contents(whole) == before


def test_what_cannot_be_simulated_leaves_no_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for change in ({"grid.time_step": 60e-9}, {"grid.width": 5e-3}, {"lung.rib_probability": 0.5}):
        with pytest.raises(UsageError, match=r"unstable|set grid\.width"):
            generate(FAST.override(change), range(2), out, quiet=True)
    assert not out.exists()


def test_no_case_ever_stands_in_two_files(tmp_path: Path) -> None:
    generate(FAST, range(0, 2), tmp_path, shard_size=4, quiet=True)
    for cases, size in ((range(0, 4), 4), (range(1, 2), 4), (range(0, 2), 1)):
        with pytest.raises(UsageError, match=r"overlap cases_000000-000001\.h5"):
            generate(FAST, cases, tmp_path, shard_size=size, quiet=True)
    assert list(contents(tmp_path)) == ["cases_000000-000001.h5"]


def test_full_disk_is_one_error_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: str, target: str) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "config.json").write_text(json.dumps({"config": json.loads(FAST.to_json()), "noise": False}))
    monkeypatch.setattr("lungwave.repro.os.replace", full)
    with pytest.raises(LungwaveError, match="No space left on device"):
        generate(FAST, range(2), tmp_path, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_plan_counts_without_writing(tmp_path: Path) -> None:
    out = tmp_path / "absent"
    planned = plan(FAST, range(0, 10), out, shard_size=4, workers=2)
    assert planned["cases"] == 10 and planned["shards"] == 3 and planned["to_do"] == 3
    assert 0 < planned["seconds"] < 60
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "shard_size", "noise"),
    [
        ({}, 1, False),
        ({}, 6, True),
        ({"grid.steps": 3000, "receive.sampling_frequency": 40e6}, 2, True),  # mostly RF
        ({"map.rows": 128, "map.columns": 128, "map.pixel": 5e-5}, 3, False),  # mostly maps
    ],
)
def test_planned_size_is_that_of_the_files(
    changes: dict[str, object], shard_size: int, noise: bool, tmp_path: Path
) -> None:
    config = FAST.override(changes)
    planned = plan(config, range(6), tmp_path, shard_size, noise=noise)["bytes"]
    written = generate(config, range(6), tmp_path, shard_size=shard_size, noise=noise, quiet=True)["bytes"]
    assert 0.85 < planned / written < 1.15


def test_shards_cut_at_multiples() -> None:
    assert shards(range(3, 12), 5) == [range(3, 5), range(5, 10), range(10, 12)]
    assert shard_path(Path("a"), range(5, 10)).name == "cases_000005-000009.h5"
    for cases in (range(0, 0), range(-3, 2), range(5, 2)):
        with pytest.raises(UsageError, match="0 <= a < b"):
            shards(cases, 5)


def test_split_never_parts_a_base() -> None:
    bases = np.repeat(np.arange(20), 5)
    parts = split(bases, (0.6, 0.2, 0.2), seed=3)
    assert np.array_equal(np.sum(parts, 0), np.ones(100))
    assert [len(np.unique(bases[part])) for part in parts] == [12, 4, 4]
    assert len(np.unique(bases[parts[0]])) * 5 == parts[0].sum()
    with pytest.raises(UsageError, match="add up to 1"):
        split(bases, (0.5, 0.2), seed=3)
    with pytest.raises(UsageError, match="cannot be split"):
        split(np.zeros(10, int), (0.5, 0.5), seed=3)


def test_the_card_counts_what_the_files_hold(whole: Path) -> None:
    text = (whole / "README.md").read_text(encoding="utf-8")
    kinds = [kind for _, cases in read_shards(whole) for kind in cases.category]
    air = np.concatenate([cases.whole for _, cases in read_shards(whole)])
    assert text.startswith("# 40 simulated lungs") and "Not a medical device" in text and "without noise" in text
    for kind in set(kinds):
        mine = air[(np.array(kinds) == kind) & np.isfinite(air)]
        assert f"| {kind} | {kinds.count(kind)} | {100 * mine.mean():.0f} (" in text
