"""A folder that nobody else may enter and that is gone when the viewer is, however the viewer ends.

Three things erase it: the viewer when it ends, a keeper process when the viewer was killed, and the next viewer where
both were.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PREFIX = "lungwave-view-"
LOCK = "in-use"  # held locked by the viewer as long as it lives
PATIENCE = 10.0  # [s] that a keeper waits for the last worker to let go of the folder


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder with mode 0700 in the system's temporary folder, erased at the end of the block."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = _lock(folder)
    keeper = subprocess.Popen(
        [sys.executable, "-P", "-m", "lungwave.viewer.private", str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield folder
    finally:
        erase(folder)
        if lock is not None:
            lock.close()
        assert keeper.stdin is not None
        keeper.stdin.close()  # which ends it, as the end of this process would
        keeper.wait()


def sweep() -> None:
    """Erase what viewers of this user left whose keeper was killed as well."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not _mine(folder) or not (folder / LOCK).exists():  # the latter: a viewer that is just starting
            continue
        lock = _lock(folder)
        if lock is not None:  # its viewer is dead
            erase(folder)
            lock.close()


def erase(path: Path) -> None:
    """Remove a folder and all in it; what is not there is fine."""
    shutil.rmtree(path, ignore_errors=True)


def _mine(folder: Path) -> bool:
    """Whether it is a folder, not a link to one, of this user and of nobody else."""
    try:
        about = folder.lstat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or about.st_uid == os.getuid()
    return own and stat.S_ISDIR(about.st_mode) and not about.st_mode & 0o077


def _lock(folder: Path) -> IO[bytes] | None:
    """The folder's lock; None where another process holds it, or where this system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    try:
        file = (folder / LOCK).open("ab")
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def keep(folder: Path) -> None:
    """Wait until the viewer has ended, then erase its folder, again and again until its worker has ended too."""
    sys.stdin.buffer.read()
    begun = time.monotonic()
    while folder.exists() and time.monotonic() - begun < PATIENCE:
        erase(folder)
        time.sleep(0.1)


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
