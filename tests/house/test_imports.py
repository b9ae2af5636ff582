"""Which module may import which, what an import costs, and what it may touch."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "lungwave"
MODULES = {
    ".".join(("lungwave", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}

# Top to bottom: a module imports its own layer and the ones above, never below.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("lungwave.types",),
    ("lungwave.config",),
    ("lungwave.repro", "lungwave.progress", "lungwave.shipped", "lungwave.page", "lungwave.pool"),
    ("lungwave.phantom",),
    ("lungwave.acoustics",),
    ("lungwave.data",),
    ("lungwave.models",),
    ("lungwave.training", "lungwave.sample", "lungwave.likelihood"),
    ("lungwave.posterior",),
    ("lungwave.evaluate",),
    ("lungwave.figures", "lungwave.figures_evaluation", "lungwave.overview", "lungwave.lungs"),
    ("lungwave.prior",),
    ("lungwave.report",),
    (
        "lungwave.runs",
        "lungwave.batch",
        "lungwave.led",
        "lungwave.comparison",
        "lungwave.generated",
        "lungwave.calibrated",
        "lungwave.model_card",
        "lungwave.doctor",
    ),
    ("lungwave.legacy",),
    ("lungwave.viewer",),
    (
        "lungwave.cli",
        "lungwave.cli_options",
        "lungwave.cli_verbs",
        "lungwave.cli_data",
        "lungwave.cli_learn",
        "lungwave.cli_models",
        "lungwave.cli_evaluate",
        "lungwave.cli_completion",
        "lungwave.cli_view",
        "lungwave.__main__",
    ),
)
# Each engine is imported in exactly one file.
ENGINES = {
    "deepwave": "lungwave.acoustics.wave",
    "tyro": "lungwave.cli_options",
    "jinja2": "lungwave.report",
    "markdown_it": "lungwave.page",
    "torch.distributed": "lungwave.training.ranks",
    "starlette": "lungwave.viewer.app",
    "uvicorn": "lungwave.viewer.serve",
    "distributed": "lungwave.pool.cluster",
    "dask": "lungwave.pool.cluster",
}
TORCH_FREE = (
    "lungwave.types",
    "lungwave.config",
    "lungwave.repro",
    "lungwave.progress",
    "lungwave.phantom",
    "lungwave.data.schema",
    "lungwave.figures",
    "lungwave.lungs",
)


def layer(module: str) -> int:
    """Number of the layer that a module belongs to."""
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} belongs to no layer; add it to LAYERS")


def imported(path: Path, *, top_only: bool = False) -> set[str]:
    """Names of the modules that a file imports; ``if TYPE_CHECKING`` blocks import nothing."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import; write the full name"
                name = child.module or ""
                found.update(f"{name}.{a.name}" if f"{name}.{a.name}" in MODULES else name for a in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            elif not (top_only and isinstance(child, (ast.FunctionDef, ast.ClassDef))):
                visit(child)

    visit(tree)
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name != "lungwave"])
def test_imports_point_one_way(module: str) -> None:
    below = {
        name
        for name in imported(MODULES[module])
        if name.startswith("lungwave.") and name in MODULES and layer(name) > layer(module)
    }
    assert not below, f"{module} imports from a lower layer: {sorted(below)}"


def test_the_import_graph_has_no_circle() -> None:
    graph = {m: {n for n in imported(p, top_only=True) if n in MODULES and n != m} for m, p in MODULES.items()}
    while leaves := [module for module, parents in graph.items() if not parents & graph.keys()]:
        for module in leaves:
            del graph[module]
    assert not graph, f"modules import each other: {sorted(graph)}"


@pytest.mark.parametrize("engine", ENGINES)
def test_each_engine_is_imported_in_one_file(engine: str) -> None:
    users = [m for m, path in MODULES.items() if any(f"{n}.".startswith(f"{engine}.") for n in imported(path))]
    assert users == [ENGINES[engine]]


def test_everything_imported_is_declared() -> None:
    """A library that src imports stands in [project.dependencies], not only on this machine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["cluster"], "distributed"]  # Dask brings it
    declared = {re.split(r"[<>=!~\[ ]", line)[0].lower() for line in lines}
    providers = {name: {d.lower() for d in found} for name, found in metadata.packages_distributions().items()}
    for module, path in MODULES.items():
        for name in (
            {name.split(".")[0] for name in imported(path)} - {"lungwave", "__future__"} - sys.stdlib_module_names
        ):
            assert providers.get(name, {name}) & declared, (
                f"{module} imports {name}, which pyproject.toml does not declare"
            )


PROBE = """
import json, resource, sys
touched = []
sys.addaudithook(lambda event, _: touched.append(event) if event.startswith("socket.") else None)
{statement}
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({{"seconds": usage.ru_utime + usage.ru_stime, "sockets": touched, "modules": sorted(sys.modules)}}))
"""


def probe(statement: str, runs: int = 3) -> dict:
    """CPU seconds, socket calls and loaded modules of a fresh interpreter that runs ``statement``; the cheapest run."""
    found = []
    for _ in range(runs):
        command = [sys.executable, "-c", PROBE.format(statement=statement)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return min(found, key=lambda run: run["seconds"])


def test_import_is_cheap_and_silent() -> None:
    cost = probe("import lungwave")
    assert cost["seconds"] < 0.3, "import lungwave must stay below 0.3 CPU-seconds"
    assert cost["sockets"] == []
    assert not {"torch", "scipy", "matplotlib", "h5py"} & set(cost["modules"])


def test_help_is_instant() -> None:
    quiet = (
        "import io, contextlib, lungwave.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): assert lungwave.cli.main({!r}) == 0"
    )
    assert probe(quiet.format(["--help"]))["seconds"] < 0.5
    verb = probe(quiet.format(["generate", "--help"]))
    assert verb["seconds"] < 1.0
    assert "torch" not in verb["modules"]


def test_drawing_lungs_needs_no_torch() -> None:
    modules = [module for module in MODULES if module.startswith(TORCH_FREE)]
    assert "torch" not in probe(f"import {', '.join(modules)}", runs=1)["modules"]


def test_reconstruction_does_not_wait_for_the_propagator() -> None:
    assert "deepwave" not in probe("import lungwave.runs, lungwave.batch, lungwave.led", runs=1)["modules"]


def test_public_names_resolve() -> None:
    import lungwave

    assert set(lungwave.__all__) <= set(dir(lungwave))
    for name in lungwave.__all__:
        assert getattr(lungwave, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lungwave.nothing
