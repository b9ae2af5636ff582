"""The original's log: a table on stdout and in ``log.txt``, ``progress.csv``, ``progress.json``, TensorBoard.

``OPENAI_LOGDIR`` says where, ``OPENAI_LOG_FORMAT`` what (``OPENAI_LOG_FORMAT_MPI`` for processes after the first).
"""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lungwave.types import LungwaveError, UsageError

FORMATS = ("stdout", "log", "csv", "json", "tensorboard")
WIDTH = 30  # characters of a key or a value in the table
Row = dict[str, float]


def log_folder() -> Path:
    """``OPENAI_LOGDIR``, else a new folder among the temporary files."""
    named = os.environ.get("OPENAI_LOGDIR")
    if named:
        return Path(named).expanduser()
    return Path(tempfile.gettempdir()) / datetime.now().strftime("openai-%Y-%m-%d-%H-%M-%S-%f")


def checkpoint_folder(log: Path) -> Path:
    """``DIFFUSION_BLOB_LOGDIR``, else the folder of the log."""
    named = os.environ.get("DIFFUSION_BLOB_LOGDIR")
    return Path(named).expanduser() if named else log


def rank() -> int:
    """Number of this process in its group, as torchrun and the MPI launchers say it."""
    for name in ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


class Log:
    """Lines, and rows of values, written where ``formats`` says.

    ``upto``: the last step of the run that goes on here; rows up to it stay, later ones belong to steps that are
    computed again. None = a new log. ``rows``: whether there will be any; without, nothing in the folder is replaced.
    """

    def __init__(self, folder: Path, formats: str | None = None, upto: int | None = None, *, rows: bool = True) -> None:
        self.folder = folder
        if formats is None:
            name, usual = ("OPENAI_LOG_FORMAT", "stdout,log,csv") if rank() == 0 else ("OPENAI_LOG_FORMAT_MPI", "log")
            formats = os.environ.get(name, usual)
        chosen = [word.strip() for word in formats.split(",") if word.strip()]
        unknown = [word for word in chosen if word not in FORMATS]
        if unknown:
            raise UsageError(f"OPENAI_LOG_FORMAT={formats}: '{unknown[0]}' is unknown; choose from {','.join(FORMATS)}")
        if "tensorboard" in chosen and find_spec("tensorboard") is None:
            raise UsageError(f"OPENAI_LOG_FORMAT={formats}: tensorboard is not installed; install it, or leave it out")
        self._chosen, self._upto, self._rows = chosen, upto, rows
        self._row: dict[str, tuple[float, int]] = {}
        self._sayers: list[Callable[[str], None]] = []
        self._writers: list[Callable[[Row], None]] = []

    def open(self) -> None:
        """Make the files; nothing is written before."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.folder}: {error.strerror}; set OPENAI_LOGDIR to a folder") from error
        suffix, upto = f"-rank{rank():03d}" if rank() else "", self._upto
        for word in self._chosen:
            if word == "stdout":
                self._sayers.append(lambda text: print(text, flush=True))
            elif word == "log":
                self._sayers.append(_Lines(self.folder / f"log{suffix}.txt", fresh=upto is None and self._rows))
            elif not self._rows:
                continue
            elif word == "csv":
                self._writers.append(_Csv(self.folder / f"progress{suffix}.csv", upto))
            elif word == "json":
                self._writers.append(_Json(self.folder / f"progress{suffix}.json", upto))
            else:
                self._writers.append(_tensorboard(self.folder / f"tb{suffix}"))
        self.say(f"Logging to {self.folder}")

    def say(self, text: str) -> None:
        """One line to stdout and ``log.txt``."""
        for say in self._sayers:
            say(text)

    def set(self, key: str, value: float) -> None:
        """A value of this row."""
        self._row[key] = (value, 0)

    def mean(self, key: str, value: float) -> None:
        """One more value of an average of this row."""
        before, count = self._row.get(key, (0.0, 0))
        self._row[key] = ((before * count + value) / (count + 1), count + 1)

    def write(self) -> Row:
        """Write the row and begin a new one."""
        row = {key: value for key, (value, _) in self._row.items()}
        self._row.clear()
        for write in self._writers:
            write(row)
        self.say(table(row))
        return row


def table(row: Row) -> str:
    """The row as the original drew it."""
    cells = sorted(((_short(k), _short(f"{v:<8.3g}")) for k, v in row.items()), key=lambda cell: cell[0].lower())
    left, right = (max((len(cell[side]) for cell in cells), default=0) for side in (0, 1))
    rule = "-" * (left + right + 7)
    return "\n".join([rule, *(f"| {key:<{left}} | {value:<{right}} |" for key, value in cells), rule])


def _short(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


class _Lines:
    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        if fresh:
            _put(path, "")

    def __call__(self, text: str) -> None:
        _put(self.path, f"{text}\n", append=True)


class _Csv:
    """Columns appear as keys do; the file is written anew when one is added."""

    def __init__(self, path: Path, upto: int | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if upto is not None and path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = [row for row in csv.DictReader(file) if _step(row) <= upto]
        self.keys = list(self.rows[0]) if self.rows else []
        _put(path, self._text(self.rows, header=True) if self.rows else "")

    def __call__(self, row: Row) -> None:
        self.rows.append(dict(row))
        added = sorted(set(row) - set(self.keys))
        self.keys += added
        if added:
            _put(self.path, self._text(self.rows, header=True))
        else:
            _put(self.path, self._text([row], header=False), append=True)

    def _text(self, rows: list[Any], header: bool) -> str:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, self.keys, restval="", lineterminator="\n")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return buffer.getvalue()


class _Json:
    """One object a line."""

    def __init__(self, path: Path, upto: int | None) -> None:
        self.path = path
        kept = []
        if upto is not None and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if line.endswith("}") and _step(json.loads(line)) <= upto]
        _put(path, "".join(f"{line}\n" for line in kept))

    def __call__(self, row: Row) -> None:
        _put(self.path, json.dumps({key: row[key] for key in sorted(row)}) + "\n", append=True)


def _step(row: dict[str, Any]) -> float:
    try:
        return float(row.get("step", ""))
    except ValueError:
        return float("inf")  # a row that was cut off


def _tensorboard(folder: Path) -> Callable[[Row], None]:
    from torch.utils.tensorboard import SummaryWriter  # needs the package tensorboard

    writer = SummaryWriter(str(folder))

    def write(row: Row) -> None:
        for key, value in row.items():
            writer.add_scalar(key, value, int(row.get("step", 0)))
        writer.flush()

    return write


def _put(path: Path, text: str, append: bool = False) -> None:
    try:
        with path.open("a" if append else "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise LungwaveError(f"{path}: cannot write ({error.strerror}); free space or choose another folder") from error
