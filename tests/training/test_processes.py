"""What only processes show: kill -9, signals, and ranks that train together."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from lungwave.training import state
from training.tiny import Curve, command_in, maps, same, start, tiny, train_as_rank, train_in, wait_for_change


def test_killed_three_times_the_weights_are_the_same(tmp_path: Path) -> None:
    """SIGKILL at random moments of a step or of a save; the command run again ends where an unharmed one ends."""
    settings = {"images": 240}
    moments = np.random.default_rng(int.from_bytes(os.urandom(4), "little"))
    for _ in range(3):
        child = start(train_in, tmp_path, settings)
        wait_for_change(tmp_path / state.STATE, child)
        time.sleep(float(moments.uniform(0.0, 0.04)))
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL, "it was to be killed while it trained"
    last, whole = tiny(tmp_path, **settings), tiny(None, **settings)
    assert last.run()
    assert last.began > 0
    assert whole.run()
    assert same(dict(last.model.state_dict()), dict(whole.model.state_dict()))
    assert same(last.averages.state(), whole.averages.state())


def test_sigterm_saves_the_step_and_then_takes_effect(tmp_path: Path) -> None:
    child = start(train_in, tmp_path, {"images": 100_000, "save_minutes": 60.0, "snapshot_images": 8})
    first = tmp_path / "snapshots" / "000000000008.safetensors"
    wait_for_change(first, child)
    assert not (tmp_path / state.STATE).exists()
    child.terminate()
    child.join(300)
    assert child.exitcode == -signal.SIGTERM
    images = state.load_state(tmp_path)[1]["images"]
    last = state.snapshots(tmp_path)[-1]
    assert int(last.name.split(".")[0]) == images, "the step in progress was finished and saved, and no other began"


def test_the_command_ends_with_143_and_says_how_to_go_on(tmp_path: Path) -> None:
    np.savez(tmp_path / "maps.npz", maps=maps(40).maps[:, 0])
    words = "train maps.npz --out prior --channels 8 --mult 1 2 --blocks 1 --heads 2 --batch 8 --save-minutes 0"
    child = start(command_in, tmp_path, [*words.split(), "--images", "100000"])
    wait_for_change(tmp_path / "prior" / state.STATE, child)
    child.terminate()
    child.join(300)
    assert child.exitcode == 143
    said = (tmp_path / "stderr.txt").read_text()
    assert said.splitlines()[-1] == "lungwave: error: terminated; rerun the same command to go on"
    assert "Traceback" not in said
    assert state.load_state(tmp_path / "prior")[1]["images"] > 0


@pytest.mark.parametrize("batch", [8, 7], ids=["even shares", "uneven shares"])
def test_two_ranks_train_like_one(tmp_path: Path, batch: int) -> None:
    """The same images in the same steps; only the order of sums differs. The last step has fewer images than ranks."""
    settings = {"batch": batch, "images": 5 * batch + 1, "dropout": 0.0}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "losses.json"
    children = [start(train_as_rank, rank, 2, port, out, settings) for rank in (0, 1)]
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0]
    curve = Curve()
    assert tiny(None, listeners=(curve,), **settings).run()
    together = json.loads(out.read_text())
    assert len(together) == 6
    np.testing.assert_allclose(together, curve.losses, rtol=1e-4)
