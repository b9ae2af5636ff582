"""Training: the original's files and log keys, exact resume, and what is done to the images."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

Legacy = Callable[..., list[str]]
Refused = Callable[..., str]


def state(path: Path | str) -> dict[str, Any]:
    """A checkpoint, read as any program would."""
    return torch.load(path, weights_only=True)


def rows(folder: str) -> list[dict[str, str]]:
    """The log of a run."""
    with (Path(folder) / "progress.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def equal(one: Any, other: Any) -> bool:
    """Same tensors, bit for bit, and same numbers, all the way down."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def test_files_and_log_are_the_originals(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    words = (*tiny, "--learn_sigma", "True", "--batch_size", 2, "--max_steps", 4, "--save_interval", 2)
    said = legacy("image_train", "--data_dir", maps, *words, "--ema_rate", "0.5,0.9999", "--log_interval", 1)
    labels = ("000000", "000002", "000004")  # the last one counts steps, as in the original
    names = {f"{kind}{label}.pt" for kind in ("model", "opt", "ema_0.5_", "ema_0.9999_") for label in labels}
    assert {path.name for path in Path("run").glob("*.pt")} == names
    assert all(value.dtype == torch.float32 for value in state("run/model000002.pt").values())
    table = rows("run")
    assert [int(row["step"]) for row in table] == [0, 1, 2, 3]
    assert [int(row["samples"]) for row in table] == [2, 4, 6, 8]
    quarters = {f"{key}_q{part}" for key in ("loss", "mse", "vb") for part in range(4)}
    assert {"step", "samples", "loss", "mse", "vb", "grad_norm"} <= set(table[0]) <= {
        "step", "samples", "loss", "mse", "vb", "grad_norm", *quarters,
    }  # fmt: skip
    for row in table:
        assert float(row["loss"]) == pytest.approx(float(row["mse"]) + float(row["vb"]), rel=1e-5)
    assert any(line.startswith("| grad_norm") for line in said)
    assert any("8 x 256, 1 channel: kept whole" in line and "enlarge 4x" in line for line in said)


