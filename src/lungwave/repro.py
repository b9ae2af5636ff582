"""Where numbers come from: named random streams, manifests, hashes, and files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.types import LungwaveError

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
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path`` in one step, on failure it is removed.

    A full disk or a missing permission becomes a LungwaveError that names the file.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; the result gets ordinary permissions
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise LungwaveError(
            f"{path}: cannot write ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
