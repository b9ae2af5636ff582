"""Flags: the original's names and defaults, its booleans, and what is said about mistakes."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lungwave.cli import main
from lungwave.legacy import out_of_memory
from lungwave.legacy.flags import COMMANDS, parse
from lungwave.types import RESEARCH_USE, LungwaveError, UsageError

ROOT = Path(__file__).resolve().parents[2]
HOWTO = (ROOT / "docs" / "howto" / "legacy.md").read_text(encoding="utf-8")

# As improved-diffusion's scripts print them (commit 1bc7bbb).
MODEL = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "attention_resolutions": "16,8", "dropout": 0.0, "class_cond": False, "use_checkpoint": False,
    "use_scale_shift_norm": True,
}  # fmt: skip
DIFFUSION = {
    "learn_sigma": False, "sigma_small": False, "diffusion_steps": 1000, "noise_schedule": "linear",
    "timestep_respacing": "", "use_kl": False, "predict_xstart": False, "rescale_timesteps": True,
    "rescale_learned_sigmas": True,
}  # fmt: skip
TRAIN = {
    "data_dir": "", "schedule_sampler": "uniform", "lr": 1e-4, "weight_decay": 0.0, "lr_anneal_steps": 0,
    "batch_size": 1, "microbatch": -1, "ema_rate": "0.9999", "log_interval": 10, "save_interval": 10000,
    "resume_checkpoint": "", "use_fp16": False, "fp16_scale_growth": 1e-3,
}  # fmt: skip
SAMPLE = {"clip_denoised": True, "num_samples": 10000, "batch_size": 16, "use_ddim": False, "model_path": ""}
NLL = {"data_dir": "", "clip_denoised": True, "num_samples": 1000, "batch_size": 1, "model_path": ""}
FINE = {k: v for k, v in {**MODEL, **DIFFUSION}.items() if k not in ("image_size", "sigma_small")}
FINE = {**FINE, "large_size": 256, "small_size": 64}
ORIGINAL = {
    "image_train": {**TRAIN, **MODEL, **DIFFUSION},
    "image_sample": {**SAMPLE, **MODEL, **DIFFUSION},
    "image_nll": {**NLL, **MODEL, **DIFFUSION},
    "super_res_train": {**TRAIN, **FINE},
    "super_res_sample": {**SAMPLE, **FINE, "base_samples": ""},
}


@pytest.mark.parametrize("command", ORIGINAL)
def test_flags_and_defaults_are_the_originals(command: str) -> None:
    _, original, own = COMMANDS[command]
    assert {name: default for name, (default, _) in original.items()} == ORIGINAL[command]
    assert not set(own) & set(original)
    values = vars(parse(command, []))
    assert ORIGINAL[command].items() <= values.items()
    assert values["given"] == frozenset()


def test_every_spelling_of_a_boolean() -> None:
    for text, value in {
        "True": True,
        "yes": True,
        "t": True,
        "1": True,
        "False": False,
        "n": False,
        "0": False,
    }.items():
        assert parse("image_train", ["--use_kl", text]).use_kl is value
    flags = parse("image_train", ["--lr=2e-5", "--num_heads_upsample", "-1", "--dropout", "0.3"])
    assert (flags.lr, flags.num_heads_upsample, flags.given) == (2e-5, -1, {"lr", "num_heads_upsample", "dropout"})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--imge_size", "64"], "did you mean --image_size?"),
        (["--use_kl", "perhaps"], "'perhaps' is neither True nor False"),
        (["--batch_size", "many"], "--batch_size"),
        (["--batch_size", "0"], "--batch_size 0: give at least 1"),
        (["--diffusion_steps", "-5"], "--diffusion_steps -5: give at least 1"),
        (["--dropout", "1"], "share below 1"),
        (["--lr", "nan"], "--lr nan"),
        (["--noise_schedule", "sigmoid"], "give linear or cosine"),
        (["--schedule_sampler", "best"], "give uniform or loss-second-moment"),
        (["datasets"], "unknown word 'datasets'"),
    ],
)
def test_a_mistake_is_named(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        parse("image_train", words)


def test_unknown_commands_are_refused(refused: Callable[..., str]) -> None:
    assert "did you mean image_train?" in refused("image_trian")
    assert "known: image_train" in refused("xyzzy")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_flag_with_its_default(command: str) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["legacy", command, "--help"]) == 0
    text = " ".join(out.getvalue().split())
    _, original, own = COMMANDS[command]
    for flag, (default, _) in {**original, **own}.items():
        shown = re.search(rf"--{flag} VALUE .*?\(default (.*?)\)", text)
        assert shown, flag
        assert shown[1] == (str(default) or "''")
    assert RESEARCH_USE in text


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys, lungwave.cli as cli\n"
        "assert cli.main(['legacy', 'image_train', '--help']) == cli.main(['legacy']) == 0\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, check=False).returncode == 0


def howto_commands() -> list[tuple[str, list[str]]]:
    """(script, words) of every command in the how-to's first block, variables filled in."""
    block = re.search(r"```bash\n(.*?)```", HOWTO, re.DOTALL)
    assert block
    values = dict(re.findall(r'^(\w+)="([^"]*)"$', block[1], re.MULTILINE))
    lines = re.findall(r"^python (\w+)\.py (.*)$", block[1], re.MULTILINE)
    return [(name, shlex.split(re.sub(r"\$(\w+)", lambda m: values[m[1]], rest))) for name, rest in lines]


def test_commands_of_the_report_are_understood() -> None:
    commands = howto_commands()
    assert [name for name, _ in commands] == [
        "process_data_to_1chanelPNG", "image_train", "image_sample", "image_nll",
    ]  # fmt: skip
    for name, words in commands:
        parse(name, words)
        assert (ROOT / "scripts" / f"{name}.py").is_file()
    flags = parse(*commands[1])
    assert (flags.image_size, flags.num_channels, flags.diffusion_steps, flags.lr) == (256, 64, 7000, 2e-5)
    assert not flags.rescale_timesteps
    for name in COMMANDS:
        assert (ROOT / "scripts" / f"{name}.py").read_text(encoding="utf-8").count(f'"{name}"') == 1


@pytest.mark.parametrize(
    ("command", "error", "said"),
    [
        ("image_train", RuntimeError("CUDA out of memory. Tried"), "--microbatch 32 or --use_checkpoint True"),
        ("image_sample", RuntimeError("DefaultCPUAllocator: can't allocate memory"), "try --batch_size 32"),
        ("image_nll", MemoryError(), "try --batch_size 32"),
    ],
)
def test_the_end_of_memory_is_no_defect(command: str, error: Exception, said: str) -> None:
    flags = parse(command, ["--batch_size", "128"])
    with pytest.raises(LungwaveError, match=said), out_of_memory(flags):
        raise error
    with pytest.raises(RuntimeError, match="shape"), out_of_memory(flags):
        raise RuntimeError("shape")
