"""The trace encoder: where rows look in time, who hears what, and silence where a condition was withheld."""

import pytest
import torch

from lungwave.models.encoder import STRIDE, Conditional, EncoderConfig, TraceEncoder
from lungwave.models.precond import Denoiser
from lungwave.models.unet import Condition
from lungwave.types import UsageError

CONFIG = EncoderConfig(size=(16, 8), patch=(4, 4), samples=64, rows=5.0, first=1.5, channels=8, heads=2, images=3)


def places(events: int = 2, elements: int = 6) -> torch.Tensor:
    """Elements across the map, two angles."""
    across = torch.linspace(-1, 1, elements)
    return torch.stack(torch.broadcast_tensors(across[None], torch.linspace(-0.1, 0.1, events)[:, None]), -1)


def encoder(config: EncoderConfig = CONFIG) -> TraceEncoder:
    """One whose weights are not near zero."""
    torch.manual_seed(0)
    return TraceEncoder(config, places())


def test_every_parameter_learns_and_images_have_the_size_of_the_map() -> None:
    """A gradient reaches all of the encoder."""
    made = encoder()
    images = made(torch.randn(3, 2, 6, 64))
    assert images.shape == (3, 3, 16, 8)
    images.square().sum().backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent in ([], ["key.bias"]), "a bias of all scores alike cannot matter"


def test_rows_read_the_time_at_which_sound_comes_back_from_them() -> None:
    """Four rows of patches span five times from 1.5 on: centres at 2.125, 3.375 ... in units of times."""
    ramp = torch.arange(8.0)[None, None, None] + 0.5  # a feature that says its own time, at the middle of its samples
    found = encoder()._at_rows(ramp)
    torch.testing.assert_close(found[0, 0, 0], 1.5 + (torch.arange(4) + 0.5) * 1.25)


def test_a_sound_is_heard_at_its_row_and_not_above() -> None:
    """What arrives after a row's time changes nothing there but through the summary of the whole trace."""
    made = encoder()
    torch.nn.init.zeros_(made.late.weight)
    torch.nn.init.zeros_(made.late.bias)
    quiet = torch.randn(1, 2, 6, 64)
    loud = quiet.clone()
    loud[..., 56:] += 5 * torch.randn(1, 2, 6, 8)
    for layer in (made.temporal[1], made.temporal[4], made.temporal[7]):  # group norms mix all times
        layer.register_forward_hook(lambda _, inputs, output: inputs[0])
    change = (made(loud) - made(quiet)).abs().amax((0, 1, 3))
    assert not change[:4].any() and change[12:].max() > 0


def test_columns_tell_elements_apart_by_place_alone() -> None:
    """Scores depend on the distance of element and column, so equal offsets get equal scores."""
    across = torch.tensor([-0.75, -0.25, 0.25, 0.75])
    config = EncoderConfig(size=(16, 16), patch=(4, 4), samples=64, channels=8, heads=2)
    torch.manual_seed(0)
    score = TraceEncoder(config, torch.stack([across, torch.zeros(4)], -1)[None])._place_score()
    for offset in range(-2, 3):
        same = torch.stack([score[c, c + offset] for c in range(4) if 0 <= c + offset < 4])
        torch.testing.assert_close(same, same[:1].expand_as(same))


class Says(Denoiser):
    """A denoiser that keeps its condition."""

    def forward(self, x, sigma, cond=None):
        self.seen = cond
        return x


def test_encoding_once_is_encoding_at_every_call_and_withheld_traces_are_silent() -> None:
    """Samplers encode once; the first number of the vector is 0 where a condition was dropped."""
    inner = Says()
    model = Conditional(inner, encoder())
    cond = Condition(
        image=torch.randn(2, 1, 16, 8), vector=torch.tensor([[1.0, 3.0], [0.0, 0.0]]), traces=torch.randn(2, 2, 6, 64)
    )
    x, sigma = torch.randn(2, 1, 16, 8), torch.ones(2)
    model(x, sigma, cond)
    first = inner.seen.image
    model(x, sigma, model.encode(cond))
    assert torch.equal(inner.seen.image, first) and first.shape == (2, 4, 16, 8)
    assert first[0, 1:].abs().max() > 0 and not first[1, 1:].any()
    alone = Conditional(inner, encoder(), images=False)
    alone(x, sigma, cond)
    assert inner.seen.image.shape == (2, 3, 16, 8)
    Conditional(inner)(x, sigma, cond)
    assert torch.equal(inner.seen.image, cond.image) and inner.seen.traces is None


@pytest.mark.parametrize("wrong", [{"samples": 60}, {"channels": 9}, {"size": (18, 8)}])
def test_sizes_that_do_not_fit_are_refused(wrong: dict) -> None:
    """By name, with the numbers."""
    with pytest.raises(UsageError, match=str(next(iter(wrong.values()))).split(",")[0].strip("(")):
        EncoderConfig(**{"size": (16, 8), "samples": 64, **wrong})
    assert STRIDE == 8
