"""Delay-and-sum laws: a point lies where it is, the map is linear with its adjoint as derivative, two oracles agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.acoustics import beamform
from lungwave.acoustics.beamform import (
    Beamformer,
    PixelGrid,
    delay_and_sum,
    demodulate,
    receive_delay,
    transmit_delay,
)
from lungwave.acoustics.bmode import (
    bmode,
    coherence_factor,
    compound,
    compounded,
    display_grid,
    envelope,
    log_compress,
    transmit_weight,
)
from lungwave.acoustics.iq import analytic, iq_rate, upsampling
from lungwave.acoustics.probe import Recording, Scan, linear_array, sequence
from lungwave.config import preset
from lungwave.types import UsageError

C, F0, FS = 1540.0, 5e6, 20e6
WAVELENGTH = C / F0
BANDWIDTH = 0.6
SAMPLES = 700
ARRAY = linear_array(48, 0.3e-3)


def plane(*degrees: float, elements: np.ndarray = ARRAY, sign: float = 1.0) -> Scan:
    """Plane waves; ``sign`` -1 states every angle (and its firing delays) the wrong way round."""
    angles = sign * np.deg2rad(degrees)
    lead = elements[:, 0] * np.sin(angles)[:, None] + elements[:, 2] * np.cos(angles)[:, None]
    events = len(degrees)
    return Scan(
        elements=elements,
        center_frequency=F0,
        sampling_frequency=FS,
        delays=lead / C,
        apodization=np.ones((events, len(elements))),
        start_times=np.linspace(-1e-6, 2e-6, events),
        focus_distance=np.full(events, np.inf),
        angles=angles,
        origins=np.zeros((events, 3)),
        pulse_delay=0.37e-6,
        bandwidth=BANDWIDTH,
    )


def spherical(distance: float, degrees: float = 0.0, elements: np.ndarray = ARRAY) -> Scan:
    """One beam from the array's middle: a focus in front (distance > 0) or a virtual source behind; arbitrary clock."""
    scan, angle = plane(degrees, elements=elements), np.deg2rad(degrees)
    source = distance * np.array([np.sin(angle), np.cos(angle)])
    away = np.hypot(elements[:, 0] - source[0], elements[:, 2] - source[1])
    return replace(scan, delays=-np.sign(distance) * away[None] / C + 3e-6, focus_distance=np.array([distance]))


def single(firing: list[int], elements: np.ndarray = ARRAY) -> Scan:
    """Single-element events, fired 0.2 us after time zero."""
    events = len(firing)
    return replace(
        plane(*[0.0] * events, elements=elements),
        delays=np.full((events, len(elements)), 0.2e-6),
        apodization=np.eye(len(elements))[firing],
        focus_distance=np.zeros(events),
        origins=elements[firing],
    )


def exact_pulse(times: np.ndarray) -> np.ndarray:
    """Analytic Gaussian pulse with its envelope peak at 0; -6 dB at F0 (1 +- 0.175), inside the flat pass-band."""
    rate = np.pi * 0.35 * F0 / (2 * np.sqrt(np.log(2)))
    return np.exp(-((rate * times) ** 2)) * np.exp(2j * np.pi * F0 * times)


def there_and_back(scan: Scan, x: float, z: float) -> np.ndarray:
    """Two-way time (tx, el) [s] of a point, from the textbook formula of each wave, not the code under test."""
    times = []
    for event, distance in enumerate(scan.focus_distance):
        angle, fired = scan.angles[event], scan.delays[event]
        places = scan.event_elements(event)
        if np.isinf(distance):
            first = (x * np.sin(angle) + z * np.cos(angle)) / C
        elif distance == 0:
            active = int(np.argmax(scan.apodization[event]))
            first = fired[active] + np.hypot(x - places[active, 0], z - places[active, 2]) / C
        else:
            source = scan.origins[event][[0, 2]] + distance * np.array([np.sin(angle), np.cos(angle)])
            passed = fired[0] + np.sign(distance) * np.hypot(*(places[0, [0, 2]] - source)) / C
            beyond = np.array([x, z]) - source
            first = passed + np.sign(beyond @ [np.sin(angle), np.cos(angle)]) * np.hypot(*beyond) / C
        times.append(first + np.hypot(x - places[:, 0], z - places[:, 2]) / C)
    return np.array(times)


