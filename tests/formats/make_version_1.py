"""Files of format 1 for the reader tests, made once with the first format and never again.

    python tests/formats/make_version_1.py tests/formats/version_1

A newer lungwave may write other files; that these can be read stays a promise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "simulate --preset tiny --seed 4 --case 2 --set receive.snr_db=20 --out rf.h5",
    "generate --preset micro --seed 4 --cases 0:3 --workers 1 --out cases",
    "maps --preset micro --seed 4 --cases 0:12 --workers 1 --out maps.npz",
    "train maps.npz --out prior --images 48 --batch 4 --held-out 0.2 --channels 8 --mult 1 1 --blocks 1 --heads 1 "
    "--patch 8 8 --attention 1 --warmup 4 --decay-images 16 --samples 0",
    "reconstruct rf.h5 --samples 4 --out result",
)


def main(out: Path) -> None:
    out.mkdir(parents=True)
    for words in COMMANDS:
        subprocess.run([sys.executable, "-m", "lungwave", *words.split(), "--quiet"], cwd=out, check=True)
    for name in ("report.html",):
        (out / "result" / name).unlink()
    shutil.rmtree(out / "result" / "maps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
