"""Where numbers come from: named random streams, manifests, hashes, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.types import LungwaveError, UsageError

PACKAGES = ("lungwave", "numpy", "scipy", "torch", "deepwave", "h5py")


def stream(seed: int, name: str, index: int = 0) -> np.random.Generator:
    """Random stream ``name`` of item ``index`` under root ``seed``.

    Streams of different names or indices are independent (``SeedSequence`` spawn keys), so a result never depends
    on worker count or order. The name enters through its SHA-256, which is stable across Python versions.
    """
    tag = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=(tag, index)))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions of what decides a number; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def provenance(config_json: str, seed: int, parents: Iterable[str | Path] = ()) -> dict[str, Any]:
    """What decides an artefact's content: config, seed, versions, parents' hashes. The same run gives the same dict."""
    return {
        "config": json.loads(config_json),
        "config_sha256": hashlib.sha256(config_json.encode()).hexdigest(),
        "seed": seed,
        "versions": versions(),
        "parents": {Path(p).name: sha256(p) for p in parents},
    }


def manifest(config_json: str, seed: int, parents: Iterable[str | Path] = (), **extra: Any) -> dict[str, Any]:
    """Provenance plus when and where: UTC time, platform, git commit if any."""
    return {
        **provenance(config_json, seed, parents),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "git_commit": _git_commit(),
        **extra,
    }


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


@contextmanager
def atomic_path(path: str | Path, *, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step, on failure it is removed.

    Where a ``new`` file has come there meanwhile, that one stays. A full disk or a missing permission becomes a
    LungwaveError that names the file.
    """
    path = Path(path)
    temporary: Path | None = None
    handle = -1
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        temporary = Path(name)
        _lock(handle)  # says to ``sweep`` that somebody is at it; the system lets go however this process ends
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the result gets ordinary permissions
        if not (new and _linked(temporary, path)):
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise LungwaveError(
            f"{path}: cannot write ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        if handle >= 0:
            os.close(handle)
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file its name unless there is one of that name; False where the file system has no links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def sweep(path: str | Path) -> None:
    """Remove what killed processes left of ``path``; what another process is writing now stays."""
    path = Path(path)
    for left in path.parent.glob(f".{path.name}.*.part"):
        with suppress(OSError):  # it was finished, or removed, in this moment
            handle = os.open(left, os.O_RDONLY)
            try:
                if _lock(handle):
                    left.unlink(missing_ok=True)
            finally:
                os.close(handle)


def _lock(handle: int) -> bool:
    """Whether this process now holds the file; a system without such locks never says so."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def write_json(path: str | Path, value: Any, *, new: bool = False) -> None:
    """Write JSON atomically; NaN and infinity are refused. Where a ``new`` file is there already, it stays."""
    with atomic_path(path, new=new) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


STAMP = "content_sha256"  # key of a JSON object's digest over the rest of it


def stamped(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself, so that one wrong character is noticed."""
    rest = json.loads(json.dumps({key: item for key, item in value.items() if key != STAMP}))  # as it is read back
    return {**rest, STAMP: json_digest(rest)}


def unstamped(path: Path, value: Any) -> Any:
    """The object without its digest. UsageError where they disagree; objects without one are taken as they are."""
    if not isinstance(value, dict) or STAMP not in value:
        return value
    rest = {key: item for key, item in value.items() if key != STAMP}
    if value[STAMP] != json_digest(rest):
        raise UsageError(
            f"{path}: is not as lungwave wrote it (damaged or edited); copy it again, or, if it was edited on purpose, "
            f"delete its line '{STAMP}'"
        )
    return rest


def read_json(path: str | Path) -> Any:
    """Value of a JSON file; UsageError for one that is missing or unreadable."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UsageError(f"{path}: is missing or unreadable; copy it again, or choose another folder") from None


def json_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
