"""Ranges of cases that were generated on different machines, put together and checked."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lungwave.config import Config
from lungwave.data import seal
from lungwave.data.dataset import shard_files
from lungwave.data.generate import NAME, claim, describe
from lungwave.repro import atomic_path, read_json, sha256, unstamped
from lungwave.types import UsageError


def merge(folders: Sequence[Path], out: Path, cases: range | None = None) -> dict[str, Any]:
    """Put the shards of ``folders`` into ``out`` (links where the file system allows), with one card and manifest.

    ``out`` may be one of the folders: then this only checks a folder that several ranges have filled, and describes it.
    ``cases`` are those that must be there; by default all from the first to the last. Run it again to go on.

    Raises:
        UsageError: other configurations, a damaged shard, cases that stand in two files or differ, gaps; nothing is
            written then.
    """
    if not folders:
        raise UsageError("no folder to merge; name those that 'lungwave generate' filled")
    texts = {folder: unstamped(folder / "config.json", read_json(folder / "config.json")) for folder in folders}
    first = folders[0]
    for folder, text in texts.items():
        if text != texts[first]:
            raise UsageError(
                f"{folder} and {first} hold cases of other configurations or noise settings; merge neither"
            )
    found: dict[range, Path] = {}
    for folder in folders:
        for path in shard_files(folder):
            _add(found, path)
    config, noise = Config().override(texts[first]["config"]), bool(texts[first]["noise"])
    parts = sorted(found, key=lambda part: part.start)
    _check_range(parts, found, cases)
    claim(config, out, noise)
    held = {path.name for path in out.glob("cases_*.h5")}
    strange = sorted(held - {path.name for path in found.values()})
    if strange:
        raise UsageError(f"{out} holds {strange[0]} beside them; name it among the folders, or choose another --out")
    for path in found.values():
        _put(path, out / path.name)
    counts = {"out": str(out), "cases": sum(map(len, parts)), "shards": len(parts)}
    describe(config, out, noise, {**counts, "merged": [str(folder) for folder in folders]})
    return {**counts, "folders": len(folders), "bytes": sum((out / p.name).stat().st_size for p in found.values())}


def _add(found: dict[range, Path], path: Path) -> None:
    """Note a shard; one of the same cases must have the same bytes."""
    match = NAME.fullmatch(path.name)
    if match is None:
        raise UsageError(f"{path} is not named as 'lungwave generate' names its files; take it out of the folder")
    seal.check(path)
    part = range(int(match[1]), int(match[2]) + 1)
    if part in found and sha256(found[part]) != sha256(path):
        raise UsageError(f"{path} and {found[part]} hold the same cases with different bytes; delete the wrong one")
    found.setdefault(part, path)


def _check_range(parts: list[range], found: dict[range, Path], cases: range | None) -> None:
    for one, other in pairwise(parts):
        if other.start < one.stop:
            raise UsageError(f"{found[one]} and {found[other]} overlap; generate ranges that end at shard sizes")
    wanted = cases or range(parts[0].start, parts[-1].stop)
    ends = [wanted.start, *(edge for part in parts for edge in (part.start, part.stop)), wanted.stop]
    gaps = [f"{a}:{b}" for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b]
    if gaps:
        more = f" and {len(gaps) - 4} more" if len(gaps) > 4 else ""
        raise UsageError(f"cases {', '.join(gaps[:4])}{more} are missing; generate them with --cases, then merge again")
    if parts[0].start < wanted.start or parts[-1].stop > wanted.stop:
        raise UsageError(f"there are cases outside {wanted.start}:{wanted.stop}; leave their folder out")


def _put(path: Path, target: Path) -> None:
    if target.exists() and (target.samefile(path) or sha256(target) == sha256(path)):
        return
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(path, temporary)
        except OSError:  # another file system
            shutil.copyfile(path, temporary)
