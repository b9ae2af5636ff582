"""Laws of the fused layers: they are the ordinary ones, with the ordinary derivatives of first and second order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lungwave.models.fused import NormSiLU, attend, norm_silu, plain_norm_silu, pointwise


def values(film: bool, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 8, 3, 4), (8,), (8,), (2, 16) if film else None]
    made = [None if shape is None else 2 + torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    made[0] = made[0].contiguous(memory_format=torch.channels_last)
    return [None if v is None else v.requires_grad_() for v in made]


@pytest.mark.parametrize("silu", [True, False])
@pytest.mark.parametrize("film", [True, False])
def test_values_and_derivatives_are_those_of_the_plain_layers(film: bool, silu: bool) -> None:
    inputs = values(film)
    options = (4, 1e-5, silu)
    torch.testing.assert_close(NormSiLU.apply(*inputs, *options), plain_norm_silu(*inputs, *options))
    given = [v for v in inputs if v is not None]

    def fused(*given: Tensor) -> Tensor:
        return NormSiLU.apply(*given, *([] if film else [None]), *options)

    assert torch.autograd.gradcheck(fused, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(fused, given, fast_mode=True)


def test_rounding_to_bfloat16_leaves_the_gradient() -> None:
    norm = nn.GroupNorm(8, 32)
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(4, 32, 16, 16, generator=generator) + 1).contiguous(memory_format=torch.channels_last)
    film, seen = torch.randn(4, 64, generator=generator), torch.randn(x.shape, generator=generator)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [v.to(dtype).requires_grad_() for v in (x, film)]
        y = norm_silu(norm, *leaves)
        assert y.dtype == dtype
        found.append(torch.autograd.grad(y, [*leaves, norm.weight, norm.bias], seen.to(dtype)))
    for exact, rounded in zip(*found, strict=True):
        assert (rounded.float() - exact).norm() < 0.01 * exact.norm()


def test_a_gradient_of_the_map_alone() -> None:
    norm = nn.GroupNorm(2, 4).requires_grad_(False)
    x = torch.randn(1, 4, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    (found,) = torch.autograd.grad(norm_silu(norm, x).sum(), x, create_graph=True)
    found.square().sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (5, 9)])
def test_attention_in_bfloat16_is_attention(queries: int, keys: int) -> None:
    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(2, 3, length, 8, generator=generator) for length in (queries, keys, keys))
    exact = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1) @ v
    torch.testing.assert_close(attend(q, k, v), exact)
    rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert (rounded.float() - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("layer", [nn.Conv1d(6, 5, 1), nn.Conv2d(6, 5, 1)], ids=["one axis", "two axes"])
def test_pointwise_convolutions_mix_channels(layer: nn.Module) -> None:
    x = torch.randn(2, 6, 4, 3)
    expected = torch.einsum("oc,nczx->nozx", layer.weight.flatten(1), x) + layer.bias[:, None, None]
    torch.testing.assert_close(pointwise(layer, x), expected)
