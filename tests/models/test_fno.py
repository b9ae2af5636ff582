"""The Fourier neural operator: its layer is a convolution, its map is read off where sound comes from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lungwave.models.fno import FNOConfig, FNORegressor, Spectral, SpectralLayer
from lungwave.models.unet import Condition
from lungwave.types import UsageError

AXES = [((12,), 4), ((7,), 9), ((3, 8), 4), ((1, 6), 3), ((4, 5), 2)]  # lengths and modes, whole spectra among them


def signal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("lengths", "modes"), AXES)
def test_the_layer_is_the_circular_convolution_with_its_own_impulse_response(lengths, modes) -> None:
    made, x = Spectral(2, lengths, modes), signal(1, 2, *lengths, 3)
    places = list(np.ndindex(lengths))
    kernel = torch.zeros(2, 2, *lengths)  # in, out
    for channel in range(2):
        impulse = torch.zeros(1, 2, *lengths, 1)
        impulse[(0, channel, *places[0], 0)] = 1
        kernel[channel] = made(impulse)[0, ..., 0]
    wanted = torch.zeros(1, 2, *lengths, 3)
    for to in places:
        for back in places:
            lag = tuple((a - b) % n for a, b, n in zip(to, back, lengths, strict=True))
            wanted[(0, slice(None), *to)] += torch.einsum("co,cr->or", kernel[(..., *lag)], x[(0, slice(None), *back)])
    torch.testing.assert_close(made(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lengths", "modes"), AXES)
def test_the_layer_is_what_a_fast_transform_gives(lengths, modes) -> None:
    """Li et al., section 4: transform, multiply the lowest modes, transform back."""
    made, x = Spectral(3, lengths, modes), signal(2, 3, *lengths, 4)
    axes = tuple(range(2, 2 + len(lengths)))
    whole = torch.fft.rfftn(x, dim=axes)
    frequencies = [np.fft.fftfreq(n, 1 / n) for n in lengths[:-1]] + [np.arange(lengths[-1] // 2 + 1)]
    low = np.ones((), bool)
    for one in frequencies:
        low = low[..., None] & (np.abs(one) < modes)
    found = torch.zeros_like(whole)
    found[:, :, low] = torch.einsum("ncmr,com->nomr", whole[:, :, low], torch.complex(*made.weight.detach()))
    torch.testing.assert_close(made(x), torch.fft.irfftn(found, lengths, axes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("lengths", "modes"), AXES)
def test_shifting_and_transforming_commute(lengths, modes) -> None:
    made, x = SpectralLayer(4, lengths, modes), signal(2, 4, *lengths, 3)
    axis = 1 + len(lengths)
    torch.testing.assert_close(made(x.roll(2, axis)), made(x).roll(2, axis), rtol=1e-4, atol=1e-5)


def test_a_signal_of_the_kept_modes_may_be_sampled_at_any_rate() -> None:
    """The weights belong to frequencies, not to samples: twice as many samples give the same operator."""
    coarse, fine = Spectral(2, (16,), 5), Spectral(2, (32,), 5)
    fine.load_state_dict(coarse.state_dict())
    spectrum = torch.zeros(1, 2, 17, 1, dtype=torch.complex64)
    spectrum[:, :, :5] = torch.complex(signal(1, 2, 5, 1), signal(1, 2, 5, 1).flip(2))
    x = torch.fft.irfft(spectrum, 32, dim=2)
    torch.testing.assert_close(fine(x)[:, :, ::2], coarse(x[:, :, ::2]), rtol=1e-4, atol=1e-5)


def places(events: int, elements: int) -> torch.Tensor:
    """Elements over four fifths of the map, angles of up to 0.1 rad."""
    across = torch.linspace(-0.8, 0.8, elements)
    angle = torch.linspace(-0.1, 0.1, events) if events > 1 else torch.zeros(1)
    return torch.stack(torch.broadcast_tensors(across[None], angle[:, None]), -1)


def operator(events: int = 2, elements: int = 6, **changes) -> FNORegressor:
    torch.manual_seed(0)
    config = FNOConfig(**{"size": (8, 10), "samples": 32, "first": 4.0, "rows": 20.0, "width": 4, **changes})
    made = FNORegressor(torch.randn(config.size[0], 3), torch.zeros(3), config, places(events, elements))
    return made


def recording(made: FNORegressor, frames: int = 2) -> Condition:
    samples, numbers = made.config.samples, made.config.numbers
    return Condition(vector=signal(frames, numbers), traces=signal(frames, *made.places.shape[:2], samples))


@pytest.mark.parametrize(("events", "elements"), [(1, 1), (1, 16), (3, 5), (16, 4)])
def test_any_array_gives_a_map_and_every_parameter_learns(events: int, elements: int) -> None:
    made = operator(events, elements)
    begun = made(recording(made))
    assert not begun.map.any() and not begun.bands.any()  # before training: the mean in network units
    for head in (made.map[-1], made.bands[-1]):
        torch.nn.init.normal_(head.weight)
    found = made(recording(made))
    assert found.map.shape == (2, 1, 8, 10) and found.bands.shape == (2, 3)
    (found.map.square().sum() + found.bands.square().sum()).backward()
    silent = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert silent == []


def test_pixels_are_read_at_the_time_and_the_element_that_they_belong_to() -> None:
    """A field that says its own time and place is the map of depth and place; beyond the array, that of its end."""
    made = operator()
    time, across = torch.arange(32.0), made.places[0, :, 0]
    rows, columns = torch.arange(8) + 0.5, (torch.arange(10) + 0.5) / 5 - 1
    torch.testing.assert_close(made.at_rows @ time, 4 + rows * 20 / 8)
    torch.testing.assert_close(made.at_columns @ across, columns.clamp(-0.8, 0.8))


def test_what_a_frame_is_told_does_not_depend_on_its_batch() -> None:
    made = operator()
    torch.nn.init.normal_(made.map[-1].weight)
    cond = recording(made, 3)
    torch.testing.assert_close(made(cond).map[1:2], made(cond.take(slice(1, 2))).map)


def test_an_operator_without_channels_is_refused() -> None:
    with pytest.raises(UsageError, match="width 0"):
        FNOConfig(width=0)
