"""The Frechet distance that failed in the report, on the same arrays: ours, the usual square root, a library's.

    python benchmarks/frechet.py [--beside PYTHON ...]

1000 vectors against 4500 of 2048 features, three kinds, the covariances' product never of full rank. What is right is
known from extended precision (``exact``; for rank 64 a test computes it from the coordinates). ``--beside`` runs the
usual route in other environments as well, such as one with SciPy 1.11.4, current when the report was written:

    python3 -m venv old && old/bin/pip install 'scipy==1.11.4' 'numpy<2'

Writes docs/results/frechet.md and .json.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
GENERATED, REAL, FEATURES = 1000, 4500, 2048
REPEAT = 3


def usual(a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    """``Tr sqrtm(S1 @ S2)`` as tutorials have it: the real part of what comes out. NumPy and SciPy alone."""
    from scipy.linalg import sqrtm

    clock = time.perf_counter()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shift = a.mean(0) - b.mean(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = sqrtm(first @ second)
    value = shift @ shift + np.trace(first) + np.trace(second) - 2 * np.trace(root).real
    imaginary = float(np.abs(np.imag(np.diag(root))).max())
    return {"value": float(value), "imaginary": imaginary, "seconds": time.perf_counter() - clock}


def single(a: np.ndarray, b: np.ndarray) -> float:
    """Eigenvalues of the product of single-precision covariances."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    first, second = (np.cov(x, rowvar=False, dtype=np.float32) for x in (a, b))
    shift = a.mean(0) - b.mean(0)
    values = np.linalg.eigvals(first @ second)
    return float(shift @ shift + np.trace(first) + np.trace(second) - 2 * np.sqrt(values.astype(complex)).real.sum())


def kinds() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """A slow spectrum; rectified features, a third of them dead; 64 dimensions turned into 2048."""
    rng = np.random.default_rng(0)
    slow = np.sqrt(120 / np.arange(1, FEATURES + 1) / np.sum(1 / np.arange(1, FEATURES + 1)))
    a = rng.standard_normal((GENERATED + REAL, FEATURES)) * slow
    mix = rng.standard_normal((96, FEATURES)) * 0.1
    b = np.maximum(rng.standard_normal((GENERATED + REAL, 96)) @ mix - 0.15, 0)
    b[:, rng.permutation(FEATURES)[:706]] = 0
    spread = np.arange(1, 65) ** -0.5
    c = rng.standard_normal((GENERATED + REAL, 64)) * spread @ np.linalg.qr(rng.standard_normal((FEATURES, 64)))[0].T
    named = {"slow spectrum": a, "rectified, 706 dead": b, "rank 64": c}
    return {name: (x[:GENERATED], x[GENERATED:]) for name, x in named.items()}


def exact(a: np.ndarray, b: np.ndarray) -> float:
    """The distance in extended precision: what double singular vectors leave over is added in long doubles.

    The trace of the root is the nuclear norm of G = A B'. G is formed to twice double precision; with G = U s V' + rest
    from a double decomposition, the norm is sum s + trace U' rest V up to the square of the rest.
    """
    wide = [x.astype(np.longdouble) for x in (a, b)]
    centred = [(x - x.mean(0)) / np.sqrt(np.longdouble(len(x) - 1)) for x in wide]
    high = [x.astype(np.float64) for x in centred]
    low = [(x - h).astype(np.float64) for x, h in zip(centred, high, strict=True)]
    gram = (high[0] @ high[1].T).astype(np.longdouble) + high[0] @ low[1].T + low[0] @ high[1].T
    u, s, vt = np.linalg.svd(gram.astype(np.float64), full_matrices=False)
    kept = s > 1e-12 * s[0]
    u, s, vt = u[:, kept], s[kept], vt[kept]
    rest = (gram - ((u * s) @ vt).astype(np.longdouble)).astype(np.float64)
    root = np.longdouble(s.sum()) + np.einsum("ki,ki->", u.T @ rest, vt)
    shift = wide[0].mean(0) - wide[1].mean(0)
    return float(np.square(shift).sum() + sum(np.square(x).sum() for x in centred) - 2 * root)


