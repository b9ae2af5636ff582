"""What the network does between its 3x3 convolutions, in fewer passes over the maps than a layer at a time takes.

On a CPU, nearly half of a training step in bfloat16 was spent here. The formulas are the ordinary ones;
``plain_norm_silu`` says them in PyTorch's layers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST_LOGITS = 2**20  # of one head; above, the memory of the attention weights costs more than the fused kernel


def norm_silu(norm: nn.Module, x: Tensor, film: Tensor | None = None, silu: bool = True) -> Tensor:
    """``silu(norm(x) * (1 + scale) + shift)`` with ``film = (scale, shift)`` of shape (n, 2 c), None = neither."""
    assert isinstance(norm, nn.GroupNorm)
    wanted = torch.is_grad_enabled() and (x.requires_grad or norm.weight.requires_grad)
    ordered = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    if wanted and ordered and not torch.compiler.is_compiling():
        return NormSiLU.apply(x, norm.weight, norm.bias, film, norm.num_groups, norm.eps, silu)
    return plain_norm_silu(x, norm.weight, norm.bias, film, norm.num_groups, norm.eps, silu)


def plain_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, groups: int, eps: float, silu: bool
) -> Tensor:
    """``norm_silu`` by PyTorch's layers."""
    y = F.group_norm(x, groups, weight, bias, eps)
    if film is not None:
        scale, shift = film[:, :, None, None].chunk(2, 1)
        y = y * (1 + scale) + shift
    return F.silu(y) if silu else y


class NormSiLU(torch.autograd.Function):
    """``norm_silu`` with a gradient that needs seven passes over the map and nothing stored but ``x``.

    PyTorch's own gradient of the group normalisation takes 25 ms for a 4 MB bfloat16 map in channels_last order on one
    core, where all of this takes 5 ms; and its three operations store a map each.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, film: Tensor | None, groups: int, eps: float, silu: bool
    ) -> Tensor:
        n, c, *size = x.shape
        y, mean, rstd = torch.native_group_norm(x, weight, bias, n, c, math.prod(size), groups, eps)
        if film is not None:
            scale, shift = film.to(x.dtype)[:, :, None, None].chunk(2, 1)
            y = torch.addcmul(shift, y, 1 + scale)
        ctx.save_for_backward(x, weight, bias, film, mean, rstd)
        ctx.options = groups, eps, silu
        return F.silu(y, inplace=True) if silu else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, film, mean, rstd = ctx.saved_tensors
        groups, eps, silu = ctx.options
        if torch.is_grad_enabled():  # the gradient will itself be differentiated
            inputs = [v for v in (x, weight, bias, film) if v is not None and v.requires_grad]
            y = plain_norm_silu(x, weight, bias, film, groups, eps, silu)
            found = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
            parts = [next(found) if v is not None and v.requires_grad else None for v in (x, weight, bias, film)]
            return *parts, None, None, None

        n, c, *size = x.shape
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32  # of sums and coefficients

        def each(v: Tensor) -> Tensor:  # of each channel, from one of each group
            return v.to(exact).repeat_interleave(c // groups, 1)

        def wide(v: Tensor) -> Tensor:
            return v.to(x.dtype)[:, :, None, None]

        scale, shift = (0.0, 0.0) if film is None else film.to(exact).chunk(2, 1)
        mean_c, rstd_c = each(mean), each(rstd)
        gain = (weight * (1 + scale)).expand(n, c)
        slope = wide(rstd_c * gain)
        if silu:  # y = slope x + offset, once more
            y = torch.addcmul(wide((bias - mean_c * rstd_c * weight) * (1 + scale) + shift), x, slope)
            grad = torch.ops.aten.silu_backward(grad, y)
        # Sums of the gradient alone and times the normalised map; then the means of both over each group.
        sum_0 = grad.sum((2, 3), dtype=exact)
        sum_1 = ((grad * x).sum((2, 3), dtype=exact) - mean_c * sum_0) * rstd_c
        mean_0, mean_1 = (
            each((gain * s).view(n, groups, -1).sum(2) / (math.prod(size) * c // groups)) for s in (sum_0, sum_1)
        )
        by_x = -(rstd_c**2) * mean_1
        down = torch.addcmul(wide(-rstd_c * mean_0 - by_x * mean_c), x, wide(by_x)).addcmul_(grad, slope)
        by_film = None if film is None else torch.cat([weight * sum_1 + bias * sum_0, sum_0], 1).to(film.dtype)
        by_weight, by_bias = (((1 + scale) * s).sum(0).to(weight.dtype) for s in (sum_1, sum_0))
        return down, by_weight, by_bias, by_film, None, None, None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """``softmax(q k^T / sqrt d) v`` of tensors (n, head, position, d)."""
    logits = query.shape[-2] * key.shape[-2]
    if query.device.type == "cpu" and query.dtype == torch.bfloat16 and logits <= LARGEST_LOGITS:
        # The fused kernel for CPUs multiplies in float32: 3 to 6 times slower where bfloat16 has instructions.
        weights = torch.softmax((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2), -1)
        return weights @ value
    return F.scaled_dot_product_attention(query, key, value)


def pointwise(layer: nn.Module, x: Tensor) -> Tensor:
    """A 1x1 convolution of a map, whether its weights are stored as of one axis or of two."""
    assert isinstance(layer, (nn.Conv1d, nn.Conv2d))
    weight = layer.weight if layer.weight.ndim == 4 else layer.weight[..., None]
    # Dilation means nothing to a 1x1 kernel, but on one thread it keeps PyTorch from its slow kernel for small batches.
    return F.conv2d(x, weight, layer.bias, dilation=2 if x.device.type == "cpu" else 1)
