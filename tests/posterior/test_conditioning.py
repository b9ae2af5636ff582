"""What the network is told: aligned at the pleura, blind to gain, honest about noise and dead elements."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lungwave.acoustics.probe import sequence
from lungwave.config import preset
from lungwave.models.precond import Scaling
from lungwave.posterior.conditioning import (
    BEFORE,
    NUMBERS,
    SAMPLES,
    SNR_STEP,
    USUAL_SNR,
    Conditioner,
    Scales,
    check_facts,
    facts,
    scaled,
)  # fmt: skip
from lungwave.posterior.pleura import PleuraDetector
from lungwave.types import MM, UsageError

SCALING = Scaling(0.5, 0.2)

CONFIG = preset("tiny")
SCAN = sequence(CONFIG)
TIMES = np.arange(192) / SCAN.sampling_frequency


class Known(PleuraDetector):
    """A detector that is told the depth."""

    def path(self, echoes):
        shape = (len(echoes.rf), len(echoes.x))
        return np.full(shape, float(self.weight[0])), np.full(shape, 1e-5)


def conditioner(depth: float, speed: float = 1.0) -> Conditioner:
    """Reads with the pleura at ``depth`` [m]."""
    detector = Known(np.array([depth]), np.zeros(1), np.ones(1), (2.6 * MM, 5.2 * MM))
    return Conditioner(CONFIG, SCAN, detector, speed)


def mirrors(*depths: float, strengths: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """RF of flat mirrors: a plane wave comes back as one (t = 2 z cos / c plus its way along the array)."""
    rf = np.zeros((1, SCAN.transmits, len(TIMES), len(SCAN.elements)), np.float32)
    for event, angle in enumerate(SCAN.angles):
        first = (SCAN.delays[event] - np.sin(angle) * SCAN.elements[:, 0] / SCAN.sound_speed).mean()
        for depth, strength in zip(depths, strengths, strict=True):
            way = 2 * depth * np.cos(angle) + SCAN.elements[:, 0] * np.sin(angle)
            late = TIMES[:, None] - (first + way / SCAN.sound_speed + SCAN.pulse_delay - SCAN.start_times[event])
            wave = np.exp(-0.5 * (late * SCAN.center_frequency * 2) ** 2) * np.cos(
                2 * np.pi * SCAN.center_frequency * late
            )
            rf[0, event] += strength * wave
    return rf


@pytest.mark.parametrize("depth", [3.1 * MM, 4.2 * MM])
def test_traces_begin_before_the_echo_of_the_pleura_whatever_its_depth(depth: float) -> None:
    """In the middle event and above the middle the echo peaks ``BEFORE`` after the start."""
    traces = conditioner(depth).read(mirrors(depth)).traces[0, 1]
    peak = np.abs(traces).argmax(1) / SCAN.sampling_frequency
    assert traces.shape == (32, SAMPLES)
    assert np.abs(peak[12:20] - BEFORE).max() <= 1 / SCAN.sampling_frequency
    deeper = conditioner(depth + 0.3 * MM).read(mirrors(depth + 0.3 * MM)).traces[0, 1]
    np.testing.assert_allclose(deeper[14:18], traces[14:18], atol=0.12 * np.abs(traces).max())


def test_a_mirror_below_the_pleura_is_bright_at_its_row() -> None:
    """1.5 mm below the pleura is row 14 or 15 of 0.1 mm."""
    depth = 3.5 * MM
    read = conditioner(depth).read(mirrors(depth, depth + 1.5 * MM, strengths=(0.05, 1.0)))
    energy = read.images[0, conditioner(depth).image_names.index("log energy")]
    assert 13 <= energy[:, 20:44].mean(1).argmax() <= 16
    shifted = (
        conditioner(depth)
        .read(mirrors(depth, depth + 1.5 * MM, strengths=(0.05, 1.0)), np.array([0.5 * MM]))
        .images[0, conditioner(depth).image_names.index("log energy")]
    )
    assert 8 <= shifted[:, 20:44].mean(1).argmax() <= 11


def noisy(level_db: float, count: int = 3) -> np.ndarray:
    """Frames of random echoes after 3.2 us with white noise everywhere."""
    rng = np.random.default_rng(0)
    echoes = rng.standard_normal((count, SCAN.transmits, len(TIMES), 32)) * (TIMES > 3.0e-6)[:, None]
    return (echoes + 10 ** (-level_db / 20) * rng.standard_normal(echoes.shape)).astype(np.float32)


def test_gain_changes_nothing() -> None:
    """Every number is relative to the recording itself."""
    made = conditioner(3.5 * MM)
    scales = Scales.of([made.read(noisy(20))])
    one, other = made(noisy(20), scales, SCALING)[0], made(7 * noisy(20), scales, SCALING)[0]
    for name in ("image", "vector", "traces"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", [10.0, 30.0])
def test_the_noise_is_measured_before_the_first_echo(level: float) -> None:
    """Within 1 dB; and dead elements are counted."""
    frames = noisy(level)
    vector = conditioner(3.5 * MM).read(frames).numbers
    said = vector[:, NUMBERS.index("SNR")] * SNR_STEP + USUAL_SNR
    assert said == pytest.approx(np.full(3, level), abs=1.2)
    assert not vector[:, NUMBERS.index("dead elements")].any()
    frames[:, :, :, :4] = 0
    assert conditioner(3.5 * MM).read(frames).numbers[:, NUMBERS.index("dead elements")] == pytest.approx(10 * 4 / 32)


def test_usual_frames_have_unit_size_and_odd_ones_are_cut() -> None:
    """Scales make every row of every image usual; a record that ends early cannot make absurd numbers."""
    made = conditioner(3.5 * MM)
    read = made.read(noisy(20, 8))
    scales = Scales.of([read])
    cond = scaled(read, scales, SCALING)
    logs = cond.image[:, made.image_names.index("log energy")]
    assert float(logs.mean()) == pytest.approx(0, abs=0.01) and float(logs.std()) == pytest.approx(1, abs=0.02)
    assert float(cond.traces.std()) == pytest.approx(0.8, abs=0.25)
    short = made(noisy(20)[:, :, :120], scales, SCALING)[0]
    assert bool(short.image.isfinite().all()) and float(short.image.abs().max()) <= 8


def test_another_transform_is_refused_by_name() -> None:
    """Weights say nothing about echoes that were read in another way."""
    held = facts(CONFIG)
    check_facts(held, CONFIG, "model")
    with pytest.raises(UsageError, match="compand: 9"):
        check_facts({**held, "compand": 9}, CONFIG, "model")
    other = CONFIG.override({"map.pixel": 2e-4})
    with pytest.raises(UsageError, match="map:"):
        check_facts(held, other, "model")


def test_a_believed_sound_speed_moves_echoes() -> None:
    """With 2 % more speed an echo is placed 2 % deeper."""
    depth = 4.0 * MM
    rf = mirrors(depth)
    usual, fast = (conditioner(3.0 * MM, speed).read(rf).images[0, 6].mean(1) for speed in (1.0, 1.02))
    assert replace(SCAN).sound_speed == SCAN.sound_speed
    rows = np.arange(64)
    around = slice(4, 18)

    def middle(energy: np.ndarray) -> float:
        weight = np.exp(energy[around] - energy[around].max())
        return float((weight * rows[around]).sum() / weight.sum())

    assert middle(fast) - middle(usual) == pytest.approx(0.02 * depth / (0.1 * MM), abs=0.4)