def echoes(scan: Scan, *points: tuple[float, float]) -> torch.Tensor:
    """RF (tx, time, el) float64 of points (x, z) [m] with exact delays."""
    clock = scan.start_times[:, None, None] + np.arange(SAMPLES)[None, :, None] / scan.sampling_frequency
    total = sum(exact_pulse(clock - scan.pulse_delay - there_and_back(scan, x, z)[:, None, :]) for x, z in points)
    return torch.as_tensor(np.real(total))


def around(x: float, z: float, half: float = 1.5e-3, step: float = WAVELENGTH / 16) -> PixelGrid:
    """Square patch centred beside, not on, the point, so that hitting it is not built in."""
    offsets = np.arange(-half, half, step)
    return PixelGrid(z + offsets + 0.3 * step, x + offsets + 0.3 * step)


def peak(image: torch.Tensor, grid: PixelGrid) -> tuple[float, float]:
    """(x, z) of the envelope maximum, between pixels by a parabola through log amplitudes."""
    level = image.abs().numpy()
    row, column = np.unravel_index(level.argmax(), level.shape)
    found = []
    for axis, values, index in ((level[row], grid.x, column), (level[:, column], grid.z, row)):
        assert 0 < index < len(values) - 1, "the maximum lies on the rim of the patch"
        a, b, c = np.log(axis[index - 1 : index + 2])
        found.append(values[index] + (values[1] - values[0]) * 0.5 * (a - c) / (a - 2 * b + c))
    return found[0], found[1]


def irregular() -> np.ndarray:
    """A convex array with jittered positions, in no order."""
    rng = np.random.default_rng(3)
    turn = np.linspace(-0.3, 0.3, 40) + 0.002 * rng.standard_normal(40)
    places = np.stack([30e-3 * np.sin(turn), np.zeros(40), 30e-3 * (1 - np.cos(turn)) - 1e-3], 1)
    return places[rng.permutation(40)]


POINT = (1.1e-3, 12.3e-3)
SCANS = {
    "plane 0": plane(0.0),
    "plane +10": plane(10.0),
    "plane -10": plane(-10.0),
    "compound": plane(-12.0, 0.0, 12.0),
    "focus above": spherical(8e-3),
    "focus below": spherical(20e-3),
    "focus steered": spherical(20e-3, 6.0),
    "diverging": spherical(-10e-3),
    "diverging steered": spherical(-10e-3, -5.0),
    "matrix": single(list(range(0, 48, 5))),
    "irregular plane": plane(-5.0, 5.0, elements=irregular()),
    "irregular single": single([3, 17, 30], elements=irregular()),
    "slow sampling": replace(plane(4.0), sampling_frequency=14e6),
}


@pytest.mark.parametrize("name", SCANS)
def test_a_point_lies_where_it_is(name: str) -> None:
    scan, grid = SCANS[name], around(*POINT)
    image = compound(delay_and_sum(analytic(echoes(scan, POINT), scan), scan, grid, f_number=1.0))
    x, z = peak(image, grid)
    assert abs(x - POINT[0]) < 0.1 * WAVELENGTH and abs(z - POINT[1]) < 0.02 * WAVELENGTH


@pytest.mark.parametrize("name", ["compound", "focus below", "matrix", "irregular plane"])
def test_image_equals_exact_delayed_sum_without_interpolation(name: str) -> None:
    """Oracle: the pulse is known in closed form, so the sum needs no samples. 2 % = interpolation + band-pass."""
    scan = SCANS[name]
    grid = PixelGrid(POINT[1] + np.linspace(-0.4e-3, 0.4e-3, 17), POINT[0] + np.linspace(-0.5e-3, 0.5e-3, 11))
    image = delay_and_sum(analytic(echoes(scan, POINT), scan), scan, grid, f_number=0.0).numpy()
    true = there_and_back(scan, *POINT)
    expected = np.zeros(image.shape, complex)
    for row, z in enumerate(grid.z):
        for column, x in enumerate(grid.x):
            expected[:, row, column] = exact_pulse(there_and_back(scan, x, z) - true).mean(1)
    assert np.linalg.norm(image - expected) < 0.02 * np.linalg.norm(expected)


