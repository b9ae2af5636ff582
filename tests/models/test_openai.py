"""Laws of OpenAI's files: a file gives back the network it holds, or one sentence that says why it cannot."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lungwave.models.checkpoint import empty_network
from lungwave.models.openai import average_note, infer, load_openai, openai_denoiser, read_state
from lungwave.models.openai_flags import contradictions, openai_flags, parse_flags
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.types import UsageError

SMALL = UNetConfig(in_channels=3, out_channels=3, channels=16, channel_mult=(1, 2), blocks=1, heads=2)
# Plans of both repositories, beside the image size that their flags need.
PLANS = {
    "plain": (SMALL, 16),
    "attention": (replace(SMALL, channel_mult=(1, 2, 2), blocks=2, attention=(0, 2), heads_upsample=4), 16),
    "one level": (replace(SMALL, channel_mult=(1,)), 16),
    "one channel": (replace(SMALL, in_channels=1, out_channels=1, scale_shift=False, dropout=0.2), 16),
    "learned variance": (replace(SMALL, out_channels=6, classes=4), 16),
    "super-resolution": (replace(SMALL, image_channels=3), 16),
    "super-resolution, learned variance": (replace(SMALL, image_channels=3, out_channels=6, attention=(1,)), 16),
    "guided": (
        replace(
            SMALL,
            channel_mult=(1, 2, 3),
            attention=(1, 2),
            resblock_updown=True,
            new_attention_order=True,
            head_channels=8,
            out_channels=6,
            classes=10,
        ),
        32,
    ),
    "guided 512": (replace(SMALL, channels=32, channel_mult=(0.5, 1, 1), blocks=2, attention=(2,)), 64),
    "uneven widths": (replace(SMALL, channels=49, channel_mult=(1, 50 / 49), heads=5), 16),
    "strips": (replace(SMALL, channel_mult=(1, 1, 2), strides=((1, 2), (2, 2)), gradient_checkpointing=True), 16),
}


def drawn(config: UNetConfig, seed: int = 0) -> UNet:
    """A network without zero layers, so that every tensor counts."""
    net = UNet(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in net.parameters():
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            value.copy_(torch.randn(value.shape, generator=generator) * spread + (value.ndim == 1))
    return net.eval()


def save(path: Path, value: Any, zipped: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def call(net: UNet) -> Tensor:
    """Output on one fixed input."""
    config, generator = net.config, torch.Generator().manual_seed(5)
    x = torch.randn(2, config.in_channels, 8, 16, generator=generator)
    image = torch.randn(2, config.image_channels, 8, 16, generator=generator) if config.image_channels else None
    label = torch.tensor([0, config.classes - 1]) if config.classes else None
    with torch.no_grad():
        return net(x, torch.tensor([3.0, 700.5]), Condition(label=label, image=image))


# ---- the network ----


@pytest.mark.parametrize(
    ("size", "channels", "blocks", "resolutions", "mult", "tensors", "rgb", "gray"),
    [
        (256, 64, 1, "1", (1, 1, 2, 2, 4, 4), 264, 19_391_747, 19_389_441),
        (256, 96, 2, "1", (1, 1, 2, 2, 4, 4), 396, 63_885_123, 63_881_665),
        (256, 96, 2, "16,8", (1, 1, 2, 2, 4, 4), 456, 69_806_403, 69_802_945),
        (64, 128, 2, "16,8", (1, 2, 3, 4), 338, 92_025_731, 92_021_121),
        (32, 128, 3, "16,8", (1, 2, 2, 2), 446, 52_542_979, 52_538_369),
    ],
)
def test_counts_of_the_original_networks(
    size: int,
    channels: int,
    blocks: int,
    resolutions: str,
    mult: tuple[int, ...],
    tensors: int,
    rgb: int,
    gray: int,
) -> None:
    """Counted once in improved-diffusion's own networks; flags and the names alone give the plan back."""
    attention = tuple(n for n in range(len(mult)) if str(size // 2**n) in resolutions.split(","))
    for count, parameters in ((3, rgb), (1, gray)):
        config = UNetConfig(count, count, channels, mult, blocks, attention)
        net = empty_network(config)
        assert len(net.state_dict()) == tensors
        assert sum(value.numel() for value in net.parameters()) == parameters
        found = infer(net.state_dict())
        assert (found.channels, found.channel_mult, found.blocks, found.attention) == (
            channels,
            mult,
            blocks,
            attention,
        )
        flags = {"image_size": size, "num_channels": channels, "num_res_blocks": blocks}
        assert contradictions(found, parse_flags({**flags, "attention_resolutions": resolutions})) == []


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_golden_outputs_of_the_original_code(shared_data: Callable[[str], Path], case: str) -> None:
    folder = shared_data("diffusion-reference")
    golden = np.load(folder / "model000000_golden.npz")
    flags = json.loads((folder / "model000000.json").read_text())["flags"]
    net, config, assumed = load_openai(folder / "model000000.pt", flags)
    assert (config.channel_mult, config.attention, config.heads) == ((1, 2, 2, 2), (1,), 4)
    assert set(assumed) == {"num_head_channels", "use_new_attention_order", "strides"}
    x, time = torch.from_numpy(golden[f"{case}_x"]), torch.from_numpy(golden[f"{case}_t_fed"])
    with torch.no_grad():
        assert (net(x, time) - torch.from_numpy(golden[f"{case}_out"])).abs().max() < 1e-5


def test_golden_clean_image_through_the_denoiser(shared_data: Callable[[str], Path]) -> None:
    """D(x, sigma) at the noise level of a step is the original's predicted clean image."""
    folder = shared_data("diffusion-reference")
    golden = np.load(folder / "model000000_golden.npz")
    denoiser, _ = openai_denoiser(folder / "model000000.pt", {"rescale_timesteps": False})
    sigma = denoiser.noising.sigma(torch.from_numpy(golden["case0_t"]).double())
    x = torch.from_numpy(golden["case0_x"]).double() * (1 + sigma**2).sqrt()[:, None, None, None]
    with torch.no_grad():
        clean = denoiser(x, sigma).clamp(-1, 1)
    assert (clean - torch.from_numpy(golden["case0_pmv_pred_xstart"])).abs().max() < 1e-4


@pytest.mark.parametrize("plan", PLANS)
def test_file_and_its_flags_give_back_the_network(tmp_path: Path, plan: str) -> None:
    config, size = PLANS[plan]
    net = drawn(config)
    path = save(tmp_path / "model000010.pt", net.state_dict())
    loaded, found, assumed = load_openai(path, openai_flags(config, size))
    assert found == config == loaded.config and not loaded.training
    assert torch.equal(call(loaded), call(net))
    again, same, nothing = load_openai(path, {**openai_flags(config, size), **assumed})
    assert same == config and not {name for name in nothing if assumed[name] is not None}
    assert torch.equal(call(again), call(net))


def test_what_no_file_says_is_reported_with_its_value(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", drawn(replace(SMALL, heads=4)).state_dict())
    _, config, assumed = load_openai(path)
    assert config.heads == assumed["num_heads"] == 4
    assert assumed["rescale_timesteps"] is True and assumed["image_size"] is None
    _, config, assumed = load_openai(path, {"num_heads": "2", "dropout": "0.1"})
    assert (config.heads, config.dropout) == (2, 0.1) and not {"num_heads", "dropout"} & set(assumed)
    config, size = PLANS["guided"]
    path = save(tmp_path / "guided.pt", drawn(config).state_dict())
    assert load_openai(path)[2]["rescale_timesteps"] is False  # guided-diffusion's default
    assert "sigma_small" not in load_openai(path)[2]  # the variance is learned
    denoiser, _ = openai_denoiser(path, {**openai_flags(config, size), "diffusion_steps": 4000, "predict_xstart": True})
    assert (denoiser.noising.steps, denoiser.noising.rescale_timesteps, denoiser.predicts) == (4000, False, "x0")


# ---- files ----


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "ema.", "model._orig_mod."])
def test_both_formats_and_known_prefixes(tmp_path: Path, zipped: bool, prefix: str) -> None:
    state = drawn(SMALL).state_dict()
    stored = {f"{prefix}{name}": nn.Parameter(value) for name, value in state.items()}
    found = read_state(save(tmp_path / "model.pt", stored, zipped))
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_half_precision_becomes_single(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in drawn(SMALL).state_dict().items()}
    found = read_state(save(tmp_path / "model.pt", {"state_dict": state}))
    assert all(
        value.dtype == torch.float32 and torch.equal(value, state[name].float()) for name, value in found.items()
    )


class Payload:
    """What an attacker, or a careless program, puts into a checkpoint."""

    def __reduce__(self) -> Any:
        return (print, ("this must never run",))


def contents(kind: str) -> Any:
    state = drawn(SMALL).state_dict()
    match kind:
        case "empty":
            return {}
        case "tensor":
            return torch.zeros(3)
        case "payload":
            return {"weights": Payload()}
        case "settings":
            return {"epoch": 3, "model": state}
        case "edm":
            return {"model.map_layer0.weight": torch.zeros(2), "model.enc.64x64_conv.weight": torch.zeros(2)}
        case "classifier":
            return {name: value for name, value in state.items() if not name.startswith("output_blocks")}
        case "other":
            return {"layer.weight": torch.zeros(3)}
        case "two":
            return {f"{prefix}.{name}": value for prefix in ("model", "ema") for name, value in state.items()}
        case "nan":
            return {**state, "out.2.bias": torch.full((3,), math.nan)}
        case "cut":
            return {name: value for name, value in state.items() if name != "middle_block.1.norm.weight"}
        case "no levels":
            return {name: value for name, value in state.items() if not name.startswith("input_blocks.3")}
        case "five channels":
            return {**state, "out.2.weight": torch.zeros(5, 16, 3, 3)}
        case "conv2d":
            return {name: value[..., None] if "qkv.weight" in name else value for name, value in state.items()}
    raise AssertionError(kind)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("empty", "holds no tensors"),
        ("tensor", "object of type Tensor"),
        ("payload", "Python objects besides tensors"),
        ("settings", "'epoch' is of type int"),
        ("edm", "DhariwalUNet"),
        ("classifier", "guided-diffusion classifier"),
        ("other", r"no time_embed.0.weight among its 1 tensors \(first layer.weight\)"),
        ("two", r"several networks \(model., ema.\)"),
        ("nan", "not finite, first in out.2.bias"),
        ("cut", "1 of .* tensors missing .first middle_block.1.norm.weight"),
        ("no levels", "do not make 2 levels of equal depth"),
        ("five channels", "3 input and 5 output channels"),
        ("conv2d", "of another shape .first middle_block.1.qkv.weight"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_other_contents_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, says: str, zipped: bool
) -> None:
    path = save(tmp_path / "model000010.pt", contents(kind), zipped)
    with pytest.raises(UsageError, match=says) as caught:
        load_openai(path)
    assert "model000010.pt" in str(caught.value) and "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


def test_an_optimiser_names_the_file_to_give_instead(tmp_path: Path) -> None:
    net = drawn(SMALL)
    for name in ("ema_0.9999_000010.pt", "ema_0.9999_000020.pt"):
        save(tmp_path / name, net.state_dict())
    path = save(tmp_path / "opt000010.pt", torch.optim.AdamW(net.parameters()).state_dict())
    with pytest.raises(UsageError, match=r"give model000010\.pt or ema_0\.9999_000010\.pt$"):
        read_state(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.9])
