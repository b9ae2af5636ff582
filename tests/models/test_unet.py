"""Laws of the network: any size goes in and comes out, conditions act and their absence is zero, samples are alone."""

from __future__ import annotations

import copy
import itertools
import re
from dataclasses import replace

import jaxtyping
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from lungwave.models.unet import (
    AttentionBlock,
    Condition,
    UNet,
    UNetConfig,
    check_size,
    describe,
    fitting_strides,
    from_patches,
    to_patches,
)
from lungwave.types import UsageError

SMALL = UNetConfig(channels=16, channel_mult=(1, 2), blocks=1, heads=2)
CONDITIONED = replace(SMALL, classes=3, image_channels=2, vector=4, tokens=5)


def alive(config: UNetConfig, seed: int = 0) -> UNet:
    """A network none of whose layers is zero, as after some training."""
    generator = torch.Generator().manual_seed(seed)
    net = UNet(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            norm = name.endswith("weight") and parameter.ndim == 1
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(norm + torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return net


def noisy(n: int, config: UNetConfig, size: tuple[int, int], seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, config.in_channels, *size, generator=generator), 40 * torch.randn(n, generator=generator)


def condition(n: int, size: tuple[int, int]) -> Condition:
    generator = torch.Generator().manual_seed(2)
    return Condition(
        label=torch.arange(n) % 3,
        image=torch.randn(n, 2, *size, generator=generator),
        vector=torch.randn(n, 4, generator=generator),
        tokens=torch.randn(n, 6, 5, generator=generator),
    )


def gradients(net: UNet, x: Tensor, time: Tensor) -> dict[str, Tensor]:
    net.zero_grad()
    net(x, time).float().square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def apart(a: Tensor, b: Tensor) -> float:
    """Distance relative to the length of ``b``."""
    return float((a.detach().float() - b.detach().float()).norm() / b.detach().float().norm())


# ---- sizes ---------------------------------------------------------------------------------------------------------

SIZES = [
    ((8, 256), ((1, 2), (1, 2), (2, 2))),
    ((12, 20), ()),
    ((64, 64), ((2, 2), (2, 2))),
    ((16, 256), ((1, 2), (2, 2))),
    ((6, 9), ((1, 3), (2, 1))),
]
KINDS = [{}, {"conv_resample": False}, {"resblock_updown": True}]


@pytest.mark.parametrize("kind", KINDS, ids=["convolutions", "means", "blocks"])
@pytest.mark.parametrize(("size", "strides"), SIZES, ids=lambda v: "x".join(map(str, v)) if v and v[0] else "")
def test_every_size_comes_back(size: tuple, strides: tuple, kind: dict) -> None:
    mult = (1, 1, 2, 2)[: len(strides) + 1] if strides else (1, 2)
    config = UNetConfig(channels=8, channel_mult=mult, blocks=1, strides=strides, in_channels=2, out_channels=4, **kind)
    output = alive(config)(*noisy(2, config, size))
    assert output.shape == (2, 4, *size)
    assert output.isfinite().all()


@given(
    z=st.integers(1, 40),
    x=st.integers(1, 40),
    levels=st.integers(1, 5),
    patch=st.sampled_from([(1, 1), (1, 2), (2, 2)]),
)
def test_fitting_strides_fit(z: int, x: int, levels: int, patch: tuple[int, int]) -> None:
    size = (z * patch[0], x * patch[1])
    strides = fitting_strides(size, levels, patch)
    config = UNetConfig(channel_mult=(1,) * levels, strides=strides, patch=patch)
    check_size(config, size)
    for length, factor, before in zip(size, config.reduction(), patch, strict=True):
        assert length // factor >= min(4, length // before)


def test_a_wrong_size_is_named_with_strides_that_cure_it() -> None:
    config = UNetConfig(channel_mult=(1, 1, 2, 2, 4))
    with pytest.raises(UsageError, match="8 x 256 needs height divisible by 16 with 5 levels") as caught:
        check_size(config, (8, 256))
    pairs = re.findall(r"\((\d+),(\d+)\)", str(caught.value))
    check_size(replace(config, strides=tuple((int(z), int(x)) for z, x in pairs)), (8, 256))
    with pytest.raises(UsageError, match="width divisible by 16"):
        check_size(config, (16, 40))


def test_impossible_configurations_are_refused() -> None:
    with pytest.raises(UsageError, match="2 strides for 4 levels; give 3"):
        UNetConfig(strides=((2, 2), (2, 2)))
    with pytest.raises(UsageError, match="attention at level 4"):
        UNetConfig(attention=(4,))
    with pytest.raises(UsageError, match="cannot be split into 5"):
        UNet(replace(SMALL, heads=5))


@given(st.sampled_from([(1, 2), (2, 2), (2, 1), (3, 4)]))
def test_patches_lose_nothing(patch: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 12, 24)
    assert torch.equal(from_patches(to_patches(x, patch), patch), x)


def test_patches_enter_the_network_and_leave_it() -> None:
    config = replace(SMALL, patch=(2, 2), out_channels=2, image_channels=1)
    net = alive(config)
    assert net(*noisy(2, config, (16, 24))).shape == (2, 2, 16, 24)
    cheaper = describe(config, (16, 24))["gmac"] / describe(replace(config, patch=(1, 1)), (16, 24))["gmac"]
    assert 0.2 < cheaper < 0.4


# ---- start ---------------------------------------------------------------------------------------------------------


def test_the_untrained_network_says_zero() -> None:
    net = UNet(CONDITIONED)
    assert not net(*noisy(3, CONDITIONED, (8, 12)), condition(3, (8, 12))).any()


def test_every_parameter_of_a_living_network_has_a_gradient() -> None:
    net = alive(replace(CONDITIONED, attention=(0, 1)))
    net(*noisy(3, CONDITIONED, (4, 8)), condition(3, (4, 8))).square().mean().backward()
    unused = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused


# ---- conditions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["label", "image", "vector", "tokens"])
def test_each_condition_acts_on_every_sample(part: str) -> None:
    net, size = alive(CONDITIONED), (8, 8)
    x, time = noisy(3, CONDITIONED, size)
    cond = condition(3, size)
    with torch.no_grad():
        change = net(x, time, cond) - net(x, time, replace(cond, **{part: None}))
    assert (change.flatten(1).norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize("part", ["image", "vector"])
def test_an_absent_condition_is_zeros(part: str) -> None:
    net, size = alive(CONDITIONED), (8, 8)
    x, time = noisy(3, CONDITIONED, size)
    cond = condition(3, size)
    zeros = torch.zeros_like(getattr(cond, part))
    with torch.no_grad():
        assert torch.equal(net(x, time, replace(cond, **{part: None})), net(x, time, replace(cond, **{part: zeros})))


def test_label_minus_one_is_no_label_for_that_sample() -> None:
    net, size = alive(CONDITIONED), (8, 8)
    x, time = noisy(3, CONDITIONED, size)
    some = Condition(label=torch.tensor([2, -1, 0]))
    with torch.no_grad():
        given_, without = net(x, time, some), net(x, time)
    torch.testing.assert_close(given_[1], without[1])
    assert apart(given_[0], without[0]) > 1e-3


def test_tokens_are_a_set() -> None:
    net, size = alive(replace(CONDITIONED, attention=(0,))), (8, 8)
    x, time = noisy(2, CONDITIONED, size)
    cond = condition(2, size)
    shuffled = replace(cond, tokens=cond.tokens[:, torch.tensor([5, 2, 0, 1, 4, 3])])
    with torch.no_grad():
        assert apart(net(x, time, shuffled), net(x, time, cond)) < 1e-5


def test_conditions_of_some_samples() -> None:
    cond = condition(4, (8, 8))
    some = cond.take(torch.tensor([2, 0]))
    assert torch.equal(some.label, torch.tensor([2, 0]))
    assert torch.equal(some.tokens, cond.tokens[[2, 0]])
    assert Condition(vector=cond.vector).take(slice(1)).image is None


# ---- samples are alone ---------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    net, size = alive(replace(CONDITIONED, attention=(0,))), (8, 8)
    x, time = noisy(4, CONDITIONED, size)
    cond = condition(4, size)
    order = torch.tensor([3, 1])
    with torch.no_grad():
        together, alone = net(x, time, cond), net(x[order], time[order], cond.take(order))
    assert apart(alone, together[order]) < 1e-5
    x.requires_grad_()
    net(x, time, cond)[1].sum().backward()
    assert x.grad[1].any() and not x.grad[[0, 2, 3]].any()


# ---- attention -----------------------------------------------------------------------------------------------------


def explicit_attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, eq. 1), head by head."""
    n, c, *size = x.shape
    d = c // block.heads
    rows = block.qkv(block.norm(x).flatten(2))
    outputs = []
    for head in range(block.heads):
        q, k, v = (
            rows[:, (part * block.heads + head if block.new_order else head * 3 + part) * d :][:, :d]
            for part in range(3)
        )
        weights = torch.softmax(torch.einsum("ncs,nct->nst", q, k) / d**0.5, 2)
        outputs.append(torch.einsum("nst,nct->ncs", weights, v))
    return x + block.proj_out(torch.cat(outputs, 1)).reshape(n, c, *size)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("new_order", [False, True])
def test_attention_is_the_explicit_formula(new_order: bool, layout: torch.memory_format) -> None:
    block = alive(replace(SMALL, heads=4, new_attention_order=new_order)).middle_block[1].to(memory_format=layout)
    x = torch.randn(2, 32, 5, 7, generator=torch.Generator().manual_seed(3)).contiguous(memory_format=layout)
    torch.testing.assert_close(block(x, None), explicit_attention(block, x), rtol=1e-4, atol=1e-5)


def test_both_orders_of_heads_hold_the_same_network() -> None:
    old = alive(replace(SMALL, attention=(1,), heads=4))
    new = UNet(replace(SMALL, attention=(1,), heads=4, new_attention_order=True))
    state = old.state_dict()
    for name, value in state.items():
        if ".qkv." in name:
            state[name] = value.unflatten(0, (4, 3, -1)).transpose(0, 1).flatten(0, 2)
    new.load_state_dict(state)
    x, time = noisy(2, SMALL, (8, 8))
    with torch.no_grad():
        assert apart(new(x, time), old(x, time)) < 1e-5


def test_narrow_heads_and_heads_on_the_way_up() -> None:
    net = UNet(replace(SMALL, attention=(1,), head_channels=8, heads_upsample=1))
    assert net.middle_block[1].heads == 4
    net = UNet(replace(SMALL, attention=(1,), heads=4, heads_upsample=1))
    assert [m.heads for m in net.modules() if isinstance(m, AttentionBlock)] == [4, 4, 1, 1]


# ---- the same numbers by other ways --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [{}, {"scale_shift": False}, {"resblock_updown": True}], ids=["film", "add", "blocks"])
def test_channels_last_changes_nothing(kind: dict) -> None:
    config = replace(SMALL, attention=(1,), **kind)
    plain = alive(config)
    ordered = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    x, time = noisy(3, config, (8, 12))
    with torch.no_grad():
        assert apart(ordered(x, time), plain(x, time)) < 1e-5
    expected = gradients(plain, x, time)
    for name, found in gradients(ordered, x, time).items():
        assert (found - expected[name]).norm() < 1e-4 * expected[name].norm() + 1e-6, name


def test_the_derivative_by_the_map_is_right_in_channels_last() -> None:
    net = alive(replace(SMALL, attention=(1,))).double().to(memory_format=torch.channels_last)
    x, time = (v.double() for v in noisy(1, SMALL, (4, 4)))
    assert torch.autograd.gradcheck(lambda v: net(v, time).square().sum(), x.requires_grad_(), fast_mode=True)


def test_recomputing_blocks_gives_the_same_gradient() -> None:
    config = replace(SMALL, attention=(1,))
    net = alive(config).train()
    saving = UNet(replace(config, gradient_checkpointing=True)).train()
    saving.load_state_dict(net.state_dict())
    x, time = noisy(2, SMALL, (8, 8))
    expected = gradients(net, x, time)
    for name, found in gradients(saving, x, time).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_bfloat16_is_close() -> None:
    config = replace(SMALL, attention=(1,))
    net = alive(config).to(memory_format=torch.channels_last)
    x, time = noisy(4, SMALL, (8, 16))
    expected, by_weights = net(x, time), gradients(net, x, time)
    with torch.autocast("cpu", torch.bfloat16):
        found, rounded = net(x, time), gradients(net, x, time)
    assert found.dtype == torch.bfloat16
    assert apart(found, expected) < 0.03
    whole, other = (torch.cat([g.flatten() for g in grads.values()]) for grads in (by_weights, rounded))
    assert nn.functional.cosine_similarity(whole, other, 0) > 0.999
    assert all(p.dtype == torch.float32 for p in net.parameters())


def test_the_compiler_sees_one_graph() -> None:
    net = alive(replace(CONDITIONED, attention=(1,)))
    x, time = noisy(2, CONDITIONED, (8, 8))
    cond = condition(2, (8, 8))
    whole = torch.compile(net, fullgraph=True, backend="eager")  # generated code takes minutes and is the same graph
    jaxtyping.config.update("jaxtyping_disable", True)  # the checker of the tests is itself not compilable
    try:
        with torch.no_grad():
            torch.testing.assert_close(whole(x, time, cond), net(x, time, cond), rtol=1e-5, atol=1e-5)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
        torch.compiler.reset()


def test_dropout_acts_in_training_only() -> None:
    config = replace(SMALL, dropout=0.3)
    net, (x, time) = alive(config), noisy(2, SMALL, (8, 8))
    with torch.no_grad():
        net.train()
        assert apart(net(x, time), net(x, time)) > 1e-3
        net.eval()
        assert torch.equal(net(x, time), net(x, time))


# ---- description ---------------------------------------------------------------------------------------------------


def test_description_says_where_attention_landed_and_what_it_costs() -> None:
    config = UNetConfig(channels=16, channel_mult=(1, 2, 2), blocks=1, strides=((1, 2), (2, 2)), attention=(1,))
    about = describe(config, (8, 64))
    net = UNet(config)
    assert about["levels"] == ["8 x 64", "8 x 32", "4 x 16"]
    assert about["attention"] == ["8 x 32", "middle block"]
    assert about["parameters"] == sum(p.numel() for p in net.parameters())
    assert about["tensors"] == len(net.state_dict())
    assert not any(p.is_meta for p in net.parameters())


def test_multiplications_are_those_of_the_layers() -> None:
    found = 0

    def count(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        nonlocal found
        found += output.numel() * layer.weight[0].numel()

    net = UNet(SMALL)
    for layer in net.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    with torch.no_grad():
        net(*noisy(1, SMALL, (8, 8)))
    wide, positions = 32, 16  # the middle block sees 4 x 4 pixels
    found += positions * wide * (3 * wide + wide) + 2 * positions**2 * wide  # its projections, logits and sums
    skips = [m.skip_connection for m in net.modules() if isinstance(getattr(m, "skip_connection", None), nn.Conv2d)]
    sides = {0: 4, 1: 4, 2: 4, 3: 8, 4: 8}
    assert len(skips) == len(sides)
    found += sum(layer.weight.numel() * sides[i] ** 2 for i, layer in enumerate(skips))  # called without their hooks
    assert describe(SMALL, (8, 8))["gmac"] == pytest.approx(found / 1e9, rel=1e-9)


def test_parameter_names_do_not_depend_on_options_of_speed() -> None:
    names = [
        list(UNet(replace(SMALL, gradient_checkpointing=g, dropout=d)).state_dict())
        for g, d in itertools.product((False, True), (0.0, 0.1))
    ]
    assert all(found == names[0] for found in names)