def test_pymust_makes_the_same_sum() -> None:
    """Values of PyMUST 0.1.9 (fixtures/make_pymust_das.py); it sums where we average, hence the count of elements."""
    fixture = np.load(Path(__file__).parent / "fixtures" / "pymust_das.npz")
    grid = PixelGrid(fixture["z"], fixture["x"])
    elements = linear_array(16, 0.3e-3)
    # 8 degrees: PyMUST takes the nearest of 64 interpolated sources for the wave front, we the front itself
    for name, focus, degrees, tolerance in (("single", 0.0, 0.0, 1e-10), ("plane", np.inf, 8.0, 2e-3)):
        fired = fixture[f"{name}_delays"]
        scan = Scan(
            elements=elements,
            center_frequency=5e6,
            sampling_frequency=10e6,
            delays=np.nan_to_num(fired),
            apodization=np.isfinite(fired).astype(float),
            start_times=np.zeros(1),
            focus_distance=np.array([focus]),
            angles=np.deg2rad([degrees]),
            origins=elements[4:5] if focus == 0 else np.zeros((1, 3)),
            bandwidth=0.1,  # so that the fixture's I/Q rate is the one wanted
        )
        assert upsampling(scan) == 1
        for f_number in (0.0, 1.5):
            image = delay_and_sum(torch.as_tensor(fixture["iq"])[None], scan, grid, f_number)[0].numpy()
            count = np.ones(grid.shape) * 16
            if f_number:
                offset = np.abs(grid.x[None, :, None] - elements[:, 0])
                count = (offset <= grid.z[:, None, None] / (2 * f_number)).sum(-1)
            expected = fixture[f"{name}_{f_number:g}"]
            assert np.linalg.norm(image * count - expected) < tolerance * np.linalg.norm(expected)


def test_wrong_angle_sign_splits_the_point() -> None:
    right, wrong = plane(-12.0, 0.0, 12.0), plane(-12.0, 0.0, 12.0, sign=-1)
    point = (4.5e-3, 12.3e-3)  # off the axis: 2 x sin(angle) / c is what the wrong sign does to the delay
    rf, grid = echoes(right, point), around(*point, half=3e-3, step=WAVELENGTH / 8)
    levels = {}
    for name, scan in (("right", right), ("wrong", wrong)):
        images = delay_and_sum(analytic(rf, scan), scan, grid)
        depths = [peak(image, grid)[1] for image in images]
        agreement = compound(images).abs().max() / images.abs().amax((-2, -1)).mean()
        levels[name] = (np.ptp(depths), float(agreement))
    assert levels["right"][0] < WAVELENGTH / 16 and levels["right"][1] > 0.98
    assert levels["wrong"][0] > 5 * WAVELENGTH and levels["wrong"][1] < 0.5


@pytest.mark.parametrize(
    "scan",
    [
        replace(plane(-12.0, 12.0), angles=np.deg2rad([12.0, -12.0])),
        replace(spherical(20e-3), focus_distance=np.array([-20e-3])),
        replace(plane(10.0), delays=np.zeros((1, 48))),
    ],
)
def test_delays_that_contradict_the_stated_wave_are_refused(scan: Scan) -> None:
    with pytest.raises(UsageError, match="correct the delays, or the sign"):
        transmit_delay(scan, around(*POINT))


def test_transmit_delay_is_continuous_through_the_focus_and_odd_about_it() -> None:
    scan = spherical(20e-3)
    depths = 20e-3 + np.linspace(-3e-3, 3e-3, 601)
    grid = PixelGrid(depths, np.array([0.0, 0.1e-3, 0.3e-3]))
    delay = transmit_delay(scan, grid)[0].numpy() - 3e-6  # 3 us is when the wave passes the focus
    assert np.abs(np.diff(delay, axis=0)).max() < 3.5 * 1e-5 / C  # steps of 10 um, no jump
    assert np.allclose(delay, -delay[::-1], atol=1e-12)
    assert np.allclose(delay[:, 0], (depths - 20e-3) / C, atol=1e-12)


