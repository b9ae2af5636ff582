"""House rules that a reader of any file can rely on."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
CODE = sorted(path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PURE = [path for path in SOURCES if {"phantom", "acoustics", "posterior"} & set(path.parts)]
TEXT = {".py", ".md", ".toml", ".txt", ".cff", ".yml", ".html", ".js", ".css", ".json", ""}


def name(path: Path) -> str:
    """Path below the repository's root."""
    return path.relative_to(ROOT).as_posix()


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Every call in a file with the dotted name of what is called."""
    return [
        (ast.unparse(n.func), n)
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Call)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_module_has_one_job_and_says_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= 500, "over 500 lines: split by meaning"
    assert not tree.body or ast.get_docstring(tree), "the first line says what the module is for"
    assert not re.fullmatch(r"(utils?|helpers?|common|misc|manager)\.py", path.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            length = (node.end_lineno or 0) - node.lineno
            assert length <= 80, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imports |= {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    used = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    if {name for name in used if name.startswith("pickle.")} <= {"pickle.UnpicklingError"}:
        imports -= {"pickle"}  # the error that torch.load raises for a file that it refuses
    assert not {"pickle", "dill", "joblib", "shelve", "marshal"} & {i.split(".")[0] for i in imports}
    for called, node in calls(path):
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load":
            assert given.get("weights_only") == "True", "torch.load without weights_only=True runs what the file says"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize("path", PURE, ids=name)
def test_core_is_pure(path: Path) -> None:
    """No printing, no global random state, no device choice where the physics is."""
    for called, node in calls(path):
        assert called != "print", f"line {node.lineno} prints"
        assert not re.match(r"(np|numpy)\.random\.(seed|rand|randn|normal|uniform|choice|shuffle)$", called), (
            f"line {node.lineno}"
        )
        assert not re.match(r"(torch\.(manual_seed|rand|randn)$|random\.)", called) or "generator" in {
            k.arg for k in node.keywords
        }
        assert not called.endswith(".cuda"), f"line {node.lineno} chooses a device"


def tracked() -> list[Path]:
    """Files of the repository, as git knows them or, outside git, as they lie here."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [ROOT / entry for entry in listed.stdout.split("\0") if entry and (ROOT / entry).is_file()]
    roots = [ROOT / folder for folder in ("src", "tests", "docs", "benchmarks", ".ci", ".github")]
    return [p for r in roots for p in r.rglob("*") if p.is_file() and "__pycache__" not in p.parts] + [
        p for p in ROOT.iterdir() if p.is_file()
    ]


def test_no_machine_and_no_secret_in_the_text() -> None:
    """No path of somebody's machine, no address of a package index, no key."""
    slash = "/"
    forbidden = re.compile(
        rf"(^|[\s\"'`(=])({slash}(work|home|root|Users|farm|opt){slash}\w)"
        r"|pyp[i]\.org|pythonhoste[d]|--(extra-)?index-ur[l]"
        r"|BEGIN [A-Z ]*PRIVATE KE[Y]|\b(ghp|hf)_[A-Za-z0-9]{20,}"
    )
    for path in tracked():
        if path.suffix in TEXT and path.name != "LICENSE":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                assert not forbidden.search(line), f"{name(path)}:{number}: {line.strip()[:100]}"


def test_shipped_data_has_its_licence_in_notice() -> None:
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    code = {".py", ".typed", ".html", ".js", ".css"}
    for path in tracked():
        if path.is_relative_to(ROOT / "src") and path.suffix not in code:
            assert f"\n* {name(path)}\n" in notice, f"{name(path)} is not in NOTICE"
    for entry in re.findall(r"^\* (\S+)$", notice, re.MULTILINE):
        assert (ROOT / entry).is_file(), f"NOTICE names {entry}, which does not exist"


def test_every_promise_has_an_owner() -> None:
    """No "to do" without the number of an issue, no test skipped for good."""
    promise = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b(?!.*#\d+)")
    skipped = re.compile(r"mark\.(ski" r"p|xfai" r"l)\b")
    for path in CODE:
        text = path.read_text(encoding="utf-8")
        assert not promise.search(text), f"{name(path)} holds a promise without an issue"
        assert not skipped.search(text), f"{name(path)} skips a test unconditionally"


def test_repository_has_what_a_newcomer_looks_for() -> None:
    wanted_files = """
        README.md LICENSE NOTICE CHANGELOG.md CONTRIBUTING.md CODE_OF_CONDUCT.md SECURITY.md CITATION.cff Makefile
        constraints.txt .ci/run
    """
    for wanted in wanted_files.split():
        assert (ROOT / wanted).stat().st_size > 50, wanted


def test_version_is_one() -> None:
    import lungwave

    assert re.search(
        rf"^## \[?{re.escape(lungwave.__version__)}\b",
        (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert re.search(
        rf"^version: \"?{re.escape(lungwave.__version__)}\"?$",
        (ROOT / "CITATION.cff").read_text(encoding="utf-8"),
        re.MULTILINE,
    )


def test_tested_versions_satisfy_the_lower_bounds() -> None:
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        r.name.lower(): str(r.specifier).removeprefix("==")
        for r in map(Requirement, (x for x in lines if not x.startswith("#")))
    }
    extras = project["optional-dependencies"]
    for line in [*project["dependencies"], *extras["dev"], *extras["docs"]]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pinned[wanted.name.lower()]), line
