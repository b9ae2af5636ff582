"""The log: the original's table and files, columns that appear late, and a run that goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from lungwave.legacy import log as log_module
from lungwave.legacy.log import Log, checkpoint_folder, log_folder, table
from lungwave.types import UsageError

ROWS = [{"step": 0, "loss": 0.5}, {"step": 10, "loss": 0.25, "loss_q3": 1.5}, {"step": 20, "a": 1e-7}]


def written(folder: Path, rows: list[dict[str, float]], upto: int | None = None) -> Log:
    log = Log(folder, "log,csv,json", upto)
    log.open()
    for row in rows:
        for key, value in row.items():
            log.set(key, value)
        log.write()
    return log


def test_every_value_comes_back(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    with (tmp_path / "progress.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value != ""} for row in csv.DictReader(file)]
    assert rows == ROWS
    lines = (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == ROWS
    assert "| loss_q3 | 1.5      |" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_a_run_that_goes_on_keeps_the_rows_before_it(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    written(tmp_path, [{"step": 20, "b": 2.0}], upto=10)
    with (tmp_path / "progress.csv").open(newline="", encoding="utf-8") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "10", "20"]
    lines = [json.loads(line) for line in (tmp_path / "progress.json").read_text(encoding="utf-8").splitlines()]
    assert lines == [*ROWS[:2], {"step": 20, "b": 2.0}]
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").count("Logging to") == 2
    written(tmp_path, [])
    assert (tmp_path / "progress.csv").read_text(encoding="utf-8") == ""


def test_without_rows_no_table_is_touched(tmp_path: Path) -> None:
    written(tmp_path, ROWS)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("progress.*")}
    log = Log(tmp_path, "log,csv,json", rows=False)
    log.open()
    log.say("sampling")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("progress.*")} == before
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()[-1] == "sampling"


def test_means_are_over_one_row(tmp_path: Path) -> None:
    log = Log(tmp_path, "")
    log.open()
    for value in (1.0, 2.0, 6.0):
        log.mean("loss", value)
    assert log.write() == {"loss": 3.0}
    log.mean("loss", 5.0)
    assert log.write() == {"loss": 5.0}


def test_the_table_is_the_originals() -> None:
    drawn = table({"step": 10, "loss": 0.123456, "an_extremely_long_name_of_a_quantity": 1e6})
    assert drawn.splitlines() == [
        "---------------------------------------------",
        "| an_extremely_long_name_of_a... | 1e+06    |",
        "| loss                           | 0.123    |",
        "| step                           | 10       |",
        "---------------------------------------------",
    ]


def test_where_it_goes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_LOGDIR", str(tmp_path))
    assert log_folder() == checkpoint_folder(tmp_path) == tmp_path
    monkeypatch.setenv("DIFFUSION_BLOB_LOGDIR", str(tmp_path / "blobs"))
    assert checkpoint_folder(tmp_path) == tmp_path / "blobs"
    monkeypatch.delenv("OPENAI_LOGDIR")
    assert log_folder().name.startswith("openai-20")
    monkeypatch.setenv("RANK", "1")
    Log(tmp_path).open()
    assert [path.name for path in tmp_path.iterdir()] == ["log-rank001.txt"]


def test_formats_that_do_not_work_are_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="'xml' is unknown; choose from stdout,log,csv,json,tensorboard"):
        Log(tmp_path, "stdout,xml")
    monkeypatch.setattr(log_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="tensorboard is not installed"):
        Log(tmp_path, "tensorboard")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="set OPENAI_LOGDIR to a folder"):
        Log(tmp_path / "file", "log").open()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