def test_focused_time_matches_the_field_of_the_array_near_the_focus() -> None:
    """Superposed elements know nothing of virtual sources: the main pulse arrives within a quarter period."""
    scan, half_width = spherical(20e-3), WAVELENGTH * 20e-3 / (47 * 0.3e-3) / 2
    grid = PixelGrid(20e-3 + np.arange(-2.5e-3, 2.6e-3, 0.5e-3), np.array([0.0, half_width]))
    expected = transmit_delay(scan, grid)[0].numpy()
    clock = np.arange(0, 6e-6, 2e-9)
    for row, z in enumerate(grid.z):
        for column, x in enumerate(grid.x):
            away = np.hypot(x - ARRAY[:, 0], z - ARRAY[:, 2])
            field = (exact_pulse(clock[:, None] - scan.delays[0] - away / C) / np.sqrt(away)).sum(1)
            assert abs(clock[np.abs(field).argmax()] - expected[row, column]) < 0.25 / F0


def test_walking_aperture_equals_its_sub_array() -> None:
    aperture = np.array([np.arange(0, 16), np.arange(20, 36)])
    scan = replace(plane(0.0, 0.0), delays=np.zeros((2, 16)), apodization=np.ones((2, 16)), rx_elements=aperture)
    rf = torch.randn(2, SAMPLES, 16, generator=torch.Generator().manual_seed(1))
    grid = PixelGrid(np.linspace(4e-3, 20e-3, 24), np.linspace(-6e-3, 6e-3, 20))
    walking = Beamformer(scan, grid)(rf)
    for event, elements in enumerate(aperture):
        sub = replace(plane(0.0, elements=ARRAY[elements]), start_times=scan.start_times[event : event + 1])
        assert torch.equal(walking[event], Beamformer(sub, grid)(rf[event : event + 1])[0])


def test_every_preset_images_and_beams_leave_no_gap() -> None:
    for name in ("micro", "tiny", "paper"):
        scan = sequence(preset(name))
        grid = PixelGrid(np.linspace(2e-3, 22e-3, 30), np.linspace(-6e-3, 6e-3, 25))
        weight = transmit_weight(scan, grid)
        assert weight.shape == (scan.transmits, *grid.shape)
        assert float(weight.min()) >= 0 and float(weight.max()) <= 1 and float(weight.sum(0).min()) > 0.4
        rf = torch.randn(scan.transmits, 400, scan.delays.shape[1], generator=torch.Generator().manual_seed(0))
        assert torch.isfinite(torch.view_as_real(compound(Beamformer(scan, grid)(rf), weight))).all()


# --- a linear map and its adjoint ------------------------------------------------------------------


def small() -> tuple[Scan, PixelGrid, torch.Tensor]:
    scan = replace(plane(-6.0, 6.0, elements=linear_array(5, 0.3e-3)), start_times=np.full(2, 4e-6))
    grid = PixelGrid(np.linspace(4e-3, 5.5e-3, 4), np.linspace(-0.5e-3, 0.5e-3, 3))
    rf = torch.randn(1, 2, 40, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return scan, grid, rf


def test_linear() -> None:
    scan, grid, rf = small()
    das = Beamformer(scan, grid, dtype=torch.float64)
    other = rf.flip(2)
    assert torch.allclose(das(2.5 * rf - 3 * other), 2.5 * das(rf) - 3 * das(other), rtol=0, atol=1e-13)


def test_batch_equals_loop_and_tables_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, grid, rf = plane(-6.0, 6.0), around(*POINT, step=WAVELENGTH / 4), torch.randn(2, 3, 2, 300, 48)
    das = Beamformer(scan, grid)
    batch = das(rf)
    assert batch.shape == (2, 3, 2, *grid.shape)
    assert torch.equal(batch, das(rf)), "a second call reads the kept tables"
    assert torch.equal(batch[1, 2], das(rf[1, 2]))
    assert torch.equal(batch, Beamformer(scan, grid, table_bytes=0)(rf)), "tables rebuilt each time"
    iq = analytic(rf, scan)
    assert torch.equal(das.das(iq, [1]), batch[..., 1:, :, :])
    monkeypatch.setitem(beamform.PAIRS_PER_CHUNK, "cpu", 500)
    assert torch.allclose(Beamformer(scan, grid)(rf), batch, rtol=0, atol=1e-6), "another chunk size"


def test_kept_tables_stay_within_their_budget() -> None:
    scan, grid, rf = plane(-6.0, 6.0), around(*POINT), torch.randn(2, 300, 48)
    for budget in (0, 1 << 20, 1 << 29):
        das = Beamformer(scan, grid, table_bytes=budget)
        das(rf)
        tensors = {id(part): part.nbytes for table in das._tables.values() for part in table}
        assert sum(tensors.values()) <= budget
        assert bool(tensors) == (budget > 0)


def test_same_bits_on_one_thread_and_on_two() -> None:
    scan, grid = plane(-6.0, 6.0), around(*POINT, step=WAVELENGTH / 8)
    rf, threads = torch.randn(2, 300, 48), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            leaf = rf.clone().requires_grad_()
            image = Beamformer(scan, grid)(leaf)
            image.abs().sum().backward()
            results.append((image.detach(), leaf.grad))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] is not None and torch.equal(results[0][1], results[1][1])


