"""Laws of the bridge to diffusers: the same outputs on both sides, nothing changed there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lungwave.models.diffusers_bridge import export_diffusers, import_diffusers
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.types import UsageError

SIZE = (8, 16)
PLAIN = UNetConfig(channels=32, channel_mult=(1, 2, 2), blocks=1, attention=(1,), heads=4)
NETWORKS = {
    "report": replace(PLAIN, channel_mult=(1, 1, 2), attention=(), heads=4),
    "attention": PLAIN,
    "two blocks, added time": replace(PLAIN, blocks=2, scale_shift=False, dropout=0.1),
    "guided": replace(
        PLAIN,
        in_channels=3,
        out_channels=6,
        attention=(0, 2),
        head_channels=16,
        resblock_updown=True,
        new_attention_order=True,
        classes=3,
    ),
    "uneven": replace(PLAIN, channel_mult=(1, 3), attention=(), heads=3),
}


def drawn(config: UNetConfig) -> UNet:
    """A network whose every tensor counts, with outputs of size one."""
    net, generator = UNet(config), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.parameters():
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.2
            value.copy_(torch.randn(value.shape, generator=generator) * spread + (value.ndim == 1))
    return net.eval()


def inputs(config: UNetConfig) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(2, config.in_channels, *SIZE, generator=torch.Generator().manual_seed(1))
    return x, torch.tensor([3.75, 800.0]), torch.tensor([0, 2]) if config.classes else None


def call(net: UNet) -> Tensor:
    x, time, label = inputs(net.config)
    with torch.no_grad():
        return net(x, time, Condition(label=label))


@pytest.fixture(scope="module")
def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers")


@pytest.mark.parametrize("name", NETWORKS)
def test_diffusers_computes_the_same(tmp_path: Path, diffusers: Any, name: str) -> None:
    net = drawn(NETWORKS[name])
    export_diffusers(tmp_path, net, SIZE)
    theirs, loading = diffusers.UNet2DModel.from_pretrained(tmp_path, output_loading_info=True, low_cpu_mem_usage=False)
    assert not any(loading.values())
    assert list(theirs.config.sample_size) == list(SIZE)
    x, time, label = inputs(net.config)
    with torch.no_grad():
        output = theirs.eval()(x, time, class_labels=label).sample
    assert call(net).std() > 0.3
    assert (output - call(net)).abs().max() < 1e-5


def test_networks_of_diffusers_are_read(tmp_path: Path, diffusers: Any) -> None:
    """Written by their own code with their own defaults, except the three that decide what a name means."""
    torch.manual_seed(0)
    theirs = diffusers.UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=8,
    )
    theirs.save_pretrained(tmp_path)
    net, size = import_diffusers(tmp_path)
    assert size == (16, 16) and net.config.attention == (1,) and net.config.head_channels == 8
    x, time, _ = inputs(net.config)
    with torch.no_grad():
        assert (theirs.eval()(x, time).sample - call(net)).abs().max() < 1e-5


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back_changes_nothing(tmp_path: Path, name: str) -> None:
    net = drawn(NETWORKS[name])
    export_diffusers(tmp_path, net, SIZE)
    again, size = import_diffusers(tmp_path)
    assert torch.equal(call(again), call(net)) and size == SIZE and not again.training
    ours, theirs = net.config, again.config
    assert replace(theirs, heads=ours.heads, head_channels=ours.head_channels, new_attention_order=False) == replace(
        ours, new_attention_order=False
    )


def test_names_of_old_attention_are_understood(tmp_path: Path) -> None:
    net = drawn(PLAIN)
    export_diffusers(tmp_path, net, SIZE)
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(path)
    for now, before in old.items():
        state = {name.replace(f".{now}.", f".{before}."): value for name, value in state.items()}
    assert "mid_block.attentions.0.proj_attn.weight" in state
    save_file(state, path)
    assert torch.equal(call(import_diffusers(tmp_path)[0]), call(net))


def test_half_precision_is_read_as_single(tmp_path: Path) -> None:
    net = drawn(PLAIN)
    export_diffusers(tmp_path, net, SIZE, "float16")
    again = import_diffusers(tmp_path)[0]
    assert next(again.parameters()).dtype == torch.float32
    assert 0 < (call(again) - call(net)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attention": (0, 1)}, r"heads of 8 and 16 channels \(widths 32, 64\), .*; use head_channels"),
        ({"heads_upsample": 2}, "heads of 16 and 32 channels"),
        ({"strides": ((1, 2), (2, 2))}, r"strides \[\(1, 2\)\], and a UNet2DModel halves both axes"),
        ({"patch": (2, 2)}, r"patches of \(2, 2\)"),
        ({"image_channels": 2}, "2 channels of conditioning images"),
        ({"vector": 9}, "a conditioning vector of 9"),
        ({"tokens": 8}, "conditioning tokens of 8"),
        ({"conv_resample": False}, "pooling"),
        ({"channel_mult": (2, 2, 2)}, "a first level of 64 channels beside a time embedding of 32"),
        ({"channels": 16}, "normalisation in 16 and 32 groups"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        export_diffusers(tmp_path / "model", UNet(replace(PLAIN, **change)), SIZE)
    assert not (tmp_path / "model").exists()


def test_sizes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs height divisible by 4"):
        export_diffusers(tmp_path / "model", UNet(PLAIN), (10, 16))


def edit(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**about, **changes}))


WEIGHTS = "diffusion_pytorch_model.safetensors"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "safetensors missing; give the folder of its unet"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "without _class_name"),
    "another class": (lambda f: edit(f, _class_name="UNet2DConditionModel"), "describes a UNet2DConditionModel"),
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:999]), "is damaged"),
    "fourier time": (lambda f: edit(f, time_embedding_type="fourier"), "time_embedding_type is 'fourier'"),
    "other activation": (lambda f: edit(f, act_fn="gelu"), "act_fn is 'gelu', and lungwave's network has 'silu' only"),
    "other epsilon": (lambda f: edit(f, norm_eps=1e-6), "norm_eps is 1e-06"),
    "wider time": (lambda f: edit(f, time_embedding_dim=64), "time_embedding_dim is 64, and lungwave's is 128"),
    "groups": (lambda f: edit(f, norm_num_groups=8), "norm_num_groups is 8, and lungwave's network has 32 at 32"),
    "no middle norm": (lambda f: edit(f, attn_norm_num_groups=None), "attn_norm_num_groups is None"),
    "other blocks": (
        lambda f: edit(f, down_block_types=["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]),
        "blocks DownBlock2D, SkipDownBlock2D, DownBlock2D .conv. are not those",
    ),
    "one-sided attention": (
        lambda f: edit(f, up_block_types=["UpBlock2D", "UpBlock2D", "UpBlock2D"]),
        "attention on the way down and up lies at different levels",
    ),
    "mixed resampling": (
        lambda f: edit(f, downsample_type="resnet"),
        "some levels change resolution by residual blocks",
    ),
    "heads": (lambda f: edit(f, attention_head_dim=24), "attention_head_dim 24 does not divide 64 channels"),
    "nonsense": (lambda f: edit(f, block_out_channels="wide"), "does not describe a UNet2DModel"),
    "other widths": (
        lambda f: edit(f, block_out_channels=[32, 96, 64]),
        "does not fit the network: .*of another shape",
    ),
    "fewer blocks": (lambda f: edit(f, layers_per_block=2), "tensors missing"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_foreign_and_damaged_folders_say_what_is_wrong(tmp_path: Path, damage: str) -> None:
    export_diffusers(tmp_path, UNet(PLAIN), SIZE)
    change, says = DAMAGE[damage]
    change(tmp_path)
    with pytest.raises(UsageError, match=says) as caught:
        import_diffusers(tmp_path)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)