def test_cut_files_are_refused(tmp_path: Path, zipped: bool, keep: float) -> None:
    path = save(tmp_path / "model.pt", drawn(SMALL).state_dict(), zipped)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UsageError, match=r"is empty|is damaged") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model000010.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UsageError, match="Git LFS pointer"):
        read_state(tmp_path / "model000010.pt")
    with pytest.raises(UsageError, match=r"is a folder; give a file, as model000010\.pt"):
        read_state(tmp_path)
    with pytest.raises(UsageError, match=r"none\.pt: No such file"):
        read_state(tmp_path / "none.pt")
    for content in (b"\x89PNG\r\n\x1a\n" + bytes(99), b"hello, this is text\n", bytes(range(256))):
        (tmp_path / "photo.pt").write_bytes(content)
        with pytest.raises(UsageError, match="damaged or no checkpoint"):
            read_state(tmp_path / "photo.pt")


# ---- flags ----


def test_every_contradiction_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "model.pt", drawn(PLANS["attention"][0]).state_dict())
    wrong = {
        "num_channels": 128,
        "num_res_blocks": 3,
        "use_scale_shift_norm": "False",
        "class_cond": "yes",
        "learn_sigma": True,
        "channel_mult": "1,2,3",
        "lr": 1e-4,  # of training: not of the file
    }
    with pytest.raises(UsageError) as caught:
        load_openai(path, wrong)
    for sentence in (
        "flag num_channels=128 but the file has 16",
        "flag num_res_blocks=3 but the file has 2",
        "flag use_scale_shift_norm=False but the file has True",
        "flag class_cond=True but the file has no classes",
        "flag learn_sigma=True but the file has False",
        "flag channel_mult=1,2,3 but the file has channel_mult 1,2,2",
    ):
        assert sentence in str(caught.value)
    assert " lr" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"image_size": 64}, r"flag image_size=64 \(channel_mult 1,2,3,4\) but the file has channel_mult 1,2,2"),
        ({"image_size": 16, "attention_resolutions": "16,8"}, "has attention at factors 1,4"),
        ({"attention_resolutions": "/2"}, "has attention at factors 1,4"),
        ({"num_heads": 3}, "flag num_heads=3 does not divide the 16 channels"),
        ({"num_head_channels": 32}, "flag num_head_channels=32 does not divide the 16 channels"),
        ({"num_head": 2}, "flag num_head is unknown; did you mean num_heads?"),
        ({"num_heads": "many"}, "flag num_heads='many': give a whole number"),
        ({"num_channels": 16.5}, "flag num_channels=16.5: give a whole number"),
        ({"dropout": "none"}, "flag dropout='none': give a number"),
        ({"learn_sigma": "maybe"}, "flag learn_sigma='maybe': give True or False"),
        ({"channel_mult": "1,a"}, "flag channel_mult=1,a: give one number a level"),
        ({"image_size": 16, "attention_resolutions": "0"}, "flag attention_resolutions=0: give sizes"),
        ({"strides": "2"}, "flag strides=2: give rows x columns"),
        ({"strides": "2x2"}, "1 strides for 3 levels"),
    ],
)
def test_flags_that_do_not_fit_are_named(tmp_path: Path, flags: dict[str, Any], says: str) -> None:
    path = save(tmp_path / "model.pt", drawn(PLANS["attention"][0]).state_dict())
    with pytest.raises(UsageError, match=says.replace("?", r"\?")):
        load_openai(path, flags)
    assert load_openai(path, {"image_size": 16, "attention_resolutions": "16,4,3"})[1].attention == (0, 2)


