"""Can this be released? What is built, what an install brings, which licences, the oldest packages, other Pythons.

    python benchmarks/release.py [--pythons python3.11 python3.12] [--skip-lowest]

Builds the sdist, and the wheel from the sdist; compares the wheel with the tracked files; installs it into fresh
environments outside the checkout; runs the demo there without a network where the kernel lets us take it away; weighs
what was installed; lists licences and fails on one that is not allowed; and installs the lowest versions that
pyproject.toml names (torch excepted: its old wheels for CPUs are not on the index) and runs the tests that read, write,
simulate and reconstruct. Writes docs/results/release.md and .json, and docs/reference/sbom.json (CycloneDX).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from lungwave.repro import atomic_path, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("build", "uv", "cyclonedx-bom")
ALLOWED = (
    "apache", "mit", "bsd", "isc", "psf", "python software foundation", "mpl", "mozilla public license 2.0", "hpnd",
    "zlib", "unlicense", "cc0", "historical permission notice", "0bsd",
)  # fmt: skip
STATED = {  # where the metadata says nothing that can be read by a program, read by hand from the licence file
    "torch": "BSD-3-Clause",
    "cycler": "BSD-3-Clause",
}
BESIDE = {"torch"}  # of the lowest versions: the one that was tested stays
CORE_TESTS = (
    "tests/test_config.py", "tests/test_repro.py", "tests/test_readme.py", "tests/data", "tests/posterior",
    "tests/acoustics", "tests/models",
)  # fmt: skip


def run(words: list[str | Path], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command that must succeed; its output where it does not."""
    found = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False, **how)
    if found.returncode:
        raise SystemExit(f"{shlex.join(map(str, words))} ended with {found.returncode}:\n{found.stdout}{found.stderr}")
    return found


def environment(folder: Path, python: str) -> Path:
    """A new environment; its interpreter."""
    run([python, "-m", "venv", folder])
    return folder / "bin" / "python"


def built(tools: Path, out: Path) -> tuple[Path, Path]:
    """sdist, and wheel made from the sdist."""
    run([tools, "-m", "build", "--outdir", out, ROOT])
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


def against_tracked(wheel: Path) -> dict[str, Any]:
    """Files of the package that the wheel lacks, or that git does not know."""
    tracked = run(["git", "ls-files", "src/lungwave"], cwd=ROOT).stdout.split()
    wanted = {name.removeprefix("src/") for name in tracked}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("lungwave/")}
    return {"files": len(held), "missing": sorted(wanted - held), "strange": sorted(held - wanted)}


def sizes(packages: Path) -> dict[str, float]:
    """Megabytes of every installed distribution."""
    found = {}
    for one in distributions(path=[str(packages)]):
        files = [Path(str(one.locate_file(f))) for f in one.files or ()]
        found[one.metadata["Name"]] = sum(f.stat().st_size for f in files if f.is_file()) / 1e6
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def licence(one: Distribution) -> str:
    """What a distribution states: SPDX expression, else classifiers, else its free text."""
    name = one.metadata["Name"]
    if name in STATED:
        return STATED[name]
    if one.metadata.get("License-Expression"):
        return str(one.metadata["License-Expression"])
    classes = [c.split(" :: ")[-1] for c in one.metadata.get_all("Classifier") or () if c.startswith("License ::")]
    return "; ".join(classes) or str(one.metadata.get("License") or "").splitlines()[0][:60]


def offline(words: list[str | Path], folder: Path) -> tuple[float, bool]:
    """Seconds of a command, and whether it ran without a network."""
    alone = (
        shutil.which("unshare") is not None and not subprocess.run(["unshare", "-rn", "true"], check=False).returncode
    )
    clock = time.perf_counter()
    run([*(["unshare", "-rn"] if alone else []), *words], cwd=folder)
    return time.perf_counter() - clock, alone


