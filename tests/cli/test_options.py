"""Settings from preset, file and flags; plans; words that nobody knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lungwave import __version__ as lungwave_version
from lungwave.cli import VERBS, main
from lungwave.cli_options import dotted_settings, finite, one_line, parse_cases, parse_value, readable
from lungwave.config import Config, preset
from lungwave.types import RESEARCH_USE, UsageError

CONFIGURED = ("phantom", "simulate", "generate")


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> Config:
    """The configuration that ``--print-config`` shows."""
    assert main([*words, "--print-config"]) == 0
    return preset("tiny").override(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*verb.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"lungwave {verb}" in text
    assert RESEARCH_USE in " ".join(text.split())


def test_top_level_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(f"\n  {verb} " in text for verb in VERBS)
        assert RESEARCH_USE in text


@pytest.mark.parametrize("verb", CONFIGURED)
def test_preset_then_file_then_flags(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.toml"
    path.write_text('preset = "micro"\nseed = 4\n[grid]\nsteps = 600\ndepth = 0.012\n', encoding="utf-8")
    flags = ["--config", str(path), "--set", "grid.depth=0.0115", "--receive.snr_db=inf", "--sequence.angles", "-4,4"]
    expected = {"seed": 4, "grid.steps": 600, "grid.depth": 0.0115, "receive.snr_db": "inf", "sequence.angles": [-4, 4]}
    assert printed(capsys, verb, *flags) == preset("micro").override(expected)
    assert printed(capsys, verb, "--preset", "paper", "--seed", "9") == preset("paper").override({"seed": 9})
    assert printed(capsys, verb) == preset("tiny")


def test_both_spellings_of_a_setting_are_one(capsys: pytest.CaptureFixture[str]) -> None:
    ways = (
        ["--grid.spacing", "4e-5"],
        ["--grid.spacing=4e-5"],
        ["--set", "grid.spacing=4e-5"],
        ["--set=grid.spacing=4e-5"],
    )
    assert len({printed(capsys, "phantom", *way).digest() for way in ways}) == 1


def test_printed_settings_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["phantom", "--preset", "paper", "--seed", "3", "--print-config"]) == 0
    path = tmp_path / "run.json"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert printed(capsys, "phantom", "--config", str(path)) == preset("paper").override({"seed": 3})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["generat"], "did you mean 'generate'?"),
        (["dta", "info"], "did you mean 'data'?"),
        (["data"], "info, validate, merge, convert"),
        (["data", "conver"], "did you mean 'data convert'?"),
        (["xyzzy"], "known: demo, phantom"),
        (["generate", "--caes", "0:2"], "did you mean '--cases'?"),
        (["generate", "--workers", "two"], "--workers"),
        (["generate", "--workers"], "--workers"),
        (["generate", "--workers", "0"], "at least 1"),
        (["generate", "--shard-size", "0"], "at least 1"),
        (["generate", "--cases", "4:4"], "holds none"),
        (["generate", "--cases", "0"], "holds none"),
        (["generate", "--cases", "a:b"], "0 <= a < b"),
        (["generate", "--cases=-3:2"], "0 <= a < b"),
        (["phantom", "--grid.spacng", "5e-5"], "did you mean 'grid.spacing'?"),
        (["phantom", "--gird.spacing", "5e-5"], "did you mean 'grid'?"),
        (["phantom", "--grid.spacing"], "has no value"),
        (["phantom", "--grid.spacing", "--json"], "has no value"),
        (["phantom", "--set", "grid.spacing"], "--set grid.spacing=VALUE"),
        (["phantom", "--set", "preset=micro"], "use --preset micro"),
        (["phantom", "--grid.spacing", "50"], "micrometres"),
        (["phantom", "--probe.center_frequency", "3000"], "kHz"),
        (["phantom", "--preset", "micor"], "did you mean 'micro'?"),
        (["phantom", "--preset", "micro", "--config", "run.toml"], "both given"),
        (["phantom", "--config", "none.toml"], "none.toml"),
        (["phantom", "--seed", "-1"], "'seed' is -1"),
        (["simulate", "--case", "-1"], "--case -1"),
        (["demo", "--seed", "-1"], "--seed -1"),
        (["fit", "nowhere"], "nowhere"),
        (["fit", "nowhere", "--snr", "40", "10"], "smaller value first"),
        (["fit", "nowhere", "--calibration", "1.5"], "between 0 and 1"),
        (["fit"], "missing from lungwave fit"),
        (["reconstruct"], "missing from lungwave reconstruct"),
        (["reconstruct", "rf.h5", "--frames", "2:2"], "--frames 2:2"),
        (["report"], "name at least one"),
        (["simulate", "--out", "rf.png"], "ends in .h5"),
        (["simulate", "--grid.time_step", "30e-9"], "time_step"),
        (["simulate", "--grid.spacing", "2e-4", "--grid.time_step", "40e-9"], "grid.spacing"),
        (["simulate", "--grid.width", "5e-3"], "grid.width"),
        (["simulate", "--receive.sampling_frequency", "4e6"], "sampling_frequency"),
        (["simulate", "--receive.echo_start", "1e-4"], "echo_start"),
        (["simulate", "--lung.categories", "healthy,cloudy", "--lung.weights", "1,1"], "cloudy"),
        (["simulate", "--lung.weights", "1,1"], "weights"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_answered_in_one_line(words: list[str], said: str, refused: Callable[..., str]) -> None:
    assert said in refused(*words)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lungwave {lungwave_version}\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-5", 5e-5),
        ("3", 3),
        ("true", True),
        ("inf", float("inf")),
        ("plane", "plane"),
        ("[1, 2]", [1, 2]),
        ("-8,0,8", [-8, 0, 8]),
        ("healthy,fibrosis", ["healthy", "fibrosis"]),
        ('"3"', "3"),
    ],
)
def test_values_are_read_as_toml_first(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_ranges() -> None:
    assert (parse_cases("3"), parse_cases("2:5")) == (range(3), range(2, 5))
    for wrong in ("", ":", "5:", "5:2", "1:2:3", "1.5", "0"):
        with pytest.raises(UsageError, match=r"a:b with"):
            parse_cases(wrong)


def test_only_dotted_words_are_settings() -> None:
    words = ["--cases", "0:3", "--out", "a.b", "--grid.spacing", "-1", "--map.sigma-sharp=2"]
    assert dotted_settings(words) == [
        "--cases",
        "0:3",
        "--out",
        "a.b",
        "--set",
        "grid.spacing=-1",
        "--set",
        "map.sigma_sharp=2",
    ]


def test_results_are_readable_and_valid_json() -> None:
    result = {
        "bytes": 2_500_000,
        "seconds": 90.0,
        "map": {"rows": 3},
        "lungs": [{"case": 1, "air": None}, {"case": 12, "air": 0.5}],
    }
    assert readable(result) == [
        "bytes    2.5 MB",
        "seconds  90.0 s",
        "map",
        "  rows  3",
        "lungs",
        "  case  air",
        "  1     -",
        "  12    0.5",
    ]
    assert (
        json.dumps(finite({"a": [float("nan"), float("inf")], "b": 1}), allow_nan=False)
        == '{"a": [null, "inf"], "b": 1}'
    )


def test_frame_of_an_error_box_is_taken_off() -> None:
    rows = ["╭─ Value error ─────╮", "│ Error parsing --n: │", "│ no number          │", "│ ────────────────── │"]
    box = "\n".join([*rows, "│ For help, see x    │", "╰────────────────────╯", ""])
    assert one_line(box) == "error parsing --n: no number"
    assert one_line("something else") == "something else"
