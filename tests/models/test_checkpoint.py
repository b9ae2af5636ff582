"""Laws of model folders: what was saved comes back to the bit; a folder cut off, edited or foreign is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lungwave.models.checkpoint import Model, load_model, multiplier, network_config, save_model, start_from
from lungwave.models.gaussian import Gaussian
from lungwave.models.noising import Noising
from lungwave.models.precond import Denoiser, Discrete, Preconditioned, Scaling
from lungwave.models.unet import Condition, UNet, UNetConfig
from lungwave.types import LungwaveError, UsageError

CONFIG = UNetConfig(channels=8, channel_mult=(1, 1.5, 2), blocks=1, attention=(2,), strides=((1, 2), (2, 2)), heads=2,
                    classes=3, image_channels=2, vector=4)  # fmt: skip
SIZE = (8, 16)
DENOISERS: dict[str, Callable[[UNet], Denoiser]] = {
    **{kind: lambda net, kind=kind: Preconditioned(net, kind) for kind in ("edm", "eps", "x0", "v", "flow")},
    "other sigma": lambda net: Preconditioned(net, "edm", 0.7),
    "discrete": lambda net: Discrete(net, Noising(400, "cosine", "50", False)),
    "discrete x0": lambda net: Discrete(net, Gaussian(1000, "linear", "", True, "x0", "fixed_small", "kl"), "x0"),
}


def network(config: UNetConfig = CONFIG) -> UNet:
    net, generator = UNet(config), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in net.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
    return net.eval()


def call(denoiser: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    x, image = torch.randn(2, 1, *SIZE, generator=generator), torch.randn(2, 2, *SIZE, generator=generator)
    cond = Condition(torch.tensor([0, 2]), image, torch.ones(2, 4))
    with torch.no_grad():
        return denoiser(x, torch.tensor([0.2, 5.0]), cond)


def write(folder: Path, denoiser: Denoiser | None = None, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "card": "# A tiny prior\n\nOf nothing.",
        "command": "lungwave train data --seed 7",
        "trained": {"images": 4000, "loss": 0.25},
        "statistics": {"mean": 0.6, "histogram": [1, 2, 3]},
        "classes": ("healthy", "interstitial", "consolidation"),
        "seed": 7,
    }
    save_model(folder, denoiser or Preconditioned(network()), Scaling(0.6, 0.2), SIZE, **{**values, **changes})
    return folder


@pytest.mark.parametrize("kind", DENOISERS)
def test_a_model_comes_back_to_the_bit(tmp_path: Path, kind: str) -> None:
    denoiser = DENOISERS[kind](network())
    model = load_model(write(tmp_path / "model", denoiser))
    assert torch.equal(call(model.denoiser), call(denoiser))
    assert type(model.denoiser) is type(denoiser) and not model.denoiser.training
    assert (model.scaling, model.size) == (Scaling(0.6, 0.2), SIZE)
    if isinstance(denoiser, Discrete) and isinstance(model.denoiser, Discrete):
        assert model.denoiser.noising == denoiser.noising


def test_the_folder_describes_itself(tmp_path: Path) -> None:
    parent = tmp_path / "maps.h5"
    parent.write_bytes(b"maps")
    model = load_model(write(tmp_path / "model", parents=[parent], settings={"batch": 16}))
    about = model.config
    assert network_config(about["network"]) == CONFIG
    assert about["trained"]["images"] == 4000 and about["statistics"]["histogram"] == [1, 2, 3]
    assert about["classes"][1] == "interstitial" and about["seed"] == 7 and about["config"] == {"batch": 16}
    assert set(about["parents"]) == {"maps.h5"} and about["parameters"] == sum(
        p.numel() for p in network().parameters()
    )
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("# A tiny prior") and "lungwave train data --seed 7" in card
    assert "Research use only. Not a medical device." in card and "| images | 4000 |" in card
    assert sorted(item.name for item in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_storage_costs_half_the_room_and_comes_back_single(tmp_path: Path, dtype: Any, error: float) -> None:
    full, half = write(tmp_path / "full"), write(tmp_path / "half", dtype=dtype)
    assert (half / "model.safetensors").stat().st_size < 0.6 * (full / "model.safetensors").stat().st_size
    stored, loaded = load_file(half / "model.safetensors"), dict(load_model(half).denoiser.net.state_dict())
    for name, exact in network().state_dict().items():
        assert loaded[name].dtype == torch.float32 and stored[name].dtype == getattr(torch, dtype)
        assert torch.equal(loaded[name], stored[name].float())
        assert ((loaded[name] - exact).abs() <= error * exact.abs() + 1e-7).all()


def test_loading_draws_nothing_and_leaves_gradients_possible(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    before = torch.get_rng_state()
    model = load_model(folder)
    assert torch.equal(before, torch.get_rng_state())
    x = torch.randn(1, 1, *SIZE, requires_grad=True)
    model.denoiser(x, torch.ones(1)).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0
    assert all(value.grad is not None for name, value in model.denoiser.named_parameters() if "time_embed" in name)


class Wrapper(nn.Module):
    """What data-parallel training puts around a network."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_wrapped_and_channels_last_networks_are_stored_plain(tmp_path: Path) -> None:
    denoiser = Preconditioned(network().to(memory_format=torch.channels_last))
    wanted = call(Preconditioned(network()))
    denoiser.net = Wrapper(denoiser.net)
    assert torch.equal(call(load_model(write(tmp_path / "model", denoiser)).denoiser), wanted)
    denoiser.net = nn.Conv2d(1, 1, 1)
    with pytest.raises(LungwaveError, match="a Conv2d cannot be stored"):
        write(tmp_path / "none", denoiser)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("value", "changes", "says"),
    [
        (float("nan"), {}, "weights are not finite, first in out.2.bias; use an earlier snapshot"),
        (float("inf"), {"dtype": "bfloat16"}, "first in out.2.bias; use an earlier snapshot"),
        (1e6, {"dtype": "float16"}, "float16 cannot hold them, store as float32"),
        (0.0, {"dtype": "int8"}, "cannot be stored as 'int8'; use one of float32, float16, bfloat16"),
        (0.0, {"classes": ("healthy",)}, "1 class names for 3 labels"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_writing(
    tmp_path: Path, value: float, changes: dict[str, Any], says: str
) -> None:
    net = network()
    with torch.no_grad():
        net.out[2].bias.fill_(value)
    with pytest.raises(UsageError, match=says):
        write(tmp_path / "model", Preconditioned(net), **changes)
    assert not (tmp_path / "model").exists()


def test_sizes_that_the_network_cannot_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="8 x 18 needs width divisible by 4"):
        save_model(tmp_path / "model", Preconditioned(network()), Scaling(), (8, 18), card="", command="")
    assert not (tmp_path / "model").exists()


def test_a_save_that_was_cut_off_is_refused_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the files: new weights never meet the old description."""
    folder, other = write(tmp_path / "model"), network(replace(CONFIG, heads=1))
    with torch.no_grad():
        other.out[2].bias.add_(1)  # the same shapes: only the hash can tell

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lungwave.models.checkpoint.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            write(folder, Preconditioned(other))
    with pytest.raises(UsageError, match="damaged or of another model"):
        load_model(folder)
    write(folder, Preconditioned(other))
    assert torch.equal(call(load_model(folder).denoiser), call(Preconditioned(other)))
    assert len(list(folder.iterdir())) == 3


def edit(folder: Path, **changes: Any) -> None:
    about = json.loads((folder / "config.json").read_text())
    about.pop("content_sha256", None)  # as somebody does who edits on purpose
    (folder / "config.json").write_text(json.dumps({**about, **changes}))


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    """Change tensors, and forget the hash so that the next check is reached."""
    state = {**load_file(folder / "model.safetensors"), **{k.replace("__", "."): v for k, v in changes.items()}}
    save_file({name: value for name, value in state.items() if value is not None}, folder / "model.safetensors")
    edit(folder, weights_sha256=None)


NETWORK = asdict(CONFIG)
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors missing"),
    "no description": (lambda f: (f / "config.json").unlink(), "config.json missing"),
    "cut weights": (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40), "is damaged or of another model"),
    "no safetensors": (
        lambda f: (edit(f, weights_sha256=None), (f / "model.safetensors").write_bytes(b"PK" * 400)),
        r"model\.safetensors is damaged \(",
    ),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), r"config\.json is not JSON"),
    "binary JSON": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), r"config\.json is not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "does not describe a lungwave model"),
    "someone's config": (
        lambda f: (f / "config.json").write_text('{"model": 1}'),
        "does not describe a lungwave model",
    ),
    "another kind": (lambda f: edit(f, kind="ridge"), "holds a 'ridge' model, this reads 'diffusion'"),
    "newer": (lambda f: edit(f, format=2), "has format 2, this reads up to 1; update lungwave"),
    "unknown setting": (lambda f: edit(f, network={**NETWORK, "depth": 3}), "'depth' is no setting of the network"),
    "wrong type": (lambda f: edit(f, network={**NETWORK, "channels": "8"}), "'channels' is '8'"),
    "wrong list": (lambda f: edit(f, network={**NETWORK, "attention": ["2"]}), "'attention' is '2'"),
    "endless": (lambda f: edit(f, network={**NETWORK, "blocks": 10**7}), "3 levels of 10000000 blocks are no network"),
    "no network": (lambda f: edit(f, network=[]), "is not of this format"),
    "no such level": (lambda f: edit(f, network={**NETWORK, "attention": [5]}), "attention at level 5"),
    "wrong size": (lambda f: edit(f, size=[7, 16]), "needs height divisible by 2"),
    "no size": (lambda f: edit(f, size=None), "is not of this format"),
    "no scaling": (lambda f: edit(f, scaling={"mean": 0.5}), r"is not of this format \(no 'std'\)"),
    "flat data": (lambda f: edit(f, scaling={"mean": 0.5, "std": 0}), "0 is not a positive number"),
    "other denoiser": (lambda f: edit(f, denoiser={"kind": "ddpm"}), "denoiser kind 'ddpm' is unknown"),
    "other process": (
        lambda f: edit(f, denoiser={"kind": "discrete", "predicts": "eps", "noising": {"steps": 0}}),
        "is not of this format",
    ),
    "tensor missing": (lambda f: edit_weights(f, out__2__bias=None), r"1 of 170 tensors missing \(first out.2.bias\)"),
    "tensor too many": (lambda f: edit_weights(f, more=torch.zeros(1)), r"1 too many \(first more\)"),
    "other shape": (
        lambda f: edit_weights(f, out__2__bias=torch.zeros(2)),
        r"1 of another shape \(first out.2.bias, \(2,\) for \(1,\)\)",
    ),
    "not a number": (
        lambda f: edit_weights(f, out__2__bias=torch.tensor([float("nan")])),
        "not finite, first in out.2.bias",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_say_what_is_wrong(tmp_path: Path, damage: str) -> None:
    folder = write(tmp_path / "model")
    change, says = DAMAGE[damage]
    change(folder)
    with pytest.raises(UsageError, match=says) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_folders_that_are_none_and_devices_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; give a folder"):
        load_model(tmp_path / "none")
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(UsageError, match="is a file, not a model folder"):
        load_model(tmp_path / "model.pt")
    with pytest.raises(UsageError, match="device 'nowhere' cannot be used"):
        load_model(write(tmp_path / "model"), "nowhere")
    assert isinstance(load_model(str(tmp_path / "model"), torch.device("cpu")), Model)


@pytest.mark.parametrize("channels", [1, 3, 7, 49, 96, 107])
def test_multipliers_make_exactly_the_width_they_came_from(channels: int) -> None:
    assert all(int(channels * multiplier(width, channels)) == width for width in range(1, 600))
    assert all(isinstance(multiplier(k * channels, channels), int) for k in range(1, 9))


def test_a_network_that_is_told_more_starts_as_the_stored_one(tmp_path: Path) -> None:
    """Whatever it is told; and it learns from what it is told at once."""
    alone = replace(CONFIG, classes=0, image_channels=0, vector=0)
    stored = Preconditioned(network(alone))
    write(tmp_path / "model", stored, classes=())
    told = UNet(replace(alone, image_channels=2, vector=4))
    before = start_from(told, tmp_path / "model")
    assert before == json.loads((tmp_path / "model/config.json").read_text())["weights_sha256"]
    generator = torch.Generator().manual_seed(4)
    x, image = torch.randn(2, 1, *SIZE, generator=generator), torch.randn(2, 2, *SIZE, generator=generator)
    cond, time = Condition(image=image, vector=torch.ones(2, 4)), torch.tensor([0.3, 2.0])
    told.eval()
    torch.testing.assert_close(told(x, time, cond), stored.net(x, time), rtol=1e-4, atol=1e-4)
    told(x, time, cond).square().mean().backward()
    stem = told.input_blocks[0][0].weight
    assert stem.grad is not None and bool(stem.grad[:, 1:].any())
    with pytest.raises(UsageError, match=r"cannot start from .* give it the same layers"):
        start_from(UNet(replace(alone, channels=16)), tmp_path / "model")
    with pytest.raises(UsageError, match=r"patches of \(1, 1\), not \(2, 2\)"):
        start_from(UNet(replace(alone, patch=(2, 2))), tmp_path / "model")
