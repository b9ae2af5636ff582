"""``lungwave train`` and ``lungwave sample``: from maps to a model to maps."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lungwave.data.maps import to_bytes
from training.tiny import maps

SMALL = "--channels 8 --mult 1 2 --blocks 1 --heads 2 --batch 8 --warmup 16 --lr 1e-3 --snapshot-images 16 --samples 2"


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run words in an empty folder that holds maps.npz; return what it says as JSON, or its error."""
    from lungwave.cli import main

    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "maps.npz", maps=maps(40).maps[:, 0], labels=np.array(["healthy", "fibrosis"] * 20))

    def run(words: str, code: int = 0) -> dict:
        returned = main([*shlex.split(words), "--json"])
        out, err = capfd.readouterr()
        assert returned == code, err
        return json.loads(out) if code == 0 else {"error": err.splitlines()[-1]}

    return run


def test_train_resume_and_sample(command: Callable[..., dict], tmp_path: Path) -> None:
    planned = command(f"train maps.npz --out prior {SMALL} --images 48 --dry-run")
    assert (planned["maps"], planned["held_out"], planned["images"]) == (36, 4, 48)
    assert planned["seconds"] > 0
    assert planned["parameters"] > 1000
    assert not (tmp_path / "prior").exists()
    command(f"train maps.npz --out prior {SMALL} --images 24 --quiet")
    made = command(f"train maps.npz --out prior {SMALL} --images 48 --quiet")
    assert made["images"] == 48
    assert 0 < made["held_out_loss"] < 2
    again = command(f"train maps.npz --out prior {SMALL} --images 48 --quiet")
    assert again["already_finished"]
    refused = command(f"train maps.npz --out prior {SMALL} --dropout 0.3", code=2)["error"]
    assert "network.dropout: 0.1 -> 0.3" in refused
    about = json.loads((tmp_path / "prior/model/config.json").read_text())
    assert about["trained"]["images"] == 48
    assert set(about["parents"]) == {"maps.npz"}
    drawn = command("sample prior --count 3 --steps 3 --out drawn --quiet")
    assert drawn["size"] == [1, 4, 8]
    with np.load(tmp_path / "drawn/samples.npz") as archive:
        kept = archive["maps"]
    assert kept.shape == (3, 1, 4, 8)
    assert kept.min() >= 0
    assert kept.max() <= 1
    for number, values in enumerate(kept):
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / f"drawn/{number:06d}.png")), to_bytes(values[0]))
    assert (tmp_path / "drawn/grid.png").stat().st_size > 1000
    command("sample prior/model --count 1 --first 2 --steps 3 --out third --quiet")
    with np.load(tmp_path / "third/samples.npz") as archive:
        np.testing.assert_allclose(archive["maps"][0], kept[2], atol=1e-5)


def test_the_command_in_the_card_makes_the_model_again(command: Callable[..., dict], tmp_path: Path) -> None:
    command(f"train maps.npz --out first {SMALL} --images 24 --mult 1 1.5 --no-flip --classes --seed 3 --quiet")
    card = (tmp_path / "first/model/README.md").read_text()
    said = re.search(r"```\n(lungwave train .*)\n```", card)
    assert said is not None
    command(f"{said[1].removeprefix('lungwave ')} --out second --quiet")
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]
    command("sample second --label fibrosis --count 2 --steps 2 --quiet")
    assert "class rib is unknown" in command("sample second --label rib --count 2 --quiet", code=2)["error"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train nowhere.npz", "nowhere.npz: does not exist"),
        ("train maps.npz --batch 37", "batch 37 is larger than the set of 36 images"),
        ("train maps.npz --held-out 1", "held-out share 1 must be"),
        ("train maps.npz --mult 1 2 2 --attention 3", "attention at level 3"),
        ("train maps.npz --sigma-rel 0.4", "sigma_rel 0.4 of a weight average must lie between"),
        ("train maps.npz --check-images 0", "--check-images 0 must be at least 1"),
        ("train maps.npz --augment 2", "augmentation probability 2 must lie"),
        ("train maps.npz --device cuda", "torch finds none; use --device cpu"),
        ("sample nowhere", "nowhere: no such folder"),
        ("sample . --count 0", "--count 0 must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    command: Callable[..., dict], tmp_path: Path, words: str, said: str
) -> None:
    short = " --images 8" if words.startswith("train") else ""
    assert said in command(words + short, code=2)["error"]
    assert [path.name for path in tmp_path.iterdir()] == ["maps.npz"]
