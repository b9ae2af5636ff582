"""Configurations: round trips, overrides, and an answer to every wrong word."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lungwave.config import BOUNDS, PRESETS, Config, preset
from lungwave.types import UsageError


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Dotted name -> value of every setting."""
    found: dict[str, Any] = {}
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        nested = dataclasses.is_dataclass(value)
        found |= leaves(value, f"{path}{item.name}.") if nested else {f"{path}{item.name}": value}
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip_is_exact(name: str, tmp_path: Path) -> None:
    config = preset(name).override({"receive.snr_db": math.inf, "seed": 7})
    path = tmp_path / "run.json"
    path.write_text(config.to_json(), encoding="utf-8")
    assert Config.load(path) == config
    assert Config.load(path).digest() == config.digest()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_their_own_rules(name: str) -> None:
    config = preset(name)
    assert config.preset == name
    assert config.override({}) == config
    assert config.grid.steps % config.grid.gradient_stride == 0
    assert config.wall.pleura_depth[1] + config.map.rows * config.map.pixel <= config.grid.depth + 1e-9
    assert math.isclose(max(config.map.bands), 6e-3), "percent aeration is stated over 0-6 mm"


def test_every_setting_has_bounds_and_can_be_overridden_alone() -> None:
    config = preset("tiny")
    for name, value in leaves(config).items():
        if name == "preset":
            continue
        assert config.override({name: value}) == config
        is_number = not isinstance(value, (bool, str)) and not (isinstance(value, tuple) and isinstance(value[0], str))
        assert not is_number or name in BOUNDS or name.split(".")[0] in BOUNDS, f"{name} has no bounds"
    tables = {name.split(".")[0] for name in leaves(config)}
    assert set(BOUNDS) <= set(leaves(config)) | tables, "bounds of settings that do not exist"


def test_override_leaves_the_original_alone() -> None:
    config = preset("tiny")
    changed = config.override({"grid.spacing": 4e-5, "sequence": {"angles": [-4, 4]}})
    assert (changed.grid.spacing, changed.sequence.angles) == (4e-5, (-4.0, 4.0))
    assert config == preset("tiny")
    assert changed.digest() != config.digest()


@given(st.floats(1e-6, 1e-3), st.integers(0, 2**63 - 1), st.lists(st.floats(-60, 60), min_size=1, max_size=5))
def test_toml_says_what_json_says(spacing: float, seed: int, angles: list[float]) -> None:
    config = preset("micro").override({"grid.spacing": spacing, "seed": seed, "sequence.angles": angles})
    text = f"seed = {seed}\n[grid]\nspacing = {spacing!r}\n[sequence]\nangles = {angles!r}\n"
    import tomllib

    assert preset("micro").override(tomllib.loads(text)) == config
    assert preset("tiny").override(json.loads(config.to_json())) == config


def test_file_names_the_preset_that_it_overrides(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "micro"\n[grid]\nsteps = 600\n', encoding="utf-8")
    assert Config.load(path) == preset("micro").override({"grid.steps": 600})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid.spacng": 1e-5}, "did you mean 'grid.spacing'?"),
        ({"gird": {"spacing": 1e-5}}, "did you mean 'grid'?"),
        ({"zzzzzz": 1}, "known: "),
        ({"grid": 3}, "table of settings, got 3"),
        ({"grid": 3, "grid.depth": 0.01}, "table of settings, got 3"),
        ({"grid.spacing": "wide"}, "must be float, got 'wide'"),
        ({"grid.spacing": True}, "must be float, got True"),
        ({"grid.steps": 3.5}, "must be int, got 3.5"),
        ({"grid.attenuation": 1}, "must be bool, got 1"),
        ({"grid.order": 5}, "must be one of 2, 4, 6, 8, got 5"),
        ({"sequence.kind": "plain"}, "must be one of plane, focused, matrix"),
        ({"sequence.angles": 8.0}, "must be a list, got 8.0"),
        ({"wall.fat": [1e-3]}, "needs 2 values, got 1"),
        ({"wall.fat": [2e-3, 1e-3]}, "smaller value first"),
        ({"grid.spacing": 50}, "micrometres"),
        ({"grid.spacing": -5e-5}, "-5e-05"),
        ({"grid.depth": 11.2}, "millimetres"),
        ({"probe.center_frequency": 3.0}, "MHz"),
        ({"probe.center_frequency": 3000.0}, "kHz"),
        ({"grid.time_step": 13.95}, "nanoseconds"),
        ({"receive.snr_db": math.nan}, "nan"),
        ({"lung.duct_fraction": [0.0, 1.5]}, "1.5"),
        ({"lung.rib_probability": -0.1}, "-0.1"),
        ({"seed": -1}, "-1"),
        ({"probe.elements": 0}, "1 to 4096"),
    ],
)
def test_wrong_settings_are_named_with_their_cure(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        preset("tiny").override(changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "grid = [", "not valid TOML"),
        ("a.json", "{", "not valid JSON"),
        ("a.json", "[1, 2]", "give a table of settings"),
        ("a.toml", "preset = 'tiney'", "did you mean 'tiny'?"),
        ("a.toml", "preset = ['tiny']", "preset is ['tiny']; give one of"),
        ("a.toml", "\xff\xfe", "not valid TOML"),
    ],
)
def test_wrong_files_are_named(name: str, content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=r"unknown preset|a\.toml|a\.json") as error:
        Config.load(path)
    assert said in str(error.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml.*give a readable TOML file"):
        Config.load(tmp_path / "none.toml")