def test_adjoint_is_the_transpose() -> None:
    scan, grid, rf = small()
    das = Beamformer(scan, grid, dtype=torch.float64)
    rf.requires_grad_()
    image = das(rf)
    weight = torch.randn(image.shape, dtype=image.dtype, generator=torch.Generator().manual_seed(3))
    forward = (image.conj() * weight).sum().real
    (adjoint,) = torch.autograd.grad(forward, rf)
    product = (adjoint * rf.detach()).sum()
    assert abs(float(product - forward.detach())) < 1e-12 * abs(float(product))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch 2.13's own forward mode still uses it
def test_gradients_of_image_power_and_second_order() -> None:
    scan, grid, rf = small()
    das = Beamformer(scan, grid, dtype=torch.float64)

    def both(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        iq = analytic(values, scan)
        return torch.view_as_real(das.das(iq)), das.power(iq)

    rf.requires_grad_()
    assert torch.autograd.gradcheck(both, rf, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda values: both(values)[0].pow(2), rf, fast_mode=True)


def test_float32_follows_float64() -> None:
    scan, grid = plane(7.0), around(*POINT)
    rf = echoes(scan, POINT)
    single_precision = Beamformer(scan, grid)(rf.float())
    double = Beamformer(scan, grid, dtype=torch.float64)(rf)
    assert single_precision.dtype == torch.complex64
    assert float((single_precision - double).abs().max() / double.abs().max()) < 2e-4


# --- sampling --------------------------------------------------------------------------------------


def test_analytic_is_the_closed_form_baseband() -> None:
    scan = plane(3.0)
    iq = analytic(echoes(scan, POINT), scan)
    clock = scan.start_times[:, None, None] + np.arange(iq.shape[-2])[None, :, None] / iq_rate(scan)
    exact = exact_pulse(clock - scan.pulse_delay - there_and_back(scan, *POINT)[:, None]) * np.exp(
        -2j * np.pi * F0 * clock
    )
    assert np.linalg.norm(iq.numpy() - exact) < 0.01 * np.linalg.norm(exact)


def test_interpolation_error_is_the_stated_one() -> None:
    """A tone at the -6 dB edge, read midway between baseband samples, loses 1 % at most and nearly that at worst."""
    for rate in (11.2e6, 14e6, 20e6, 80e6):
        scan = replace(plane(0.0), sampling_frequency=rate)
        loss = 1 - np.cos(np.pi * BANDWIDTH * F0 / 2 / iq_rate(scan))
        assert loss <= 0.01 + 1e-12
        assert upsampling(scan) == 1 or 1 - np.cos(np.pi * BANDWIDTH * F0 / 2 / (iq_rate(scan) - rate)) > 0.01


def narrow(scan: Scan) -> Scan:
    """A pass-band of 18 % that fits between the folds of band-pass sampling."""
    return replace(scan, bandwidth=0.18)


def narrow_echoes(scan: Scan, rate: float) -> np.ndarray:
    clock = scan.start_times[:, None, None] + np.arange(int(SAMPLES * rate / FS))[None, :, None] / rate
    late = clock - scan.pulse_delay - there_and_back(scan, *POINT)[:, None]
    return np.exp(-((0.12 * np.pi * F0 * late) ** 2)) * np.exp(2j * np.pi * F0 * late)


def test_band_pass_sampled_and_demodulated_data_give_the_image_of_plain_rf() -> None:
    plain, grid = narrow(plane(-5.0, 5.0)), around(*POINT, step=WAVELENGTH / 8)
    reference = delay_and_sum(analytic(torch.as_tensor(narrow_echoes(plain, FS).real), plain), plain, grid)

    folded = replace(plain, sampling_frequency=20e6 / 3, spectrum_reversed=True)
    mirrored = torch.as_tensor(narrow_echoes(folded, 20e6 / 3).real)
    image = delay_and_sum(analytic(mirrored, folded), folded, grid)
    assert float((image - reference).abs().max() / reference.abs().max()) < 0.03

    naive = replace(folded, center_frequency=5e6 / 3, spectrum_reversed=False)
    blurred = compound(delay_and_sum(analytic(mirrored, naive), naive, grid))
    assert float(blurred.abs().max()) < 0.5 * float(compound(reference).abs().max())

    mixed = replace(plain, sampling_frequency=5e6, demodulation_frequency=4.9e6)
    since_first = np.arange(int(SAMPLES * 5e6 / FS)) / 5e6  # the file's phase counts from sample 0
    baseband = narrow_echoes(mixed, 5e6) * np.exp(-2j * np.pi * 4.9e6 * since_first)[None, :, None]
    image = delay_and_sum(analytic(torch.as_tensor(baseband), mixed), mixed, grid)
    assert float((image - reference).abs().max() / reference.abs().max()) < 0.03


def test_impossible_sampling_is_refused() -> None:
    rf = torch.zeros(1, 50, 48)
    with pytest.raises(UsageError, match="spectrum_reversed = True"):
        analytic(rf, replace(plane(0.0), sampling_frequency=20e6 / 3))
    with pytest.raises(UsageError, match="spectrum_reversed = False"):
        analytic(rf, replace(plane(0.0), spectrum_reversed=True))
    with pytest.raises(UsageError, match="complex I/Q"):
        analytic(rf, replace(plane(0.0), demodulation_frequency=5e6))
    with pytest.raises(UsageError, match="real RF with 0"):
        analytic(rf.to(torch.complex64), plane(0.0))


# --- coherence, envelope, decibels -----------------------------------------------------------------


def test_coherence_is_one_on_a_lone_reflector_and_a_fraction_elsewhere() -> None:
    scan = plane(0.0)
    grid = PixelGrid(np.array([POINT[1] - 0.2e-3, POINT[1]]), POINT[0] + np.array([-1e-3, 0.0, 1e-3]))
    das = Beamformer(scan, grid, dtype=torch.float64)
    iq = analytic(echoes(scan, POINT), scan)
    factor = coherence_factor(das.das(iq), das.power(iq))[0]
    assert float(factor[1, 1]) > 0.99
    assert float(factor[:, [0, 2]].max()) < 0.5


def test_coherence_of_noise_is_one_over_the_channels_and_of_silence_zero() -> None:
    scan, grid = plane(0.0), PixelGrid(np.linspace(5e-3, 20e-3, 40), np.linspace(-5e-3, 5e-3, 40))
    das = Beamformer(scan, grid, f_number=0.0)
    iq = analytic(torch.randn(1, SAMPLES, 48, generator=torch.Generator().manual_seed(5)), scan)
    factor = coherence_factor(das.das(iq), das.power(iq))
    assert float(factor.min()) >= 0 and float(factor.max()) <= 1
    assert abs(float(factor.mean()) * 48 - 1) < 0.1
    silent = coherence_factor(das.das(0 * iq), das.power(0 * iq))
    assert not silent.any()


def test_power_bounds_the_sum() -> None:
    scan, grid, rf = small()
    das = Beamformer(scan, grid, apodization="hann", dtype=torch.float64)
    iq = analytic(rf, scan)
    assert (das.das(iq).abs() ** 2 <= das.power(iq) * (1 + 1e-12)).all()


def test_log_compression() -> None:
    equal = torch.full((2, 3, 4), 7.0)
    assert not log_compress(equal).any(), "equal everywhere is 0 dB everywhere"
    assert (log_compress(torch.zeros(3, 4), 50.0) == -50).all(), "silence is the floor, not NaN"
    ramp = log_compress(torch.tensor([[1.0, 0.1, 1e-3, 1e-9]]), 60.0)
    assert torch.allclose(ramp, torch.tensor([[0.0, -20.0, -60.0, -60.0]]))
    two = log_compress(torch.stack([torch.rand(5, 5), 100 * torch.rand(5, 5)]))
    assert (two.amax((-2, -1)) == 0).all(), "each image has its own maximum"
    with pytest.raises(UsageError, match="positive"):
        log_compress(equal, 0.0)


def test_demodulation_keeps_the_envelope_and_slows_the_phase() -> None:
    scan, grid = plane(0.0), around(*POINT, half=0.3e-3)
    image = Beamformer(scan, grid, dtype=torch.float64)(echoes(scan, POINT))[0]
    slow = demodulate(image, scan, grid)
    assert torch.allclose(envelope(slow), envelope(image))
    column = len(grid.x) // 2
    turns = [np.abs(np.angle(part[1:, column] / part[:-1, column])).max() for part in (image.numpy(), slow.numpy())]
    assert turns[1] < 0.2 * turns[0]


# --- whole pictures --------------------------------------------------------------------------------


def test_display_grid_covers_what_the_record_holds() -> None:
    scan = plane(0.0)
    grid = display_grid(scan, SAMPLES)
    assert np.allclose(np.diff(grid.z), WAVELENGTH / 3) and np.allclose(np.diff(grid.x), WAVELENGTH / 3)
    assert abs(grid.x[0] - ARRAY[0, 0]) < WAVELENGTH / 3 and abs(grid.x[-1] - ARRAY[-1, 0]) < WAVELENGTH / 3
    last = (scan.start_times[0] - scan.pulse_delay + (SAMPLES - 1) / FS) * C / 2
    assert 0 <= last - grid.z[-1] < WAVELENGTH / 3
    assert display_grid(scan, SAMPLES, 50e-6).z[1] - grid.z[0] == pytest.approx(50e-6)
    assert np.prod(display_grid(scan, 40_000).shape) < 1.05 * 2**18
    with pytest.raises(UsageError, match="check the record length"):
        display_grid(scan, 5)


def test_bmode_of_a_recording_shows_the_point_at_zero_decibels() -> None:
    scan = plane(-6.0, 0.0, 6.0)
    recording = Recording(rf=torch.stack([echoes(scan, (0.0, 8e-3)), echoes(scan, POINT)]).float().numpy(), scan=scan)
    image = bmode(recording, frame=1)
    row, column = np.unravel_index(image.decibel.argmax(), image.decibel.shape)
    assert image.decibel.max() == 0 and image.decibel.min() >= -60
    assert abs(image.z[row] - POINT[1]) < WAVELENGTH / 3 and abs(image.x[column] - POINT[0]) < WAVELENGTH / 2
    with pytest.raises(UsageError, match="frame 2"):
        bmode(recording, frame=2)


def test_compounding_in_groups_equals_compounding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scan, grid = single(list(range(0, 48, 4))), around(*POINT, step=WAVELENGTH / 4)
    rf = echoes(scan, POINT).float()
    at_once = compound(Beamformer(scan, grid)(rf), transmit_weight(scan, grid))
    monkeypatch.setattr("lungwave.acoustics.bmode.EVENTS_AT_ONCE", 5)
    assert torch.allclose(compounded(rf, scan, grid), at_once, atol=1e-6)


def test_bad_input_is_named() -> None:
    scan, grid = plane(0.0), around(*POINT)
    with pytest.raises(UsageError, match="millimetres"):
        Beamformer(scan, PixelGrid(np.linspace(5, 20, 10), grid.x))
    with pytest.raises(UsageError, match="f_number"):
        Beamformer(scan, grid, f_number=-1.0)
    with pytest.raises(UsageError, match="the scan 1 x 48"):
        Beamformer(scan, grid)(torch.zeros(2, 100, 48))


def test_receive_delay_is_distance_over_speed() -> None:
    grid = PixelGrid(np.array([4e-3]), np.array([0.15e-3]))
    scan = plane(0.0)
    delay = receive_delay(scan, grid)
    assert delay.shape == (48, 1, 1)
    assert np.allclose(delay[:, 0, 0].numpy(), np.hypot(ARRAY[:, 0] - 0.15e-3, 4e-3) / C)
