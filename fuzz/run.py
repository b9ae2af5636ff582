"""Look for bytes that make a reader do anything but succeed or say what is wrong (atheris, guided by coverage).

    pip install -e '.[dev,fuzz]'
    python fuzz/run.py recording --seconds 600     # one reader; the names stand in fuzz/readers.py
    python fuzz/run.py --table                     # docs/results/fuzz.md from the logs of all

Starts from fuzz/corpus/READER.zip and from what fuzz/seeds.py makes. A crash is kept in fuzz/found/READER with its
traceback and the run goes on; one of the interpreter itself (a signal, 20 s of silence, 4 GiB) ends the child, which is
started again. ``--pack`` puts what runs have left into the committed corpus, the smallest files first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
CORPUS, FOUND, LOGS, RAW = (HERE / name for name in ("corpus", "found", "logs", "raw"))
LONGEST = 160_000  # [byte] of a file
LARGEST_CORPUS = 280_000  # [byte] of a reader's ZIP
MEMORY = 8 * 2**30  # [byte] of address space


def child(name: str, folder: Path, seconds: float, stats: Path) -> None:
    """Fuzz in this process until the time is up."""
    import atheris

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with atheris.instrument_imports(include=["lungwave", "scipy.io.matlab", "PIL.PngImagePlugin", "tomllib"]):
        import readers
    from mutators import MUTATORS

    warnings.simplefilter("ignore")
    from lungwave.types import LungwaveError

    place = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
    count, begun, said, seen = 0, time.monotonic(), 0.0, set(json.loads(stats.read_text())["seen"])

    def save() -> None:
        stats.write_text(json.dumps({"executions": count, "seconds": time.monotonic() - begun, "seen": sorted(seen)}))

    def one(data: bytes) -> None:
        nonlocal count, said
        count += 1
        try:
            readers.read(name, data, place)
        except LungwaveError:
            pass
        except Exception as error:
            where = [f for f in traceback.extract_tb(error.__traceback__) if "/src/lungwave/" in f.filename]
            mark = (
                f"{type(error).__name__} {Path(where[-1].filename).name}:{where[-1].lineno}" if where else repr(error)
            )
            if mark not in seen:
                seen.add(mark)
                keep(name, data, f"{mark}\n\n{traceback.format_exc()}")
        if time.monotonic() - said > 2:
            said = time.monotonic()
            save()

    words = [
        sys.argv[0],
        str(folder),
        f"-max_total_time={int(seconds)}",
        f"-max_len={LONGEST}",
        "-timeout=20",
        "-rss_limit_mb=4096",
        f"-artifact_prefix={folder.parent}/",
        "-verbosity=0",
    ]
    extra = {}
    if name in MUTATORS:
        extra["custom_mutator"] = lambda data, most, seed: MUTATORS[name](data, most, seed, atheris.Mutate)
    atheris.Setup(words, one, **extra)
    save()
    atheris.Fuzz()


def keep(name: str, data: bytes, text: str) -> None:
    """Put bytes that crash aside, with what happened."""
    (FOUND / name).mkdir(parents=True, exist_ok=True)
    mark = hashlib.sha256(data).hexdigest()[:12]
    (FOUND / name / mark).write_bytes(data)
    (FOUND / name / f"{mark}.txt").write_text(text)
    print(f"{name}: CRASH {text.splitlines()[0]}", flush=True)


def unpacked(name: str, folder: Path) -> None:
    """The committed corpus and fresh seeds as files."""
    import seeds

    for seed, data in seeds.SEEDS[name]().items():
        (folder / seed).write_bytes(data)
    for archive in (CORPUS / f"{name}.zip", CORPUS / "crashes.zip"):
        if archive.exists():
            with zipfile.ZipFile(archive) as held:
                for item in held.namelist():
                    if archive.stem == name or item.startswith(f"{name}/"):
                        (folder / item.replace("/", "_")).write_bytes(held.read(item))


def packed(name: str, folder: Path) -> int:
    """Files as a ZIP of bounded size, the smallest first; how many. libFuzzer kept only what reaches something new."""
    files = sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name))
    count = 0
    CORPUS.mkdir(exist_ok=True)
    with zipfile.ZipFile(CORPUS / f"{name}.zip", "w") as archive:
        for path in files:
            if archive.start_dir + path.stat().st_size // 4 > LARGEST_CORPUS:
                break
            add(archive, path.name, path.read_bytes())
            count += 1
    return count


def add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """A member without a time of its own, so that the same files give the same ZIP."""
    item = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
    item.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(item, data, compresslevel=9)


def pack_crashes() -> int:
    """All that ever crashed a reader, beside what was packed before; how many."""
    target, held = CORPUS / "crashes.zip", {}
    if target.exists():
        with zipfile.ZipFile(target) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
    for path in FOUND.glob("*/*"):
        if path.suffix != ".txt":
            held[f"{path.parent.name}/{path.name}"] = path.read_bytes()
    with zipfile.ZipFile(target, "w") as archive:
        for name in sorted(held):
            add(archive, name, held[name])
    return len(held)


def table() -> None:
    """docs/results/fuzz.md and .json: what these held, the log since, and fuzz/fixed.json with every crash's cause."""
    results = HERE.parent / "docs" / "results"
    runs: dict[str, dict[str, float]] = json.loads((results / "fuzz.json").read_text())["runs"]
    for line in map(json.loads, (LOGS / "runs.jsonl").read_text().splitlines()):
        total = runs.setdefault(line["reader"], {"executions": 0, "seconds": 0.0})
        total["executions"] += line["executions"]
        total["seconds"] += line["seconds"]
    fixed = json.loads((HERE / "fixed.json").read_text())
    lines = [
        "# Readers against bytes that nobody meant",
        "",
        "Made by `python fuzz/run.py READER --seconds 600` for each reader and `python fuzz/run.py --table`. "
        "A crash is "
        "any end but success or one sentence (`LungwaveError`), a run of more than 20 s, or 4 GiB of memory.",
        "",
        "| reader | executions | seconds | crashes found | fixed |",
        "|---|---|---|---|---|",
    ]
    for name, total in runs.items():
        mine = [crash for crash in fixed if crash["reader"] == name]
        lines.append(f"| {name} | {total['executions']:,} | {total['seconds']:.0f} | {len(mine)} | {len(mine)} |")
    idle = sorted(path.stem for path in CORPUS.glob("*.zip") if path.stem not in (*runs, "crashes"))
    lines += ["", f"Not run yet: {', '.join(idle) or 'none'}."]
    lines += ["", "| reader | what happened | what it is now |", "|---|---|---|"]
    lines += [f"| {crash['reader']} | {crash['was']} | {crash['now']} |" for crash in fixed]
    lines += [
        "",
        "Readers by what they read: `recording` HDF5 of lungwave, zea, PICMUS, UFF (both) and MATLAB 5 to "
        "7.3; `arrays` "
        "NPZ and NPY of RF, maps, posterior samples and cached predictions; `image` PNG, GIF, JPEG; `model` "
        "config.json "
        "and weights; `openai` .pt and safetensors; `training` state, snapshots, journal; `settings` TOML "
        "and JSON of runs "
        "and geometries; `posterior` posterior.h5. Seals and digests are made to fit, or no change would get "
        "past them. "
        "The corpus and all crashes are read again by `tests/faults/test_corpus.py`.",
    ]
    (results / "fuzz.md").write_text("\n".join(lines) + "\n")
    (results / "fuzz.json").write_text(json.dumps({"runs": runs, "fixed": fixed}, indent=2) + "\n")
    (LOGS / "runs.jsonl").write_text("")  # counted now
    print("\n".join(lines))