def test_averages_follow_their_rate(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    legacy("image_train", "--data_dir", maps, *tiny, "--max_steps", 2, "--save_interval", 1, "--ema_rate", "0.75")
    before, after = state("run/ema_0.75_000000.pt"), state("run/ema_0.75_000001.pt")
    for name, value in state("run/model000001.pt").items():
        torch.testing.assert_close(after[name], 0.75 * before[name] + 0.25 * value)


def test_a_run_in_pieces_is_the_whole_run(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    """By rerunning the command, after losing the newest steps, and from a named checkpoint: same weights, same log."""
    words = ("image_train", "--data_dir", maps, *tiny, "--dropout", "0.2", "--class_cond", "True", "--ema_rate", "0.9")
    words = (*words, "--schedule_sampler", "loss-second-moment", "--batch_size", 4, "--save_interval", 3)
    words = (*words, "--log_interval", 1, "--lr_anneal_steps", 8)
    legacy(*words, "--max_steps", 6, log="whole")
    legacy(*words, "--max_steps", 2, log="pieces")
    legacy(*words, "--max_steps", 5, log="pieces")
    Path("pieces/model000005.pt").unlink()  # as if killed before it was written
    said = legacy(*words, "--max_steps", 6, log="pieces")
    assert any("model000003.pt" in line for line in said)
    legacy(*words, "--max_steps", 6, "--resume_checkpoint", "whole/model000003.pt", log="named")
    for folder in ("pieces", "named"):
        for name in ("model000006.pt", "ema_0.9_000006.pt", "opt000006.pt"):
            assert equal(state(f"whole/{name}"), state(f"{folder}/{name}")), name
    assert rows("pieces") == rows("whole")
    assert [row["loss"] for row in rows("named")] == [row["loss"] for row in rows("whole")[4:]]
    assert any("nothing to do: 6 steps are made" in line for line in legacy(*words, "--max_steps", 6, log="whole"))


def test_microbatches_change_nothing(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    words = ("image_train", "--data_dir", maps, *tiny, "--batch_size", 5, "--max_steps", 2, "--log_interval", 1)
    legacy(*words, log="whole")
    legacy(*words, "--microbatch", 2, log="parts")
    for whole, part in zip(rows("whole"), rows("parts"), strict=True):
        assert float(part["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-5)
        assert float(part["grad_norm"]) == pytest.approx(float(whole["grad_norm"]), rel=1e-3)


def test_the_learning_rate_falls_to_nothing_and_ends_the_run(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    legacy("image_train", "--data_dir", maps, *tiny, "--lr", "0.01", "--lr_anneal_steps", 4, "--save_interval", 1)
    rates = [state(f"run/opt{label:06d}.pt")["param_groups"][0]["lr"] for label in range(4)]
    np.testing.assert_allclose(rates, [0.01, 0.0075, 0.005, 0.0025])
    assert not Path("run/model000004.pt").exists()


def test_environment_of_the_original(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    words = ("image_train", "--data_dir", maps, *tiny, "--save_interval", 2)
    environment = {"DIFFUSION_TRAINING_TEST": "1", "DIFFUSION_BLOB_LOGDIR": "blobs", "OPENAI_LOG_FORMAT": "json"}
    assert legacy(*words, **environment) == []
    assert {path.name for path in Path("run").iterdir()} == {"progress.json"}
    assert sorted(path.name for path in Path("blobs").glob("model*")) == ["model000000.pt", "model000002.pt"]
    assert legacy(*words, **environment) == []  # goes on, and ends after one more checkpoint
    assert Path("blobs/model000004.pt").exists()


@pytest.mark.parametrize(("flag", "count"), [("False", 3), ("True", 1000)])
def test_classes_are_those_of_the_names(
    legacy: Legacy, maps: Path, tiny: tuple[str, ...], flag: str, count: int
) -> None:
    words = ("--class_cond", "True", "--openai_classes", flag, "--max_steps", 1)
    legacy("image_train", "--data_dir", maps, *tiny, *words)
    assert json.loads(Path("run/classes.json").read_text()) == {"edema": 0, "fibrosis": 1, "healthy": 2}
    assert len(state("run/model000000.pt")["label_emb.weight"]) == count


def test_the_originals_distortion_behind_its_flags(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    words = ("image_train", "--data_dir", maps, *tiny, "--max_steps", 1)
    said = legacy(*words, "--openai_crop", "True", "--openai_rgb", "True", log="both")
    assert any("32 x 32, 3 channels" in line and "cut out" in line for line in said)
    assert json.loads(Path("both/lungwave.json").read_text())["strides"] == ""
    assert state("both/model000000.pt")["input_blocks.0.0.weight"].shape[1] == 3
    legacy(*words, "--openai_crop", "True", log="crop")
    assert state("crop/model000000.pt")["input_blocks.0.0.weight"].shape[1] == 1
    legacy(*words, "--openai_rgb", "True", log="rgb")
    about = json.loads(Path("rgb/lungwave.json").read_text())
    assert (about["size"], about["channels"]) == ([8, 256], 3)


def test_square_colour_images_are_scaled_as_asked(legacy: Legacy, tmp_path: Path, tiny: tuple[str, ...]) -> None:
    rng = np.random.default_rng(1)
    (tmp_path / "photos").mkdir()
    for number in range(2):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3)).astype(np.uint8)).save(tmp_path / f"photos/{number}.png")
    said = legacy("image_train", "--data_dir", "photos", *tiny, "--max_steps", 1)
    assert any("32 x 32, 3 channels: scaled from 48 x 48" in line for line in said)


def test_super_resolution_sees_the_coarse_image(legacy: Legacy, refused: Refused, maps: Path) -> None:
    words = ("super_res_train", "--data_dir", maps, "--large_size", 64, "--num_channels", 16, "--num_res_blocks", 1)
    words = (*words, "--diffusion_steps", 24, "--attention_resolutions", "16", "--max_steps", 1)
    legacy(*words, "--small_size", 16)
    assert state("run/model000000.pt")["input_blocks.0.0.weight"].shape[1] == 2
    assert "images of 8 x 256 cannot be made coarser by 64 / 4" in refused(*words, "--small_size", 4, log="other")


def test_weights_without_a_number_start_a_new_run(legacy: Legacy, maps: Path, tiny: tuple[str, ...]) -> None:
    words = ("image_train", "--data_dir", maps, *tiny, "--max_steps", 1)
    legacy(*words, log="first")
    shutil.copy("first/model000000.pt", "pretrained.pt")
    said = legacy(*words, "--lr", "1e-12", "--resume_checkpoint", "pretrained.pt")
    assert any("steps count from 0" in line for line in said)
    for name, value in state("first/model000000.pt").items():
        torch.testing.assert_close(state("run/model000000.pt")[name], value)


def test_what_cannot_be_trained_is_refused(
    legacy: Legacy, refused: Refused, maps: Path, tmp_path: Path, tiny: tuple[str, ...]
) -> None:
    train = ("image_train", "--data_dir", maps, *tiny, "--max_steps", 1)
    assert "--data_dir is missing" in refused("image_train")
    assert "use 6 or less" in refused(*train, "--batch_size", 7)
    assert "use 32, 64, 128, 256, 512" in refused(*train, "--image_size", 48)
    assert "--ema_rate 'often'" in refused(*train, "--ema_rate", "often")
    assert "cannot be split into 3 attention heads" in refused(*train, "--num_heads", 3)
    assert "21 steps or more" in refused(*train, "--diffusion_steps", 5)
    assert "OPENAI_LOG_FORMAT" in _with_format(refused, train)
    mixed = tmp_path / "mixed"
    shutil.copytree(maps, mixed)
    Image.fromarray(np.zeros((8, 128), np.uint8)).save(mixed / "small.png")
    said = refused(*train, "--data_dir", mixed)
    assert "2 sizes" in said
    assert "--openai_crop True" in said
    (mixed / "small.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert "small.png" in refused(*train, "--data_dir", mixed)
    (mixed / "small.png").unlink()
    shutil.copy(mixed / "edema_1.png", mixed / "nameless.png")
    assert "has no '_' after a class name" in refused(*train, "--data_dir", mixed, "--class_cond", "True")


def _with_format(refused: Refused, words: tuple[object, ...]) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_LOG_FORMAT", "xml")
        return refused(*words)


def test_what_cannot_be_gone_on_with_is_refused(
    legacy: Legacy, refused: Refused, maps: Path, tiny: tuple[str, ...]
) -> None:
    train = ("image_train", "--data_dir", maps, *tiny, "--ema_rate", "0.9", "--max_steps")
    legacy(*train, 1)
    assert "holds another run (lr: 0.0001 -> 0.01)" in refused(*train, 2, "--lr", "0.01")
    for name in ("ema_0.9_000000.pt", "opt000000.pt"):
        said = refused(*train, 2, "--resume_checkpoint", f"run/{name}")
        assert "give run/model000000.pt" in said
    named = (*train, 2, "--resume_checkpoint", "run/model000000.pt")
    assert "num_channels=32 but the file has 8" in refused(*named, "--num_channels", 32)
    assert "trained on classes none" in refused(*named, "--class_cond", "True")
    assert "run/model000009.pt: No such file" in refused(*train, 2, "--resume_checkpoint", "run/model000009.pt")
    Path("run/lungwave.json").write_text("{")
    assert "lungwave.json: is damaged" in refused(*train, 2)
    Path("run/lungwave.json").unlink()
    assert "it has no lungwave.json" in refused(*train, 2)
    Path("run/opt000000.pt").write_bytes(b"no zip")
    assert "opt000000.pt: not a readable optimiser state" in refused(*named, log="x")
    Path("run/opt000000.pt").unlink()
    said = legacy(*named, log="new")
    assert any("no optimiser state beside it" in line for line in said)


def test_a_loss_that_is_not_finite_ends_the_run(
    tmp_path: Path,
    maps: Path,
    tiny: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from lungwave.cli import main

    words = ("image_train", "--data_dir", maps, *tiny, "--save_interval", 1, "--lr", "1e30", "--max_steps", 9)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_LOGDIR", "nan")
    assert main(["legacy", *map(str, words)]) == 1
    assert "is not finite in step" in capfd.readouterr().err
    assert all(v.isfinite().all() for v in state(max(Path("nan").glob("model*.pt"))).values())
