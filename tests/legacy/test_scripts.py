"""The report's commands as printed, from the scripts."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FEWER = {  # what is added to each command, so that it ends soon
    "process_data_to_1chanelPNG": "",
    "image_train": "--batch_size 1 --max_steps 1",
    "image_sample": "--num_samples 1 --timestep_respacing 2",
    "image_nll": "--num_samples 1 --timestep_respacing 2",
}


def test_the_how_tos_commands_run_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Tensors -> PNG -> training -> samples -> bits per dimension, with the report's flags."""
    text = (ROOT / "docs" / "howto" / "legacy.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(.*?)```", text, re.DOTALL)
    assert block
    values = dict(re.findall(r'^(\w+)="([^"]*)"$', block[1], re.MULTILINE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_LOGDIR", "runs/report")
    monkeypatch.delenv("OPENAI_LOG_FORMAT", raising=False)
    Path("tensors").mkdir()
    torch.save(torch.rand(33, 1025, generator=torch.Generator().manual_seed(0)), "tensors/map_0.pt")
    lines = re.findall(r"^python (\w+)\.py (.*)$", block[1], re.MULTILINE)
    assert [name for name, _ in lines] == list(FEWER)
    for name, rest in lines:
        rest = re.sub(r"\$(\w+)", lambda m: values[m[1]], rest).replace("model010000", "model000000")
        script = str(ROOT / "scripts" / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [script, *shlex.split(f"{rest} {FEWER[name]}")])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        out, err = capfd.readouterr()
        assert ended.value.code == 0, err
        if name == "image_train":
            assert "19,389,441 parameters" in out
            assert "8 x 256, 1 channel: kept whole; --openai_crop True would enlarge 32x" in out
            assert "attention_resolutions 1 means a level 256 / 1 times coarser" in out
    for made in ("samples_1x8x256x1.npz", "samples_1x8x256x1_grid.png", "vb_terms.npz", "progress.csv"):
        assert Path("runs/report", made).is_file()
    shutil.rmtree("runs")  # a third of a gigabyte


def test_a_script_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, str(ROOT / "scripts/super_res_sample.py"), "--modle_path", "x"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "lungwave: error: super_res_sample: unknown word '--modle_path'; did you mean --model_path?\n"


def test_an_endless_run_is_stopped_and_goes_on(
    tmp_path: Path, maps: Path, tiny: tuple[str, ...], legacy: Callable[..., list[str]]
) -> None:
    """No step count, as in the report: SIGTERM saves, and the same command ends as if nothing had happened."""
    words = ["--data_dir", str(maps), *tiny, "--save_interval", "3"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts/image_train.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "OPENAI_LOGDIR": "run", "OPENAI_LOG_FORMAT": "stdout"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "run/model000003.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 143
    assert "training until stopped" in out
    assert "--resume_checkpoint run/model" in out
    assert err == "lungwave: error: terminated; rerun the same command to go on\n"
    assert list(tmp_path.glob("run/.*")) == []
    stopped = max(int(path.stem[5:]) for path in tmp_path.glob("run/model*.pt"))
    end = stopped - stopped % 3 + 5  # two steps after a checkpoint, so that the last one counts its steps
    for log in ("run", "whole"):
        legacy("image_train", *words, "--max_steps", end, log=log)
    ends = [torch.load(tmp_path / log / f"model{end:06d}.pt", weights_only=True) for log in ("run", "whole")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[1])