def installed(wheel: Path, python: str, folder: Path) -> dict[str, Any]:
    """A fresh install of the wheel, the demo in it, and what it weighs."""
    interpreter = environment(folder / "env", python)
    clock = time.perf_counter()
    run([interpreter, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel])
    seconds = time.perf_counter() - clock
    demo, alone = offline([folder / "env/bin/lungwave", "demo", "--out", "demo", "--quiet"], folder)
    packages = Path(run([interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).stdout.strip())
    version = run([interpreter, "--version"]).stdout.strip()
    return {
        "python": version, "install_seconds": seconds, "demo_seconds": demo, "without_network": alone,
        "report_bytes": (folder / "demo/report.html").stat().st_size, "packages": str(packages),
    }  # fmt: skip


def bounds() -> list[str]:
    """``name==lowest`` of every core dependency."""
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = []
    for line in about["project"]["dependencies"]:
        name, _, rest = line.partition(">=")
        if name not in BESIDE:
            wanted.append(f"{name}=={rest.split(',')[0]}")
    return wanted


def lowest(wheel: Path, tools: Path, folder: Path) -> dict[str, Any]:
    """Tests with the lowest versions that pyproject.toml allows."""
    interpreter = environment(folder / "env", sys.executable)
    pip = [interpreter, "-m", "pip", "install", "--quiet"]
    run([*pip, "-c", ROOT / "constraints.txt", "torch", "pytest", "pytest-xdist", "hypothesis", "beartype"])
    run([*pip, *bounds(), wheel])
    held = run([interpreter, "-m", "pip", "freeze"]).stdout.split()
    found = subprocess.run(
        [
            interpreter, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default",
            "-o", "addopts=--import-mode=importlib",  # the oldest jaxtyping cannot check what a conftest imports
            *CORE_TESTS,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    names = {line.partition("==")[0].lower() for line in bounds()}
    return {
        "status": found.returncode, "said": (found.stdout or found.stderr).strip().splitlines()[-1:],
        "failed": [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))],
        "versions": [line for line in held if line.partition("==")[0].lower() in names],
    }  # fmt: skip


def without_downloads(sbom: Path) -> Any:
    """The bill without its own maker and without addresses to download from: name and version say which package."""

    def kept(node: Any) -> Any:
        if isinstance(node, list):
            return [kept(item) for item in node if not (isinstance(item, dict) and item.get("type") == "distribution")]
        if isinstance(node, dict):
            return {key: kept(value) for key, value in node.items() if key != "tools"}
        return node

    return kept(json.loads(sbom.read_text(encoding="utf-8")))


def text(found: dict[str, Any]) -> str:
    lines = [
        "# What a release is made of",
        "",
        f"Made by `{found['command']}` on {platform.machine()} with lungwave {found['version']}. How to release: "
        "[checklist](../howto/release.md).",
        "",
        f"sdist {found['sdist_mb']:.1f} MB, wheel {found['wheel_mb']:.1f} MB with {found['wheel']['files']} files; "
        f"missing from the wheel: {len(found['wheel']['missing'])}, unknown to git: {len(found['wheel']['strange'])}.",
        "",
        "| Python | install, s | demo, s | network during the demo |",
        "|---|---|---|---|",
    ]
    for row in found["installs"]:
        lines.append(
            f"| {row['python']} | {row['install_seconds']:.0f} | {row['demo_seconds']:.0f} | "
            f"{'none' if row['without_network'] else 'could not be taken away'} |"
        )
    weights = found["sizes"]
    most = list(weights.items())[:8]
    lines += [
        "",
        f"An install brings {len(weights)} distributions, {sum(weights.values()):.0f} MB; without torch "
        f"{sum(v for k, v in weights.items() if k != 'torch'):.0f} MB. The largest: "
        + ", ".join(f"{name} {size:.0f}" for name, size in most)
        + ".",
        "",
        "## Lowest versions",
        "",
    ]
    low = found.get("lowest")
    if low is None:
        lines.append("Not tried in this run.")
    else:
        lines += [f"{', '.join(low['versions'])}: `{' '.join(low['said'])}`", *(f"- {line}" for line in low["failed"])]
    lines += [
        "",
        "## Licences of what an install brings",
        "",
        "| distribution | version | licence |",
        "|---|---|---|",
        *(f"| {row['name']} | {row['version']} | {row['licence']} |" for row in found["licences"]),
        "",
        "The same as CycloneDX: [sbom.json](../reference/sbom.json).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=[sys.executable])
    parser.add_argument("--skip-lowest", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tools = environment(folder / "tools", sys.executable)
        run([tools, "-m", "pip", "install", "--quiet", *TOOLS])
        sdist, wheel = built(tools, folder / "dist")
        found: dict[str, Any] = {
            "command": f"python benchmarks/release.py {shlex.join(sys.argv[1:])}".strip(),
            "version": wheel.name.split("-")[1], "sdist_mb": sdist.stat().st_size / 1e6,
            "wheel_mb": wheel.stat().st_size / 1e6, "wheel": against_tracked(wheel), "installs": [],
        }  # fmt: skip
        for number, python in enumerate(args.pythons):
            (folder / str(number)).mkdir()
            found["installs"].append(installed(wheel, python, folder / str(number)))
            print(found["installs"][-1], file=sys.stderr)
        packages = Path(found["installs"][0]["packages"])
        for row in found["installs"]:
            del row["packages"]
        found["sizes"] = {k: v for k, v in sizes(packages).items() if k not in ("pip", "setuptools")}
        held = [d for d in distributions(path=[str(packages)]) if d.metadata["Name"] in found["sizes"]]
        found["licences"] = sorted(
            ({"name": d.metadata["Name"], "version": d.version, "licence": licence(d)} for d in held),
            key=lambda row: row["name"].lower(),
        )
        run([tools.parent / "cyclonedx-py", "environment", "--pyproject", ROOT / "pyproject.toml",
             "--output-reproducible", "-o", folder / "sbom.json", folder / "0/env/bin/python"])  # fmt: skip
        write_json(ROOT / "docs/reference/sbom.json", without_downloads(folder / "sbom.json"))
        if not args.skip_lowest:
            found["lowest"] = lowest(wheel, tools, folder / "low")
    base = ROOT / "docs/results/release"
    with atomic_path(base.with_suffix(".md")) as temporary:
        temporary.write_text(text(found), encoding="utf-8")
    write_json(base.with_suffix(".json"), {**found, "versions": versions()})
    print(text(found))
    strange = [r for r in found["licences"] if not any(word in r["licence"].lower() for word in ALLOWED)]
    wrong = [f"{r['name']}: licence '{r['licence']}' is not on the list" for r in strange]
    wrong += [f"the wheel lacks {name}" for name in found["wheel"]["missing"]]
    wrong += [f"the wheel holds {name}, which git does not know" for name in found["wheel"]["strange"]]
    wrong += found.get("lowest", {}).get("failed", [])
    print("\n".join(wrong), file=sys.stderr)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