def test_a_file_that_leaves_its_role_open_asks_by_name(tmp_path: Path) -> None:
    config = replace(SMALL, in_channels=2, out_channels=2)
    path = save(tmp_path / "model.pt", drawn(config).state_dict())
    with pytest.raises(UsageError, match="super-resolution of 1 with learned variance; give learn_sigma=False or"):
        load_openai(path)
    assert load_openai(path, {"learn_sigma": False})[1] == replace(config, heads=4)
    finer = replace(config, in_channels=1, image_channels=1, heads=4)
    assert load_openai(path, {"learn_sigma": "1"})[1] == finer
    assert load_openai(path, {"large_size": 16})[1] == finer
    with pytest.raises(UsageError, match="learn_sigma=True but the file has False"):
        load_openai(save(tmp_path / "three.pt", drawn(SMALL).state_dict()), {"learn_sigma": True})


@pytest.mark.parametrize(
    ("change", "size", "says"),
    [
        ({"image_channels": 1}, 16, "conditioning images"),
        ({"vector": 2}, 16, "conditioning vector"),
        ({"tokens": 2}, 16, "tokens"),
        ({"conv_resample": False}, 16, "pooling"),
        ({"patch": (2, 2)}, 16, "patches"),
        ({"attention": (1,)}, 1, "attention at levels 1 of a 1-pixel image; use a size divisible by 2"),
    ],
)
def test_networks_beyond_the_flags_are_refused(change: dict[str, Any], size: int, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        openai_flags(replace(SMALL, **change), size)


def test_early_averages_are_told_with_their_share() -> None:
    """An average without warm-up keeps rate^steps of its random start."""
    note = average_note("runs/ema_0.9999_010000.pt")
    assert note is not None and "36.8 %" in note and "model010000.pt" in note
    assert average_note("ema_0.9999_100000.pt") is None  # 5e-5
    assert average_note("ema_0.99_010000.pt") is None
    assert average_note("model010000.pt") is None and average_note("ema_best.pt") is None
