"""Other clocks, fewer transmits, dead and clipped channels: made the same where that invents nothing, else refused."""

from dataclasses import replace

import numpy as np
import pytest

from lungwave.acoustics.probe import Recording, Scan, sequence
from lungwave.config import preset
from lungwave.posterior.adapt import adapt

SCAN = sequence(preset("tiny"))
SAMPLES = 192
RNG = np.random.default_rng(0)
FREQUENCY = RNG.uniform(1.5e6, 4.2e6, (6, SCAN.transmits, 32))  # of echoes that the pass-band holds
PHASE = RNG.uniform(0, 6, (6, SCAN.transmits, 32))


def signal(times: np.ndarray) -> np.ndarray:
    """RF (tx, time, el) of one recording at any times [s]."""
    waves = np.cos(2 * np.pi * FREQUENCY[:, :, None] * times[None, None, :, None] + PHASE[:, :, None])
    window = np.exp(-0.5 * ((times - 8e-6) / 2.5e-6) ** 2)
    return (waves.sum(0) * window[None, :, None]).astype(np.float32)


def recorded(scan: Scan, samples: int, late: float = 0.0) -> Recording:
    """The same echoes on the clock of ``scan``, whose first sample is ``late`` [s] after the usual one."""
    times = np.arange(samples) / scan.sampling_frequency + late
    return Recording(signal(times)[None], replace(scan, start_times=scan.start_times + late))


USUAL = recorded(SCAN, SAMPLES)


def test_the_trained_acquisition_is_left_as_it_is() -> None:
    """To rounding, and without a remark."""
    found = adapt(USUAL, SCAN, SAMPLES)
    assert found.reason is None and found.flags == ()
    np.testing.assert_allclose(found.rf, USUAL.rf, atol=1e-5)


@pytest.mark.parametrize(("rate", "late"), [(20e6, 0.0), (40e6, -0.3e-6), (12e6, -0.31e-6), (10.5e6, 0.0)])
def test_another_clock_gives_the_same_samples(rate: float, late: float) -> None:
    """Faster, a little slower, or begun earlier: the echoes are those of the trained clock."""
    other = recorded(replace(SCAN, sampling_frequency=rate), int(17e-6 * rate), late)
    found = adapt(other, SCAN, SAMPLES)
    assert found.reason is None
    error = np.abs(found.rf - USUAL.rf)[:, :, 20:-20].max() / np.abs(USUAL.rf).max()
    assert error < 0.01
    assert any("Resampled" in flag for flag in found.flags) == (rate != 12e6)


def test_missing_transmits_are_silent_and_said_so() -> None:
    """Two of three angles, in another order."""
    kept = [2, 0]
    scan = replace(
        SCAN,
        **{name: getattr(SCAN, name)[kept] for name in
           ("delays", "apodization", "start_times", "focus_distance", "angles", "origins")},
    )  # fmt: skip
    found = adapt(Recording(USUAL.rf[:, kept], scan), SCAN, SAMPLES)
    assert found.reason is None and "1 of 3 transmits are missing" in found.flags[0]
    np.testing.assert_allclose(found.rf[:, [0, 2]], USUAL.rf[:, [0, 2]], atol=1e-5)
    assert not found.rf[:, 1].any()


def test_what_cannot_be_made_the_same_is_refused_with_both_values() -> None:
    """Rate, pitch, frequency, kind, length, gain, cable."""
    cases = {
        "cannot carry the band": recorded(replace(SCAN, sampling_frequency=6e6), 100),
        "32 elements at 0.3 mm, the model was trained on 32 at 0.25 mm": replace(
            USUAL, scan=replace(SCAN, elements=SCAN.elements * 1.2)
        ),
        "centre frequency is 5 MHz": replace(USUAL, scan=replace(SCAN, center_frequency=5e6)),
        "of kind 'focused'": replace(USUAL, scan=replace(SCAN, focus_distance=np.full(3, 0.02))),
        "the record lasts 8.33 us": Recording(USUAL.rf[:, :, :100], SCAN),
        "samples are clipped; record again": replace(USUAL, rf=USUAL.rf.clip(-1, 1)),
        "of the channels are silent; check cable": replace(USUAL, rf=USUAL.rf * (np.arange(32) > 10)),
        "no transmit is at one of -8, 0, 8 degrees": replace(USUAL, scan=replace(SCAN, angles=SCAN.angles + 0.07)),
    }
    for words, recording in cases.items():
        found = adapt(recording, SCAN, SAMPLES)
        assert found.reason is not None and words in found.reason, (words, found.reason)


def test_few_dead_channels_are_a_remark() -> None:
    """Three of 32."""
    found = adapt(replace(USUAL, rf=USUAL.rf * (np.arange(32) > 2)), SCAN, SAMPLES)
    assert found.reason is None and found.flags == ("9% of the channels are silent.",)