def run(name: str, seconds: float) -> None:
    """Children one after the other until the time is used up; then the corpus and a line in the log."""
    total, spent, died, seen = 0, 0.0, 0, set()
    with tempfile.TemporaryDirectory() as top:
        folder, stats = Path(top) / "corpus", Path(top) / "stats.json"
        folder.mkdir()
        unpacked(name, folder)
        started = len(list(folder.iterdir()))
        while seconds - spent > 5:
            stats.write_text(json.dumps({"executions": 0, "seconds": 0.0, "seen": sorted(seen)}))
            clock = time.monotonic()
            words = [
                sys.executable,
                __file__,
                name,
                "--child",
                str(seconds - spent),
                "--folder",
                str(folder),
                "--stats",
                str(stats),
            ]
            with (Path(top) / "said").open("w") as said:
                code = subprocess.run(words, stderr=said, check=False).returncode
            found = json.loads(stats.read_text())
            spent += found["seconds"] or time.monotonic() - clock
            total, seen = total + found["executions"], set(found["seen"])
            for artifact in (p for p in Path(top).iterdir() if p.name.split("-")[0] in ("crash", "timeout", "oom")):
                died += 1
                said_last = (Path(top) / "said").read_text(errors="replace")[-3000:]
                keep(
                    name,
                    artifact.read_bytes(),
                    f"{artifact.name.split('-')[0]} of the interpreter (code {code})\n\n{said_last}",
                )
                artifact.unlink()
            if code and not total:
                sys.exit((Path(top) / "said").read_text(errors="replace")[-2000:])
        grown = len(list(folder.iterdir())) - started
        shutil.copytree(folder, RAW / name, dirs_exist_ok=True)
    line = {
        "reader": name,
        "executions": total,
        "seconds": round(spent, 1),
        "unexpected": sorted(seen),
        "interpreter": died,
        "new_inputs": grown,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }
    LOGS.mkdir(exist_ok=True)
    with (LOGS / "runs.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    """Fuzz one reader."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", nargs="?")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--table", action="store_true", help="write the table from the logs")
    parser.add_argument("--pack", action="store_true", help="renew the committed corpus from what runs have left")
    for hidden in ("--child", "--folder", "--stats"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    options = parser.parse_args()
    if options.child:
        child(options.reader, Path(options.folder), float(options.child), Path(options.stats))
    elif options.table:
        table()
    elif options.pack:
        for folder in sorted(RAW.iterdir()):
            print(folder.name, packed(folder.name, folder), "files")
        print("crashes", pack_crashes(), "files")
    else:
        from readers import READERS

        if options.reader not in READERS:
            parser.error(f"give a reader: {', '.join(READERS)}")
        run(options.reader, options.seconds)


if __name__ == "__main__":
    main()
