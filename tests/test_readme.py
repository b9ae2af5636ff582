"""The README's example runs as printed, its settings are valid, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from lungwave.cli import VERBS
from lungwave.config import preset

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """First fenced block of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
    assert found, f"README has no {language} block"
    return found[1]


def test_first_python_block_runs_as_printed(tmp_path: Path) -> None:
    code = block("python")
    assert len(code.splitlines()) <= 14, "the first screen holds a short example"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "% air" in done.stdout


def test_settings_in_toml_are_valid() -> None:
    values = tomllib.loads(block("toml"))
    config = preset(values.pop("preset")).override(values)
    assert len(config.lung.categories) == len(config.lung.weights)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_every_verb_is_listed() -> None:
    listed = {
        word
        for line in re.findall(r"^\| `lungwave ([^`]+)`", TEXT, re.MULTILINE)
        for word in re.split(r"[ |\\]+", line)
    }
    assert {word for verb in VERBS for word in verb.split()} <= listed


def test_the_forward_model_example_runs_as_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs/howto/forward-model.md").read_text(encoding="utf-8")
    code = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert code and len([line for line in code[1].splitlines() if line.strip()]) <= 22
    done = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"spread ([\d.]+), chi2 ([\d.]+)", done.stdout)
    assert said and 0 < float(said[1]) < 0.3 and 0.5 < float(said[2]) < 1.5, done.stdout