def library(a: np.ndarray, b: np.ndarray) -> float:
    """torchmetrics, fed with features, in double precision."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        def __init__(self, count: int) -> None:
            super().__init__()
            self.num_features = count

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        size = (1, 1, a.shape[1])
        metric = FrechetInceptionDistance(feature=Features(a.shape[1]), input_img_size=size, normalize=True)
        metric.set_dtype(torch.float64)
        for features, real in ((a, False), (b, True)):
            metric.update(torch.as_tensor(features)[:, None, None].expand(-1, 1, -1, -1), real=real)
        return float(metric.compute())


def elsewhere(python: str, arrays: Path) -> dict[str, Any]:
    """The usual route in another environment."""
    said = subprocess.run([python, __file__, "--route", str(arrays)], capture_output=True, text=True, check=True)
    return json.loads(said.stdout)


def timed(work: Any, *arrays: np.ndarray) -> dict[str, float]:
    clock = time.perf_counter()
    value = work(*arrays)
    return {"value": float(value), "seconds": time.perf_counter() - clock}


def compare(beside: list[str]) -> list[dict[str, Any]]:
    """Every route on every kind."""
    import scipy

    from lungwave.evaluate.generative import frechet

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (a, b) in kinds().items():
            right = exact(a, b)
            ours = min((timed(frechet, a, b) for _ in range(REPEAT)), key=lambda found: found["seconds"])
            rows.append({"kind": name, "route": "lungwave, nuclear norm", **ours, "exact": right})
            rows.append({"kind": name, "route": "torchmetrics, eigenvalues", **timed(library, a, b), "exact": right})
            rows.append(
                {"kind": name, "route": f"usual root, SciPy {scipy.__version__}", **usual(a, b), "exact": right}
            )
            arrays = Path(folder) / "arrays.npz"
            np.savez(arrays, a=a, b=b)
            for python in beside:
                found = elsewhere(python, arrays)
                route = f"usual root, SciPy {found.pop('scipy')}"
                rows.append({"kind": name, "route": route, **found, "exact": right})
            rows.append({"kind": name, "route": "single precision", **timed(single, a, b), "exact": right})
    return rows


def write(rows: list[dict[str, Any]], agreement: dict[str, float], command: str) -> None:
    from lungwave.repro import atomic_path, versions, write_json

    lines = [
        "# The Frechet distance that failed",
        "",
        f"Made by `{command}`: {GENERATED} vectors against {REAL} of {FEATURES} features, drawn from one distribution. "
        "The covariances' product has eigenvalues that are rounding alone, of either sign; the usual route takes their "
        "roots and drops the imaginary part.",
        "",
        "| features | route | distance | relative error | largest imaginary part | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        imaginary = f"{row['imaginary']:.1g}" if "imaginary" in row else "-"
        error = row["value"] / row["exact"] - 1
        cells = (row["kind"], row["route"], f"{row['value']:.7g}", f"{error:+.1e}", imaginary, f"{row['seconds']:.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"At full rank, 5000 and 3000 vectors of 64 features: lungwave {agreement['ours']:.12g}, torchmetrics "
        f"{agreement['library']:.12g}, relative difference {agreement['difference']:.1e}.",
        "",
        f"{platform.processor() or platform.machine()}, one thread.",
    ]
    base = ROOT / "docs/results/frechet"
    with atomic_path(base.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    about = {"command": command, "rows": rows, "agreement": agreement, "versions": versions()}
    write_json(base.with_suffix(".json"), about)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", nargs="*", default=[], metavar="PYTHON", help="other interpreters with SciPy")
    parser.add_argument("--route", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.route:
        import scipy

        with np.load(args.route) as held:
            print(json.dumps({**usual(held["a"], held["b"]), "scipy": scipy.__version__}))
        return 0
    from lungwave.evaluate.generative import frechet

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((5000, 64)), 1.1 * rng.standard_normal((3000, 64)) + 0.1
    found = {"ours": frechet(a, b), "library": library(a, b)}
    agreement = {**found, "difference": abs(found["ours"] / found["library"] - 1)}
    # Where the other interpreters lie says nothing; which SciPy they hold stands in the table.
    words = ["python", "benchmarks/frechet.py", *(["--beside", "OLD/bin/python"] if args.beside else [])]
    write(compare(args.beside), agreement, shlex.join(words))
    return 0


if __name__ == "__main__":
    sys.exit(main())
