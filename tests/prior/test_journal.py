"""The journal, the pictures and the other listeners."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungwave.models.precond import Scaling
from lungwave.prior.journal import Journal, ProgressLine, SampleGrid, SigmaCurves, TensorBoard, sigma_losses
from lungwave.prior.pictures import grid_shape, save_grid
from lungwave.types import LungwaveError, UsageError
from training.test_loop import StopAt
from training.tiny import source, tiny


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def without_clock(records: list[dict]) -> list[dict]:
    return [{k: v for k, v in r.items() if k not in ("minutes", "images_per_second", "crc32")} for r in records]


def watched(folder: Path, *more: object, **settings: object) -> object:
    """A training with journal and loss curves."""
    journal = Journal(folder, 16)
    return tiny(folder, listeners=(journal, SigmaCurves(journal, source(), source(12), 40, 6), *more), **settings)


def test_the_journal_of_a_broken_run_is_that_of_a_whole_one(tmp_path: Path) -> None:
    """Lines about images that the state has not seen are forgotten; a line cut in half is no harm."""
    assert watched(tmp_path / "whole", images=64).run()
    with pytest.raises(RuntimeError, match="stopped"):
        watched(tmp_path / "broken", StopAt(6), images=64, save_minutes=60.0).run()
    with (tmp_path / "broken" / "log.jsonl").open("a") as file:
        file.write('{"kind": "ste')
    assert watched(tmp_path / "broken", images=64).run()
    whole, broken = (without_clock(lines(tmp_path / name)) for name in ("whole", "broken"))
    assert whole == broken
    assert [(r["kind"], r["images"]) for r in whole] == [
        ("step", 16), ("step", 32), ("check", 40), ("step", 48), ("step", 64), ("check", 64),
    ]  # fmt: skip
    assert all(len(r["train"]) == len(r["held_out"]) == len(r["sigma"]) for r in whole if r["kind"] == "check")
    for name in ("sigma.png", "loss.png"):
        with Image.open(tmp_path / "broken" / name) as image:
            assert min(image.size) > 300


def test_watching_changes_nothing(tmp_path: Path) -> None:
    alone, seen = tiny(images=48), watched(tmp_path, SampleGrid(tmp_path, Scaling(0.5, 0.2), (1, 4, 8), 0, 24, 2, 2),
                                           images=48)  # fmt: skip
    assert alone.run()
    assert seen.run()
    assert all((a == b).all() for a, b in zip(alone.model.parameters(), seen.model.parameters(), strict=True))
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["000000000024.png", "000000000048.png"]


def test_a_check_is_repeatable_and_sees_the_weights() -> None:
    run = tiny()
    first = sigma_losses(run.model.eval(), source(), 6)
    np.testing.assert_allclose(first, sigma_losses(run.model, source(), 6, batch=2), rtol=1e-5)
    assert run.run()
    with run.averages.applied("power-0.050") as model:
        assert sigma_losses(model, source(), 6)[3:9].mean() < first[3:9].mean()


@pytest.mark.parametrize(("count", "rows", "columns"), [(16, 64, 64), (16, 8, 256), (1, 8, 8), (7, 64, 64), (64, 1, 1)])
def test_a_grid_holds_every_map(count: int, rows: int, columns: int) -> None:
    down, across = grid_shape(count, rows, columns)
    assert count <= down * across < count + across


def test_equal_aeration_has_equal_colours_in_every_grid(tmp_path: Path) -> None:
    """The scale is 0-100 % whatever a grid holds."""
    seen = []
    for low, high in ((0.4, 0.6), (0.0, 1.0)):
        values = np.full((2, 8, 8), 0.5)
        values[1] = [[low, high] * 4] * 8
        save_grid(values, tmp_path / "grid.png")
        with Image.open(tmp_path / "grid.png") as image:
            pixels = np.asarray(image.convert("RGB"))
        seen.append(pixels[pixels.shape[0] // 4, pixels.shape[1] // 4])
    np.testing.assert_array_equal(seen[0], seen[1])


def test_progress_says_where_a_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                           monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("lungwave.prior.journal.LOG_INTERVAL", 0.0)
    assert tiny(tmp_path, images=40).run()
    assert tiny(tmp_path, images=56, listeners=(ProgressLine(),)).run()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("train: goes on after 40 images")
    assert [line.split(" images")[0] for line in said[1:]] == ["train: 48/56", "train: 56/56"]
    assert "min left" in said[-1]


def test_a_journal_on_a_full_disk_says_so(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "nowhere")
    with pytest.raises(LungwaveError, match=r"log\.jsonl: cannot write .*; free space"):
        journal.add("step", 1)


def test_tensorboard_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"pip install 'lungwave\[track\]'"):
        TensorBoard(tmp_path)


def test_tensorboard_gets_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra 'track' is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert tiny(tmp_path, images=24, listeners=(TensorBoard(tmp_path),)).run()
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [8, 16, 24]
    assert {"lr", "grad_norm", "sigma"} <= set(found.Tags()["scalars"])
